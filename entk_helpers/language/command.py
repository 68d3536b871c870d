"""What `python -m entk_helpers.language` does, from its settings to the folder of results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..progress import progress_bar
from .budget import Budget, duration, the_device
from .figures import figures
from .processes import on_first, process_group
from .settings import Settings
from .sources import (
    Text,
    file_digest,
    fingerprint,
    load_config,
    load_model,
    quiet,
    require_packages,
)
from .study import (
    baselines,
    finished_layers,
    layer_file,
    layer_modes,
    load_study,
    read_baselines,
    read_json,
    read_layer,
    read_windows,
    write_baselines,
    write_json,
    write_layer,
    write_windows,
)
from .tables import KERNEL, label_families, summary, tabulate
from .windows import UD_TAGS, select_windows


def run(settings: Settings, folder: Path | str) -> None:
    """Do what is missing of a study in `folder`; see the module `study` for its files.

    Under torchrun all processes compute, and the first writes and prints; the folder must be one
    that all of them see.
    """
    folder = Path(folder)
    with process_group() as first:
        say = print if first else lambda *line, flush: None
        texts: list[Text] = []
        start = on_first(lambda: _Start.of(settings, folder, the_device(settings), texts))
        if start.missing is not None:
            say(f"{settings.model}: loading", flush=True)
            model, tokenizer = load_model(
                settings.model, settings.torch_dtype, the_device(settings)
            )
            on_first(lambda: _select(settings, folder, start.identity, model, tokenizer, texts))
            on_first(lambda: _compare(settings, folder, model))
            windows = on_first(lambda: read_windows(folder))
            with progress_bar(len(start.missing), "layers", show=first) as bar:
                for layer in start.missing:
                    partial = layer_file(folder, layer, ".partial.safetensors")
                    result = layer_modes(
                        model,
                        windows,
                        layer,
                        module=settings.module,
                        pairs=settings.pairs,
                        tol=settings.tol,
                        memory=start.memory,
                        seed=settings.seed,
                        resume=partial,
                        progress=first,
                    )
                    on_first(lambda result=result: write_layer(folder, result))
                    bar.update()
                    say(
                        f"layer {layer}: {settings.pairs} pairs, {result.about['products']} "
                        f"products, {duration(result.about['seconds'])}",
                        flush=True,
                    )
        on_first(lambda: _conclude(settings, folder))


@dataclass(frozen=True)
class _Start:
    """What is left to compute: layers, and perhaps windows or baselines; None where nothing is."""

    missing: list[int] | None
    memory: int
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, settings: Settings, folder: Path, device: torch.device, texts: list[Text]
    ) -> _Start:
        """Check all that can be checked without weights, cheapest first, and read the text."""
        require_packages(settings.packages())
        quiet()
        source = _source(settings)
        config = load_config(settings.model)
        budget = Budget.of(settings, config, device)
        identity = {
            "model": Path(settings.model).name if Path(settings.model).is_dir() else settings.model,
            "weights": fingerprint(settings.model, config),
            "text": source,
            "tagger": settings.which_tagger,
        }
        as_given = ("module", "windows", "length", "pairs", "tol", "dtype", "seed")
        identity |= {name: getattr(settings, name) for name in as_given}
        _claim(folder, identity)
        there = finished_layers(folder)
        missing = [p.layer for p in budget.layers if p.layer not in there]
        if not (folder / "windows.json").exists():
            texts.append(
                Text.read(
                    settings.conllu,
                    settings.text,
                    stories=settings.stories,
                    seed=settings.seed,
                    tagger=settings.which_tagger,
                    download=settings.download,
                )
            )
        elif not missing and (folder / "baselines.safetensors").exists():
            return cls(None, budget.memory, identity)
        return cls(missing, budget.memory, identity)


def _source(settings: Settings) -> str:
    """What tells one text from another."""
    if file := settings.conllu or settings.text:
        return file_digest(file)
    return f"TinyStories, {settings.stories} stories"


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError where the folder holds something else, or a study of other settings."""
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"--out {folder} is there already, and is no study; name another folder"
            )
        return
    there = read_json(path)
    for name in identity:
        if there.get(name) != identity[name]:
            raise ValueError(
                f"--out {folder} holds a study of other settings ({name} was {there.get(name)}, and "
                f"is {identity[name]}); name another folder, or remove that one"
            )


def _select(
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    model: Any,
    tokenizer: Any,
    texts: list[Text],
) -> None:
    """Draw the windows, unless they are there (then no text has been read)."""
    if not texts:
        return
    documents, tagger = texts.pop().annotated()
    per_tag = settings.windows // len(UD_TAGS)
    windows = select_windows(
        model,
        tokenizer,
        documents,
        tagger,
        length=settings.length,
        per_tag=per_tag,
        seed=settings.seed,
        progress=True,
    )
    write_json(folder / "settings.json", identity)
    write_windows(folder, windows)
    print(f"windows: {len(windows)}, {per_tag} a tag, from {len(documents)} documents", flush=True)


def _compare(settings: Settings, folder: Path, model: Any) -> None:
    """Score the windows by everything that is no kernel, unless that is there."""
    if (folder / "baselines.safetensors").exists():
        return
    layers = range(model.config.get_text_config().num_hidden_layers)
    others = baselines(
        model,
        read_windows(folder),
        layers,
        module=settings.module,
        k=settings.pairs,
        seed=settings.seed,
    )
    write_baselines(folder, *others)


def _conclude(settings: Settings, folder: Path) -> None:
    """Tables and figures of all layers that are there, unless they are up to date; a summary."""
    path, layers = folder / "tables.json", finished_layers(folder)
    chosen = ("splits", "min_support", "min_words")
    made_of = {"layers": layers} | {name: getattr(settings, name) for name in chosen}
    drawn = all((folder / f"{name}.svg").exists() for name in ("grades_by_layer", "spectra"))
    there = read_json(path) if path.exists() else {}
    if drawn and made_of == {name: there.get(name) for name in made_of}:
        print(
            f"nothing to do: {folder} holds layers {', '.join(map(str, layers))} and their tables"
        )
        return
    windows = read_windows(folder)
    others, residual = read_baselines(folder)
    scores = {KERNEL: {n: read_layer(folder, n).scores for n in layers}}
    for method, by_layer in others.items():
        scores[method] = {n: v for n, v in by_layer.items() if n is None or n in layers}
    tables = tabulate(
        windows,
        scores,
        {n: residual[n] for n in layers},
        label_families(windows, min_support=settings.min_support, min_words=settings.min_words),
        splits=settings.splits,
        seed=settings.seed,
    )
    tables = made_of | tables
    write_json(path, tables)
    figures(load_study(folder), folder)
    for line in summary(tables):
        print(line)
    print(f"results: {folder}")
