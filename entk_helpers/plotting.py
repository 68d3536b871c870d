"""The book's figures: one style, and the few kinds of panel that chapters share.

Nothing is computed here; arrays come in, axes come out. The same thing has the same
colour on every page, from the colour-blind-safe palette of Okabe and Ito.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import SupportsFloat

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import HTML, Markdown
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from torch import Tensor

COLOURS = {
    "trained": "#0072B2",
    "untrained": "#8C8C8C",
    "predicted": "#D55E00",
    "kept": "#0072B2",
    "dropped": "#E69F00",
    "control": "#CC79A7",
    "accent": "#009E73",
}
"""What each colour means: kernels and models by their training, features by their fate."""


def use_style() -> None:
    """Set matplotlib's defaults for a chapter; call once, in its first cell.

    Examples:
        >>> import matplotlib.pyplot as plt
        >>> with plt.rc_context():  # or the style stays
        ...     use_style()
        ...     print(plt.rcParams["savefig.dpi"])
        150
    """
    sns.set_theme(context="notebook", style="ticks", font_scale=0.9)
    plt.rcParams |= {
        "figure.constrained_layout.use": True,
        "figure.dpi": 150,
        "savefig.dpi": 150,
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "image.interpolation": "nearest",
    }


def plot_spectrum(
    ax: Axes,
    values: Float[Tensor, "*seeds n"],
    *,
    label: str | None = None,
    colour: str = COLOURS["trained"],
    log: bool = True,
    **style: object,
) -> None:
    """Draw eigenvalues against their index, counted from 1; one thin line a seed.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_spectrum(ax, torch.tensor([[8.0, 4.0, 1.0], [9.0, 4.0, 2.0]]))  # two seeds
        >>> len(ax.lines), ax.get_yscale()
        (2, 'log')
    """
    lines = np.atleast_2d(values.detach().cpu().numpy())
    index = np.arange(1, lines.shape[1] + 1)
    style = {"lw": 1.2, "alpha": 1.0 if len(lines) == 1 else 0.55} | style
    for i, line in enumerate(lines):
        ax.plot(index, line, color=colour, label=label if i == 0 else None, **style)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("index of the eigenvalue")


def mark_index(ax: Axes, index: int, text: str, *, height: float = 0.97) -> None:
    """Mark the place after `index` eigenvalues, where a cliff would be.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> mark_index(ax, 50, "cliff")
        >>> ax.lines[0].get_xdata(), ax.texts[0].get_text()  # before the 51st
        ([50.5, 50.5], 'cliff')
    """
    ax.axvline(index + 0.5, color="black", lw=0.9, ls=(0, (4, 3)), zorder=0)
    ax.annotate(
        text, (index + 0.5, height), xycoords=("data", "axes fraction"), xytext=(3, 0),
        textcoords="offset points", va="top", fontsize="small",
    )  # fmt: skip


def plot_heatmap(
    ax: Axes,
    scores: Float[Tensor, "k F"],
    *,
    xlabel: str = "feature",
    ylabel: str = "eigenvector",
    vmax: float = 1.0,
) -> AxesImage:
    """Draw scores from 0 (dark) to vmax (bright); row 0, the first eigenvector, at the top.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> image = plot_heatmap(Figure().subplots(), torch.eye(3))
        >>> image.get_array().shape, image.get_clim()
        ((3, 3), (0.0, 1.0))
    """
    image = ax.imshow(scores.detach().cpu().numpy(), cmap="mako", vmin=0, vmax=vmax, aspect="auto")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return image


def plot_scores(
    ax: Axes,
    scores: Mapping[str, Sequence[SupportsFloat]],
    *,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Draw one dot a seed and a bar at the mean, one row a method, the first at the top.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> ax = Figure().subplots()
        >>> plot_scores(ax, {"kernel": [0.8, 0.9], "random": [0.4, 0.6]})
        >>> [text.get_text() for text in ax.texts]  # the means
        ['0.85', '0.50']
    """
    for row, (name, values) in enumerate(scores.items()):
        colour = (colours or {}).get(name, COLOURS["untrained"])
        mean = float(np.mean(values))
        ax.barh(row, mean, height=0.62, color=colour, alpha=0.35, lw=0)
        ax.plot(values, [row] * len(values), "o", ms=4, color=colour, mec="white", mew=0.4)
        ax.annotate(f"{mean:.2f}", (max(values), row), xytext=(7, 0), textcoords="offset points",
                    va="center", fontsize="small")  # fmt: skip
    ax.set_yticks(range(len(scores)), list(scores))
    ax.set_ylim(len(scores) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """Return a Markdown table for a notebook to show.

    Examples:
        >>> print(table(["p", "rank"], [[29, 56], [31, 60]]).data)
        | p | rank |
        | --- | --- |
        | 29 | 56 |
        | 31 | 60 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return Markdown("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def spread(values: Sequence[SupportsFloat], digits: int = 2) -> str:
    """Mean, sample standard deviation and range over seeds, as text with no-break spaces.

    Examples:
        >>> spread([1.0, 2.0, 3.0], digits=1).split()
        ['2.0', '±', '1.0', '(1.0', 'to', '3.0)']
        >>> spread([5, 5])
        '5.00'
    """
    v = np.asarray(values, dtype=float)
    mean, low, high = (f"{q:.{digits}f}" for q in (v.mean(), v.min(), v.max()))
    if low == high:
        return mean
    sd = f"{v.std(ddof=1):.{digits}f}"
    gap = "\N{NO-BREAK SPACE}"
    return f"{mean}{gap}±{gap}{sd} ({low}{gap}to{gap}{high})"


def coloured_text(
    lines: Sequence[Sequence[tuple[str, str | None, str]]],
    *,
    legend: Mapping[str, str] | None = None,
) -> HTML:
    """Return lines of text, as a notebook shows them, with words on a coloured ground.

    A line is a list of (text, colour or None, title); the title shows under a pointer and is read
    by a screen reader. `legend` maps names to colours.

    Examples:
        >>> line = [("She saw a ", None, ""), ("feather", "#009E73", "trigger")]
        >>> 'title="trigger">feather</span>' in coloured_text([line]).data
        True
    """

    def piece(text: str, colour: str | None, title: str) -> str:
        """One word or run of text, as HTML."""
        text = html.escape(text)
        if colour is None:
            return text
        style = f"background:{colour};color:#111;padding:.1em .15em;border-radius:.2em"
        return f'<span style="{style}" title="{html.escape(title)}">{text}</span>'

    rows = ["".join(piece(*part) for part in line) for line in lines]
    if legend:
        rows.append(" ".join(piece(name, colour, name) for name, colour in legend.items()))
    return HTML("".join(f'<p style="margin:.25em 0;line-height:1.7">{row}</p>' for row in rows))


def training_explorer(
    name: str,
    epochs: Sequence[int],
    *,
    curves: Mapping[str, Sequence[SupportsFloat]],
    spectra: Float[Tensor, "E n"],
    maps: Float[Tensor, "E r c"],
    captions: Sequence[str],
    titles: tuple[str, str, str],
    map_axes: tuple[str, str],
    map_ticks: Sequence[tuple[float, str]] = (),
    marks: Sequence[int] = (),
    start: int = 0,
) -> HTML:
    """Return a figure with a slider over epochs: curves, a spectrum and a heat map together.

    It needs no server and no network: one piece of HTML with its data inside. `name` is its
    id, unlike any other on the page. `curves` run from epoch 0 in steps of one and lie between
    0 and 1, the first grey; `spectra` are positive, shown from rank 2 on, on a logarithmic
    axis with lines after the ranks in `marks`; `maps` lie between 0 and 1. There is a spectrum,
    a map and a caption for each of `epochs`; `start` is the one shown first, as an index.

    Examples:
        >>> figure = training_explorer(
        ...     "demo", [0, 1], captions=["before", "after"], curves={"accuracy": [0.1, 0.9]},
        ...     spectra=torch.ones(2, 5), maps=torch.zeros(2, 3, 3),
        ...     titles=("accuracy", "spectrum", "map"), map_axes=("column", "row"),
        ... )
        >>> 'id="demo"' in figure.data, "http" in figure.data  # it fetches nothing
        (True, False)
    """
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    if not len(epochs) == len(spectra) == len(maps) == len(captions):
        raise ValueError(
            f"epochs ({len(epochs)}), spectra ({len(spectra)}), maps ({len(maps)}) and captions "
            f"({len(captions)}) must be equally many"
        )
    logs = np.log10(spectra.detach().cpu().double().numpy())
    levels = (maps.detach().cpu().clamp(0, 1) * 63).round().int().flatten(1).tolist()
    colours = itertools.cycle(COLOURS[c] for c in ("untrained", "trained", "accent", "control"))
    data = {
        "digits": digits,
        "colours": [to_hex(c) for c in plt.get_cmap("mako")(np.linspace(0, 1, 64))],
        "epochs": list(epochs),
        "curves": [
            {"name": label, "colour": colour, "values": [round(float(v), 3) for v in values]}
            for (label, values), colour in zip(curves.items(), colours, strict=False)
        ],
        "spectra": logs.round(3).tolist(),
        "range": [logs[:, 1:].min().round(2) - 0.05, logs[:, 1:].max().round(2) + 0.05],
        "maps": ["".join(digits[level] for level in row) for row in levels],
        "columns": maps.shape[2],
        "axes": map_axes,
        "ticks": list(map_ticks),
        "marks": list(marks),
        "titles": titles,
        "captions": list(captions),
        "start": start,
    }
    page = files(__package__).joinpath("explorer.html").read_text(encoding="utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return HTML(page.replace("__ID__", name).replace("__DATA__", text))
