"""Figures of a study: grades by layer, and the kernels' spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..storage import replacing
from .study import Study
from .tables import CEILING, KERNEL, MLP, RANDOM, RESIDUAL


def figures(study: Study, folder: Path | str) -> None:
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
        _save(fig, Path(folder) / "grades_by_layer")
        fig, ax = plt.subplots(figsize=(5, 3.4))
        ramp = plt.get_cmap("mako")
        for i, result in enumerate(study.layers.values()):
            colour = mpl.colors.to_hex(ramp(0.15 + 0.7 * i / max(1, len(study.layers) - 1)))
            plotting.plot_spectrum(ax, result.values, label=f"layer {result.layer}", colour=colour)
        ax.set_ylabel("eigenvalue")
        ax.legend(fontsize="x-small", ncols=1 + len(study.layers) // 9)
        _save(fig, Path(folder) / "spectra")


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


def _save(fig: Any, stem: Path) -> None:
    import matplotlib.pyplot as plt

    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        file = stem.with_suffix(f".{kind}")
        with replacing(file) as part:
            fig.savefig(part, format=kind, metadata=metadata)
    plt.close(fig)
