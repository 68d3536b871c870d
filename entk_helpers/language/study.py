"""A language model's grammar, studied from text to tables: windows, kernels, baselines, figures.

`run` is what `python -m entk_helpers.language` does. Its folder, which `load_study` reads, holds

- settings.json: all that the results depend on; results of other settings are refused;
- windows.json, windows.safetensors: the windows, with the tags and features of their next words;
- baselines.safetensors: the scores of directions that no kernel gave, and the last token's states;
- layer_NN.safetensors, layer_NN.json: eigenvalues, residuals and scores of a layer's kernel;
- tables.json, and figures as PNG and SVG.

Files are written whole or not at all; what is there is not computed again. Layers are numbered
from 0, labels come from `scores`, and a direction's score is one number a window.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..inputs import require_finite
from ..spectrum import top_eigenpairs
from ..storage import read_tensors, write_tensors
from .kernel import LogitKernel
from .models import last_token_states
from .scores import (
    Grades,
    Labels,
    grade,
    linear_probe_scores,
    morphology_labels,
    pca_scores,
    probe,
    random_scores,
    stratified_halves,
    table_scores,
    tag_labels,
    window_scores,
)
from .text import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KERNEL, RESIDUAL, MLP, RANDOM = "eNTK", "PCA of the residual", "PCA of the MLP", "random directions"
FINAL, LOGITS = "PCA of the final state", "PCA of the logits"
CEILING, TABLE = "linear probe (ceiling)", "table of last words (control)"
CHOSEN, BEST = "chosen on the train half", "best on the test half"
"""The layer of a row of the tables, where it is no number: each label's own, chosen without looking
at the test half; or, as published, the layer whose macro AUROC on the test half is largest."""

Scores = dict[str, dict[int | None, Float[Tensor, "N k"]]]
"""Method -> layer -> scores; layer None for a method that has no layer."""


@dataclass(frozen=True)
class LayerResult:
    """The leading eigenpairs of one layer's kernel, each eigenvector as one score per window.

    values, residuals: (k,), as in `Eigenpairs`. about: products, seconds, device and the like.
    """

    layer: int
    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    scores: Float[Tensor, "N k"]
    about: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a folder holds; `tables` is as `tabulate` returns it."""

    settings: dict[str, Any]
    windows: Windows
    layers: dict[int, LayerResult]
    scores: Scores
    residual: dict[int, Float[Tensor, "N d"]]
    tables: dict[str, Any]


# ---------------------------------------------------------------------------- one model


