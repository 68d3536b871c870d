"""Models and texts from the Hugging Face hub or from files, with one clear error for what is amiss.

Weights are read from safetensors only, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .models import gemma_3_270m_config
from .taggers import StanzaTagger, TableTagger, Tagger, annotate, stanza_pipeline
from .text import Document, read_conllu, read_stories, tinystories

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

GEMMA = "google/gemma-3-270m"
PUBLIC_CONFIGS = {GEMMA: gemma_3_270m_config}
"""Configs that are known without the network, for a plan."""


def require_packages(names: Iterable[str]) -> None:
    """Raise ValueError that names the packages that are not installed, and how to install them."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ValueError(
            f"this needs {', '.join(missing)}, not installed here; install with: "
            "pip install 'entk-helpers[gemma]'"
        )


def quiet() -> None:
    """Keep the libraries' own bars and remarks out of the output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_config(model: str) -> PretrainedConfig:
    """Return the config of a model in a folder, in the cache, or on the hub.

    Raises ValueError where there is none, and says why: no such folder, no network, a licence that
    is not accepted, weights that are no safetensors.
    """
    from huggingface_hub import auth_check, errors
    from transformers import AutoConfig

    folder = Path(model)
    if folder.is_dir():
        _require_safetensors(folder)
    elif folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ValueError(f"--model {model}: there is no such folder")
    else:
        try:
            return AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError):
            pass  # not in the cache
        # One question, so that without a network the answer does not take half a minute.
        try:
            auth_check(model)
        except (errors.HfHubHTTPError, errors.HFValidationError) as error:
            raise ValueError(explain(model, error)) from error
        except Exception as error:  # of a class of the HTTP client's
            raise ValueError(explain(model, ConnectionError(str(error)))) from error
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(explain(model, error)) from error


def load_model(
    model: str, dtype: torch.dtype, device: torch.device | str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model in eval mode, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ValueError(explain(model, error)) from error
    return loaded.eval().requires_grad_(False).to(device), tokenizer


@dataclass(frozen=True)
class Text:
    """Text that has been read, and what will tag it: documents, or stories and a Stanza pipeline."""

    documents: list[Document] | None
    stories: list[str] | None
    pipeline: Any
    tags_itself: bool

    @classmethod
    def read(
        cls,
        conllu: Path | None,
        plain: Path | None,
        *,
        stories: int,
        seed: int,
        tagger: str,
        download: bool = False,
    ) -> Text:
        """Read a file, or stream TinyStories, and start Stanza where it is needed.

        `tagger` is "stanza", or "table": the annotated text itself. ValueError for files that are
        not there or hold something else, no network, and Stanza's models missing.
        """
        try:
            needed = tagger == "stanza" or conllu is None
            pipeline = stanza_pipeline(download=download) if needed else None
            documents = None if conllu is None else read_conllu(conllu)
            texts = None
            if conllu is None:
                texts = tinystories(stories, seed) if plain is None else read_stories(plain)
        except (OSError, ImportError) as error:
            raise ValueError(str(error)) from error
        return cls(documents, texts, pipeline, tagger == "table")

    def annotated(self) -> tuple[list[Document], Tagger]:
        """Return the documents, which Stanza annotates first where they are plain stories."""
        documents = self.documents
        if documents is None:
            documents = annotate(self.stories or [], self.pipeline, progress=True)
        tagger = TableTagger(documents) if self.tags_itself else StanzaTagger(self.pipeline)
        return documents, tagger


def fingerprint(model: str, config: PretrainedConfig) -> str:
    """Return what tells one set of weights from another: a hub commit, or a hash of the files."""
    folder = Path(model)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None))
    return _digest([folder / "config.json", *sorted(folder.glob("*.safetensors"))])


def file_digest(path: Path) -> str:
    """Return a short SHA-256 of a file; ValueError where it cannot be read."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return _digest([path])


def explain(model: str, error: BaseException) -> str:
    """Say in one line why a model could not be had, and what to do."""
    from huggingface_hub import errors

    causes = tuple(_causes(error))

    def any_of(*kinds: type[BaseException]) -> bool:
        """Whether one of the causes is of these kinds."""
        return any(isinstance(cause, kinds) for cause in causes)

    if any_of(errors.GatedRepoError):
        return (
            f"--model {model} is gated: accept its licence on its page on the Hugging Face hub, "
            "log in with `hf auth login`, and start again"
        )
    if any_of(errors.RepositoryNotFoundError, errors.HFValidationError):
        return (
            f"--model {model} is neither a folder here nor a model on the hub; a private one needs "
            "`hf auth login`"
        )
    if any_of(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError):
        return (
            f"--model {model}: the Hugging Face hub cannot be reached, and there is no copy in the "
            "cache; go online once, or give a folder with the model's files"
        )
    if "trust_remote_code" in str(error):
        return (
            f"--model {model} needs code of its own, which is not run here; use a model whose "
            "architecture is part of transformers"
        )
    if "safetensors" in str(error):
        return f"--model {model} has no safetensors weights, and no others are read"
    return f"--model {model}: {str(error).strip().splitlines()[0]}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _require_safetensors(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model {folder} is no model: the folder has no config.json")
    if any(folder.glob("*.safetensors")):
        return
    pickled = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise ValueError(
            f"--model {folder} has its weights in {pickled[0]}, a pickle, which can run any code and "
            "is not read; save them anew with save_pretrained, which writes safetensors"
        )
    raise ValueError(f"--model {folder} has no weights: there is no .safetensors file")


def _digest(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
