"""Every method graded against labels on random halves of the windows, as tables.

Labels come from `scores`; a direction's score is one number a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .scores import (
    Grades,
    Labels,
    Probe,
    grade,
    linear_probe_scores,
    morphology_labels,
    probe,
    stratified_halves,
    table_scores,
    tag_labels,
)
from .windows import Windows

KERNEL, RESIDUAL, MLP, RANDOM = "eNTK", "PCA of the residual", "PCA of the MLP", "random directions"
FINAL, LOGITS = "PCA of the final state", "PCA of the logits"
CEILING, TABLE = "linear probe (ceiling)", "table of last words (control)"
CHOSEN, BEST = "chosen on the train half", "best on the test half"
"""The layer of a row of the tables, where it is no number: each label's own, chosen without looking
at the test half; or, as published, the layer whose macro AUROC on the test half is largest."""

Scores = dict[str, dict[int | None, Float[Tensor, "N k"]]]
"""Method -> layer -> scores; layer None for a method that has no layer."""


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

    def words(half: Tensor) -> list[str]:
        """The last word of each window of a half."""
        return [windows.last_words[n] for n in half]

    rows = []
    for family, labels in families.items():
        if not labels.names:
            continue
        y, graded = labels.values, {}
        for method, by_layer in scores.items():
            for layer, values in by_layer.items():
                graded[method, layer] = _probes(values, y, halves)
            if None not in by_layer:
                graded[method, CHOSEN] = _probes(torch.cat(list(by_layer.values()), 1), y, halves)
        for layer, X in residual.items():
            graded[CEILING, layer] = [
                grade(linear_probe_scores(X[a], y[a], X[b]), y[b])
                for a, b in (halves if layer == max(residual) else halves[:1])
            ]
        graded[TABLE, None] = [
            grade(table_scores(words(a), y[a], words(b)), y[b]) for a, b in halves
        ]
        found = []
        for (method, layer), results in graded.items():
            found.append(_row(family, method, layer, labels.names, results))
            if layer == CHOSEN:
                picked = _layers_of(results[0].mode, scores[method])
                found[-1]["layer_of"] = dict(zip(labels.names, picked, strict=True))
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


def _probes(scores: Tensor, labels: Tensor, halves: Sequence[tuple[Tensor, Tensor]]) -> list[Probe]:
    return [probe(scores[a], labels[a], scores[b], labels[b]) for a, b in halves]


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


def summary(tables: dict[str, Any]) -> list[str]:
    """The means over labels and splits of a study's tables, by family and method, as lines.

    A method with layers has each label's own, chosen on the train half; the ceiling the last layer.
    """
    lines = [f"{'':18}{'':32}AUROC     AP"]
    last = max(tables["layers"])
    for row in tables["rows"]:
        layered = row["method"] == CEILING
        if row["layer"] in ((last,) if layered else (CHOSEN, None)):
            means = [_mean(row[name]) for name in ("macro_auroc", "macro_ap")]
            lines.append(f"{row['family']:18}{row['method']:32}{means[0]:5.3f}  {means[1]:5.3f}")
    return lines


def _mean(values: list[float | None]) -> float:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else float("nan")