def layer_modes(
    model: PreTrainedModel,
    windows: Windows,
    layer: int,
    *,
    module: str = "mlp.down_proj",
    pairs: int = 25,
    tol: float = 1e-3,
    memory: str | int = "1GiB",
    seed: int = 0,
    resume: Path | str | None = None,
    progress: bool = False,
) -> LayerResult:
    """Return the top eigenpairs of one layer's logit kernel, as scores of the windows.

    In a process group all processes call this, and get the same result.
    """
    start = time.monotonic()
    kernel = LogitKernel(
        model,
        windows.input_ids,
        attention_mask=windows.attention_mask,
        layer=layer,
        module=module,
        memory=memory,
    )
    found = top_eigenpairs(
        kernel, pairs, tol=tol, block=1, seed=seed, resume=resume, progress=progress
    )
    about = {
        "products": found.matvecs,
        "seconds": round(time.monotonic() - start, 2),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "record kept": kernel.kept,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    scores = window_scores(found, len(windows))
    return LayerResult(kernel.layer, found.values.cpu(), found.residuals.cpu(), scores, about)


def baselines(
    model: PreTrainedModel,
    windows: Windows,
    layers: Sequence[int],
    *,
    module: str = "mlp.down_proj",
    k: int = 25,
    seed: int = 0,
) -> tuple[Scores, dict[int, Float[Tensor, "N d"]]]:
    """Return the scores of k directions by each other method, and the residual stream by layer.

    All at the last token: principal directions of the residual stream after the layer (the
    paper's baseline), of the linear map's inputs, of the final state and of the logits; and random
    directions of the residual stream.
    """
    states = last_token_states(model, windows.input_ids, windows.attention_mask, module=module)
    scores: Scores = {
        RESIDUAL: {n: pca_scores(states.residual[n], k) for n in layers},
        MLP: {n: pca_scores(states.mlp[n], k) for n in layers},
        RANDOM: {n: random_scores(states.residual[n], k, seed + n) for n in layers},
        FINAL: {None: pca_scores(states.final, k)},
        LOGITS: {None: pca_scores(_same_distances(states.logits), k)},
    }
    return scores, {n: states.residual[n] for n in layers}


def _same_distances(X: Float[Tensor, "N D"], columns: int = 16384) -> Float[Tensor, "N m"]:
    """Rows with the same principal scores, in N coordinates where D is larger (a vocabulary)."""
    if X.shape[1] <= len(X):
        return X
    centred = require_finite(X, "X") - X.double().mean(0).to(X)
    gram = sum(part @ part.T for part in (c.double() for c in centred.split(columns, dim=1)))
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


# ---------------------------------------------------------------------------- tables


def label_families(
    windows: Windows, *, min_support: int = 30, min_words: int = 12
) -> dict[str, Labels]:
    """Return the labels that directions are graded on.

    "tags": of the text's next word. "morphology": its features, filtered as in the paper.
    "greedy morphology": those of the model's own next word, as in the published notebook.
    """
    families = {"tags": tag_labels(windows)}
    filters = {"min_support": min_support, "min_words": min_words}
    families["morphology"] = morphology_labels(windows, **filters)
    if len(windows.greedy_features) == len(windows):
        families["greedy morphology"] = morphology_labels(windows, of="greedy", **filters)
    return families


def tabulate(
    windows: Windows,
    scores: Scores,
    residual: Mapping[int, Float[Tensor, "N d"]],
    families: Mapping[str, Labels],
    *,
    splits: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Grade every method on random halves of the windows, stratified by tag.

    A label's direction and sign are chosen on the train half (`probe`). The first split is the
    paper's one; `splits` of them show how much a split matters. The linear probe, which is fitted
    and not chosen, is a ceiling, and takes a layer's whole residual stream: on the first split at
    every layer, on all splits at the last one.

    Returns labels (family -> name -> number of windows), and rows. A row has family, method and
    layer (a number, None, CHOSEN or BEST); macro_auroc and macro_ap, one a split; auroc, ap,
    precision, enrichment by label on the first split, and for CHOSEN the layer of each label.
    Grades that do not exist (a label that a half lacks) are None.
    """
    halves = stratified_halves(windows.tags, splits, seed)
    rows = []
    for family, labels in families.items():
        if not labels.names:
            continue
        graded: dict[tuple[str, int | str | None], list[Grades]] = {}
        picked: dict[str, list[int]] = {}
        for number, (train, test) in enumerate(halves):
            y_train, y_test = labels.values[train], labels.values[test]
            for method, by_layer in scores.items():
                for layer, values in by_layer.items():
                    result = probe(values[train], y_train, values[test], y_test)
                    graded.setdefault((method, layer), []).append(result)
                if None not in by_layer:
                    every = torch.cat(list(by_layer.values()), dim=1)
                    result = probe(every[train], y_train, every[test], y_test)
                    graded.setdefault((method, CHOSEN), []).append(result)
                    if number == 0:
                        picked[method] = _layers_of(result.mode, by_layer)
            for layer, values in residual.items():
                if number == 0 or layer == max(residual):
                    fitted = linear_probe_scores(values[train], y_train, values[test])
                    graded.setdefault((CEILING, layer), []).append(grade(fitted, y_test))
            words = [[windows.last_words[n] for n in half] for half in (train, test)]
            counted = table_scores(words[0], y_train, words[1])
            graded.setdefault((TABLE, None), []).append(grade(counted, y_test))
        found = [
            _row(family, method, layer, labels.names, results)
            for (method, layer), results in graded.items()
        ]
        for row in found:
            if row["layer"] == CHOSEN:
                row["layer_of"] = dict(zip(labels.names, picked[row["method"]], strict=True))
        rows += found + [
            _best_layer([row for row in found if row["method"] == method])
            for method, by_layer in scores.items()
            if None not in by_layer
        ]
    counts = {
        family: dict(zip(labels.names, labels.values.sum(0).tolist(), strict=True))
        for family, labels in families.items()
    }
    return {"labels": counts, "splits": splits, "seed": seed, "rows": rows}


def _layers_of(modes: Tensor, by_layer: Mapping[int | None, Tensor]) -> list[int | None]:
    """The layer that each column of the concatenated scores came from; None for column -1."""
    owner = [layer for layer, values in by_layer.items() for _ in range(values.shape[1])]
    return [owner[mode] if mode >= 0 else None for mode in modes.tolist()]


def _row(
    family: str, method: str, layer: int | str | None, names: list[str], results: list[Grades]
) -> dict[str, Any]:
    row: dict[str, Any] = {"family": family, "method": method, "layer": layer}
    row["macro_auroc"] = [_number(result.macro_auroc) for result in results]
    row["macro_ap"] = [_number(result.macro_ap) for result in results]
    for grades in ("auroc", "ap", "precision", "enrichment"):
        values = map(_number, getattr(results[0], grades).tolist())
        row[grades] = dict(zip(names, values, strict=True))
    return row


def _best_layer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the layer with the largest macro AUROC on the first split's test half."""
    numbered = [row for row in rows if isinstance(row["layer"], int)]
    best = max(numbered, key=lambda row: row["macro_auroc"][0] or 0.0)
    return best | {"layer": BEST, "best_layer": best["layer"]}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def figures(study: Study, folder: Path | str) -> list[Path]:
    """Draw grades by layer and the kernels' spectra; each as PNG and SVG."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    from .. import plotting

    colours = {
        KERNEL: plotting.COLOURS["trained"],
        RESIDUAL: plotting.COLOURS["predicted"],
        MLP: plotting.COLOURS["dropped"],
        RANDOM: plotting.COLOURS["untrained"],
        CEILING: plotting.COLOURS["accent"],
    }
    files = []
    # A hash that does not change from run to run: the same study gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "entk"}):
        plotting.use_style()
        kinds = [kind for kind in study.tables["labels"] if study.tables["labels"][kind]]
        grades = {"macro_auroc": "mean AUROC", "macro_ap": "mean AP"}
        shape = (len(grades), len(kinds))
        fig, axes = plt.subplots(
            *shape, figsize=(3.4 * len(kinds), 5), sharex=True, sharey="row", squeeze=False
        )
        for ax_row, (grade_name, title) in zip(axes, grades.items(), strict=True):
            for ax, kind in zip(ax_row, kinds, strict=True):
                for method, colour in colours.items():
                    _draw_layers(ax, study.tables["rows"], kind, method, grade_name, colour)
            ax_row[0].set_ylabel(title)
        for top, ax, kind in zip(axes[0], axes[-1], kinds, strict=True):
            top.set_title(kind)
            ax.set_xlabel("layer")
            ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        files += _save(fig, Path(folder) / "grades_by_layer")
        fig, ax = plt.subplots(figsize=(5, 3.4))
        ramp = plt.get_cmap("mako")
        for i, result in enumerate(study.layers.values()):
            colour = mpl.colors.to_hex(ramp(0.15 + 0.7 * i / max(1, len(study.layers) - 1)))
            plotting.plot_spectrum(ax, result.values, label=f"layer {result.layer}", colour=colour)
        ax.set_ylabel("eigenvalue")
        ax.legend(fontsize="x-small", ncols=1 + len(study.layers) // 9)
        files += _save(fig, Path(folder) / "spectra")
    return files


def _draw_layers(
    ax: Any, rows: list[dict[str, Any]], family: str, method: str, name: str, colour: str
) -> None:
    """A method's grade at each layer: the mean over splits, and the range of 90% of them."""
    chosen = [
        row
        for row in rows
        if (row["family"], row["method"]) == (family, method) and isinstance(row["layer"], int)
    ]
    grades = {row["layer"]: [v for v in row[name] if v is not None] for row in chosen}
    grades = {layer: torch.tensor(values) for layer, values in sorted(grades.items()) if values}
    if not grades:
        return
    layers = list(grades)
    ax.plot(layers, [v.mean() for v in grades.values()], "o-", ms=3, color=colour, label=method)
    low, high = ([v.quantile(q).item() for v in grades.values()] for q in (0.05, 0.95))
    ax.fill_between(layers, low, high, color=colour, alpha=0.15, lw=0)


def _save(fig: Any, stem: Path) -> list[Path]:
    import matplotlib.pyplot as plt

    files = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        fig.savefig(
            part, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else {}
        )
        os.replace(part, file)
    plt.close(fig)
    return files


# ---------------------------------------------------------------------------- a folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON under another name, then give it its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """Read JSON; ValueError names the file that holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}); remove it and start again"
        ) from error


WINDOW_TENSORS = ("input_ids", "attention_mask")


def write_windows(folder: Path, windows: Windows) -> None:
    """Write windows.safetensors, then windows.json, which says that both are there."""
    parts = dict(vars(windows))
    tensors = {name: parts.pop(name) for name in WINDOW_TENSORS}
    write_tensors(folder / "windows.safetensors", tensors, {})
    write_json(folder / "windows.json", parts)


def read_windows(folder: Path) -> Windows:
    """Read what `write_windows` wrote."""
    tensors, _ = read_tensors(folder / "windows.safetensors")
    return Windows(**tensors, **read_json(folder / "windows.json"))


def write_baselines(folder: Path, scores: Scores, residual: Mapping[int, Tensor]) -> None:
    """Write baselines.safetensors, a tensor a method and layer."""
    tensors = {
        f"{method}|{'' if layer is None else layer}": values.float()
        for method, by_layer in scores.items()
        for layer, values in by_layer.items()
    }
    tensors |= {f"residual|{layer}": values.float() for layer, values in residual.items()}
    write_tensors(folder / "baselines.safetensors", tensors, {})


def read_baselines(folder: Path) -> tuple[Scores, dict[int, Tensor]]:
    """Read what `write_baselines` wrote; layers ascending."""
    tensors, _ = read_tensors(folder / "baselines.safetensors")
    found: dict[str, dict[int | None, Tensor]] = {}
    keys = {key: key.rsplit("|", 1) for key in tensors}
    for key, (method, layer) in sorted(keys.items(), key=lambda item: int(item[1][1] or -1)):
        found.setdefault(method, {})[int(layer) if layer else None] = tensors[key]
    return found, found.pop("residual")


def layer_file(folder: Path, layer: int, suffix: str = ".safetensors") -> Path:
    """The name of a layer's file."""
    return folder / f"layer_{layer:02d}{suffix}"


def write_layer(folder: Path, result: LayerResult) -> None:
    """Write a layer's tensors, then its JSON, which says that both are there."""
    tensors = {name: getattr(result, name) for name in ("values", "residuals", "scores")}
    write_tensors(layer_file(folder, result.layer), tensors, {})
    write_json(layer_file(folder, result.layer, ".json"), result.about)


def read_layer(folder: Path, layer: int) -> LayerResult:
    """Read what `write_layer` wrote."""
    tensors, _ = read_tensors(layer_file(folder, layer))
    return LayerResult(layer, **tensors, about=read_json(layer_file(folder, layer, ".json")))


def finished_layers(folder: Path) -> list[int]:
    """The layers whose files are both there, ascending."""
    numbers = (file.stem.removeprefix("layer_") for file in folder.glob("layer_*.json"))
    return sorted(int(n) for n in numbers if n.isdecimal() and layer_file(folder, int(n)).exists())


def load_study(folder: Path | str) -> Study:
    """Return what a folder holds.

    Raises ValueError for a folder that is no study, or not a finished one.
    """
    folder = Path(folder)
    needed = ("settings.json", "windows.json", "baselines.safetensors", "tables.json")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds no finished study (it has no {missing[0]}); make one with: "
            "python -m entk_helpers.language --out DIR"
        )
    tables = read_json(folder / "tables.json")
    layers = {n: read_layer(folder, n) for n in tables["layers"]}
    others, residual = read_baselines(folder)
    scores: Scores = {KERNEL: {n: result.scores for n, result in layers.items()}}
    settings = read_json(folder / "settings.json")
    return Study(settings, read_windows(folder), layers, scores | others, residual, tables)
