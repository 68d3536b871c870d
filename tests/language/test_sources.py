"""What cannot be loaded is explained in a line; nothing is unpickled, and no code is run."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from entk_helpers.language import sources
from entk_helpers.language.sources import (
    Text,
    explain,
    fingerprint,
    load_config,
    load_model,
    require_packages,
)
from entk_helpers.language.taggers import StanzaTagger, TableTagger
from entk_helpers.language.text import Document, Word, write_conllu

NAME = "someone/no-such-model-7f3a"
DOCUMENT = Document("Lily ran.", (Word("Lily", "PROPN", "", 0, 4), Word("ran", "VERB", "", 5, 8)))


def hub_error(kind, status=401):
    request = SimpleNamespace(method="GET", url="there")
    return kind("no", response=SimpleNamespace(headers={}, status_code=status, request=request))


@pytest.fixture
def saved(tmp_path):
    config = Gemma3TextConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (hub_error(errors.GatedRepoError), "is gated: accept its licence"),
        (hub_error(errors.RepositoryNotFoundError), "neither a folder here nor a model on the hub"),
        (ConnectionError("name or service not known"), "cannot be reached"),
        (RuntimeError("of the HTTP client's own"), "cannot be reached"),
    ],
)
def test_the_hub_is_asked_once_and_its_answer_explained(error, said, monkeypatch):
    asked = []

    def answer(name):
        asked.append(name)
        raise error

    monkeypatch.setattr(huggingface_hub, "auth_check", answer)
    with pytest.raises(ValueError, match=rf"--model {NAME}.*{said}"):
        load_config(NAME)
    assert asked == [NAME]


def test_the_cause_behind_an_error_counts():
    outer = OSError("We had a problem")
    outer.__cause__ = hub_error(errors.GatedRepoError)
    assert "is gated" in explain(NAME, outer)
    assert "cannot be reached" in explain(NAME, errors.OfflineModeIsEnabled("off"))
    assert explain(NAME, OSError("disk full\nand more")) == f"--model {NAME}: disk full"


def test_a_folder_that_is_not_there(tmp_path):
    for name in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="there is no such folder"):
            load_config(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json"):
        load_config(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no weights: there is no .safetensors file"):
        load_config(str(tmp_path))


def test_pickled_weights_are_not_read(saved):
    weights = saved / "model.safetensors"
    weights.rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin, a pickle, .* not read"):
        load_config(str(saved))
    # Nor where both are there and the safetensors file is something else.
    weights.write_bytes(b"not tensors")
    with pytest.raises(Exception, match=r"(?i)header|safetensors|tokenizer"):
        load_model(str(saved), torch.float32, "cpu")


def test_code_that_comes_with_a_model_is_not_run(saved):
    content = json.loads((saved / "config.json").read_text())
    content["model_type"] = "never_heard_of"
    content["auto_map"] = {"AutoConfig": "evil.Config"}
    (saved / "config.json").write_text(json.dumps(content))
    (saved / "evil.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(ValueError, match="needs code of its own, which is not run here"):
        load_config(str(saved))


def test_a_fingerprint_tells_weights_apart(saved):
    config = load_config(str(saved))
    before = fingerprint(str(saved), config)
    assert before == fingerprint(str(saved), config)
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert fingerprint(str(saved), config) != before
    assert fingerprint(NAME, SimpleNamespace(_commit_hash="abc")) == "abc"


def test_packages_that_are_there_are_no_matter():
    require_packages(["torch", "json"])
    with pytest.raises(ValueError, match="needs no_such_package, not installed"):
        require_packages(["torch", "no_such_package"])


def test_annotated_text_can_be_its_own_tagger(tmp_path):
    write_conllu(tmp_path / "a.conllu", [DOCUMENT])
    text = Text.read(tmp_path / "a.conllu", None, stories=1, seed=0, tagger="table")
    documents, tagger = text.annotated()
    assert documents[0].text == "Lily ran." and isinstance(tagger, TableTagger)
    assert tagger.tag("Lily ", "ran") == ("VERB", "")


def test_plain_stories_are_annotated_by_the_pipeline(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Lily ran.\n\nTom sat.\n")
    asked = []
    monkeypatch.setattr(sources, "stanza_pipeline", lambda download: asked.append(download) or "it")
    monkeypatch.setattr(
        sources,
        "annotate",
        lambda texts, pipeline, progress: [Document(t + pipeline, ()) for t in texts],
    )
    read = Text.read(None, tmp_path / "a.txt", stories=1, seed=0, tagger="stanza", download=True)
    documents, tagger = read.annotated()
    assert [d.text for d in documents] == ["Lily ran.it", "Tom sat.it"]
    assert isinstance(tagger, StanzaTagger) and asked == [True]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("could not be streamed"), "could not be streamed"),
        (ImportError("run `pip install datasets`"), "pip install datasets"),
    ],
)
def test_stories_that_cannot_be_had(error, message, monkeypatch):
    def fail(n, seed):
        assert (n, seed) == (9, 3)
        raise error

    monkeypatch.setattr(sources, "stanza_pipeline", lambda download: None)
    monkeypatch.setattr(sources, "tinystories", fail)
    with pytest.raises(ValueError, match=message):
        Text.read(None, None, stories=9, seed=3, tagger="stanza")
