# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Time and memory beside other tools
#
# A tangent kernel can be had in several ways: by writing out the Jacobian of every point, by the structure of the network's layers, or
# by products alone. Several tools do one or the other. How long do they take, how much memory do they need, and how do both grow with
# the number of points $N$, outputs $C$, parameters $P$ and positions $T$?
#
# Everything on this page was measured in one run of `make bench`, on one machine, with all tools side by side, and every answer was
# compared with a reference before its time counted. {numref}`fig-bm-answer` shows single cases,
# {numref}`fig-bm-kernel` and {numref}`fig-bm-product` how time and memory grow. Where a peer does better is said in a section of its own.
#
# To measure on your own machine, type `make bench`. It takes some minutes; `make bench STORE=1` also replaces the numbers of this page.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from matplotlib.lines import Line2D

from entk_helpers.plotting import COLOURS, table, use_style

use_style()
run = json.loads(Path("data/10_benchmarks/bench.json").read_text())
sections = run["sections"]
growths = [section for section in sections if section["growth"]]


# %% tags=["hide-input"]
def of(key):
    """The sections with this letter."""
    return [section for section in sections if section["key"] == key]


def seconds(s):
    """Time to three digits, in s or ms."""
    if s >= 100:
        return f"{s:,.0f} s"
    return f"{s:.3g} s" if s >= 1 else f"{1e3 * s:.3g} ms"


def memory(mb):
    return (
        "–"
        if mb is None
        else f"{mb / 1e3:.2g} GB"
        if mb >= 1e3
        else f"{mb:.0f} MB"
    )


OURS = (
    "empirical_ntk", "quadratic_ntk", "gram_eigenpairs", "jacobian +",
    "top_eigenpairs", "NTKOperator", "LogitKernel", "side by side",
)  # fmt: skip


def is_ours(row):
    return row["name"].startswith(OURS)


# %% [markdown]
# The machine and the versions. *Load* is the number of processes that wanted a core when the run began: where it is more than a little above zero, other
# programs were at work, and times are too long, while CPU times suffer less.

# %% tags=["hide-input"]
versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items())
table(
    ["this run", "on"],
    [
        ("date (UTC)", run["date"]),
        ("processor", f"{run['processor']}, {run['cores']} cores"),
        ("GPU", run["gpu"] or "none"),
        ("load at the start", run["load"]),
        ("system", run["system"]),
        ("git tree of the package", run["tree"]),
        ("versions", versions),
        ("runs of each contender", f"{run['settings']['repeats']} or fewer"),
    ],
)

# %% [markdown]
# No time counts for a wrong answer. The next cell looks at every row of the run.

# %% tags=["nbval-check-output"]
rows = [row for section in sections for row in section["rows"]]
judged = [row for row in rows if row["tolerance"] is not None]
agree = all(row["difference"] <= row["tolerance"] for row in judged)
on_gpu = [row for row in rows if row["device"] != "cpu"]
print(f"every answer within its tolerance of the reference: {agree}")
print(f"rows measured on a GPU: {len(on_gpu)}")

# %% [markdown]
# **No GPU has been measured yet.** Where CUDA is there, the growth below is measured on the GPU too, for the contenders in PyTorch;
# that code has not been run on one.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-bm-answer", "caption": "**One case each: time, on a logarithmic axis.** Blue: this package. Grey: other ways to the same answer. Hollow: extrapolated, not measured. Each group is one section of the run, with its letter; the tables below say what exactly is computed, and with how many threads. Times are medians of wall-clock time."}, "image": {"alt": "Groups of horizontal dots on a logarithmic time axis, one group for each task. In each group blue dots for this package stand beside grey dots for other tools."}}
PICTURED = {
    "a": ["(a) MLP kernels, tensor by tensor"],
    "b": ["(b) 100 eigenpairs, TMS"],
    "c": ["(c) 25 eigenpairs, matrix-free"],
    "d": ["(d) Transformer, mean output", "(d) Transformer, class-averaged"],
    "e": ["(e) product, Gemma 3 270M"],
}


def pictured(row):
    """Not a fixed number of steps, and of the dense eigh only the full size."""
    part = row["name"].startswith("dense eigh") and row["runs"]
    return "fixed" not in row["name"] and not part


def largest_common(task):
    """The growth with N, at the largest size that all contenders finished."""
    section = next(s for s in growths if s["title"].startswith(task))
    names = {(row["name"], row["device"]) for row in section["rows"]}
    sizes = [row["size"] for row in section["rows"]]
    size = max(n for n in sizes if sizes.count(n) == len(names))
    members = [row for row in section["rows"] if row["size"] == size]
    return (
        f"(f) {task}{' kernel' * task.startswith('c')}, N = {size:,}",
        members,
    )


shown = [
    (title, section)
    for key, titles in PICTURED.items()
    for title, section in zip(titles, of(key), strict=False)
]
groups = [
    (title, [row for row in section["rows"] if pictured(row)])
    for title, section in shown
]
groups += [largest_common("class-averaged"), largest_common("20 products")]
lines = []
for title, members in groups:
    lines += [
        (title, None),
        *((row["name"], row) for row in members),
        ("", None),
    ]
fig, ax = plt.subplots(figsize=(8.2, 0.24 * len(lines) + 0.6))
for i, (_, row) in enumerate(lines):
    if row is not None:
        colour = COLOURS["trained" if is_ours(row) else "untrained"]
        ax.plot([0, row["seconds"]], [i, i], color=colour, lw=0.8, alpha=0.4)
        face = colour if row["runs"] else "white"
        ax.plot(row["seconds"], i, "o", ms=6, color=colour, mfc=face)
        ax.annotate(seconds(row["seconds"]), (row["seconds"], i), xytext=(7, 0),
                    textcoords="offset points", va="center", fontsize="small")  # fmt: skip
ax.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize="small")
for label, (_, row) in zip(ax.get_yticklabels(), lines, strict=True):
    if row is None:
        label.set_fontweight("bold")
slowest = max((r["seconds"] for _, r in lines if r), default=1)
ax.set(xscale="log", xlabel="seconds", xlim=(1e-3, 8 * slowest))
ax.set_ylim(len(lines) - 1.5, -0.7)
ax.tick_params(axis="y", length=0)
plt.show()

# %% [markdown]
# ## How it is measured
#
# - Each contender runs in a process of its own. It warms up on a small case; neural-tangents on the same case, since JAX compiles. The
#   time to compile is not counted.
# - *Time* is the median of several runs by the clock, *CPU* the median of the CPU time of all threads.
# - *Memory* is the peak beyond what the inputs and the libraries take.
# - *Difference* is the largest from the reference, relative to the reference's largest entry. A contender whose answer differs by
#   more than its tolerance fails the whole run.
# - One thread, except in (b). The structured derivatives of neural-tangents {cite:p}`novak2022` work only with an old version of JAX,
#   so it runs in an environment of its own. Where that cannot be made, its rows are missing.


# %% tags=["hide-input"]
def show(key):
    """A table for each section with this letter."""
    for section in of(key):
        n = section["threads"]
        caption = f"**{section['title']}** ({n} thread{'s' * (n > 1)})"
        body = [
            (
                f"**{row['name']}**" if is_ours(row) else row["name"],
                seconds(row["seconds"]),
                "–"
                if row["cpu_seconds"] is None
                else seconds(row["cpu_seconds"]),
                memory(row["peak_mb"]),
                "–"
                if row["difference"] is None
                else f"{row['difference']:.0e}",
                row["note"],
            )
            for row in section["rows"]
        ]
        header = ["contender", "time", "CPU", "memory", "difference", ""]
        display(Markdown(caption + "\n\n" + table(header, body).data))
    if not of(key):
        print(f"({key}) was left out of this run.")


# %% [markdown]
# ## (a) The kernels of an MLP, tensor by tensor
#
# The network of modular addition has two tensors and squared activations. Its kernels have a closed form, `quadratic_ntk`; every other way finds the
# same numbers without knowing it.

# %% tags=["hide-input"]
show("a")

# %% [markdown]
# ## (b) The spectrum of toy models of superposition
#
# The flattened kernel has $NC$ rows but a rank of at most $P$. `gram_eigenpairs` diagonalises the smaller side. A dense `eigh` of the whole
# matrix is too long to wait for; its row for the full size is an extrapolation, marked as one, by at most $n^3$.

# %% tags=["hide-input"]
show("b")

# %% [markdown]
# ## (c) Eigenpairs without the matrix
#
# All three use the same operator. A fixed number of Lanczos steps is quick and says nothing of its error, which the last column
# shows: it is in the table as a warning, not as a contender.

# %% tags=["hide-input"]
show("c")

# %% [markdown]
# ## (d) The Transformer of modular addition

# %% tags=["hide-input"]
show("d")

# %% [markdown]
# ## (e) Logit kernels of language models
#
# `LogitKernel` re-runs only what comes after the layer in question; the other way runs the whole model. How much that saves depends on
# the layer: most for the last one, least for the first.

# %% tags=["hide-input"]
show("e")

# %% [markdown]
# ## (f) Growth
#
# A ratio at one size says little about another. So one of $N$, $C$, $P$ (by the width) and $T$ is doubled again and again while the others stay.
#
# Two tasks. The first is the class-averaged kernel: by this package, by the Jacobian written out
# (`vmap(jacrev)`), and by neural-tangents' structured derivatives. The second is what an iterative eigensolver does: twenty products with the
# flattened kernel, one after another, with the set-up counted. There, curvlinops is the peer: its Jacobian operator applied to its transposed one,
# all points in one batch, its check for determinism left out, so that nothing it does twice is held against it. The *dense kernel* is
# the flattened matrix written out once, and then multiplied.
#
# At each size the answers are compared with gradients in float64, taken output by output, at six points. A contender
# is not taken further after a size that took it more than a second or a gigabyte; its line ends there.
#
# **Exponents.** Operation counts say what to expect for large sizes:
#
# | way | time | memory |
# |---|---|---|
# | Jacobian written out, class-averaged kernel | $N^2 C P$ | $N C P$ |
# | structured, class-averaged kernel, layers of width $h$ | $N C P + N^2 C h$ | $N C h + N^2$ |
# | flattened kernel written out | $N^2 C^2 P$ | $N C P + N^2 C^2$ |
# | one product, matrix-free | $N P$ | $N h + P$ |
#
# With $T$ positions, the structured way has a choice for each tensor: pairs of positions, $N^2 T^2$, or gradients written out, $N C T P$, whichever is less. So
# its advantage shrinks as $T$ grows. Attention itself takes $T^2$.
#
# The fitted exponent is a least-squares line through the logarithms of the last three sizes. Before that, what a tiny network takes is taken off, as
# the fixed cost; where one of the three values is less than half as much again as that cost, no exponent is given. CPU time is fitted, which other programs
# hardly disturb. Beside it stands, in parentheses, the same fit through the full count at the same sizes. A count
# weighs all multiplications alike, while large products run several times faster than small ones: a difference of a few tenths is to be expected.

# %% tags=["hide-input"]
STYLES = {
    "vmap(jacrev) + einsum": ("Jacobian written out", "#8C8C8C", "o"),
    "dense kernel": ("dense kernel", "#8C8C8C", "o"),
    "empirical_ntk": ("empirical_ntk", COLOURS["trained"], "s"),
    "NTKOperator": ("NTKOperator", COLOURS["trained"], "s"),
    "neural-tangents": ("neural-tangents", COLOURS["dropped"], "^"),
    "curvlinops": ("curvlinops", COLOURS["control"], "^"),
}
SYMBOLS = {
    "N": "points N",
    "C": "outputs C",
    "P": "parameters P",
    "T": "positions T",
}


def series(section):
    """{(name, device): rows in the order of their size}."""
    found = {}
    for row in section["rows"]:
        found.setdefault((row["name"], row["device"]), []).append(row)
    return found


def took(row):
    """What is fitted: CPU time, or time on a GPU."""
    return row["cpu_seconds" if row["device"] == "cpu" else "seconds"]


def task(start):
    return [s for s in growths if s["title"].startswith(start)]


def draw(chosen):
    """Time above, memory below; one column a variable."""
    fig, axes = plt.subplots(
        2, 4, figsize=(8.6, 4.8), sharey="row", squeeze=False
    )
    seen = {}
    for column, section in zip(axes.T, chosen, strict=True):
        for (name, device), measured in series(section).items():
            label, colour, marker = STYLES[name]
            style = {"color": colour, "marker": marker, "ms": 3.5, "lw": 1.3}
            style |= {"ls": "-" if device == "cpu" else "--"}
            label += "" if device == "cpu" else f" ({device})"
            sizes = [row["size"] for row in measured]
            column[0].plot(sizes, [took(row) for row in measured], **style)
            column[1].plot(
                sizes, [max(row["peak_mb"], 0.3) for row in measured], **style
            )
            seen[label] = Line2D([], [], **style)
        for ax in column:
            ax.set(xscale="log", yscale="log")
            ax.tick_params(labelsize="small")
            ax.minorticks_off()
        column[1].set_xlabel(SYMBOLS[section["growth"][0]["symbol"]])
    axes[0, 0].set_ylabel("CPU time, s")
    axes[1, 0].set_ylabel("peak memory, MB")
    fig.legend(
        seen.values(),
        seen,
        loc="outside upper center",
        ncols=4,
        fontsize="small",
    )
    return fig


def exponents(chosen):
    """Fitted exponents, and in parentheses those of the counts."""

    def power(symbol, fitted, counted):
        if fitted is None:
            return "–"
        return f"${symbol}^{{{fitted:.2f}}}$ ({counted:.2f})"

    return table(
        ["by", "contender", "time", "memory", "stopped after"],
        [
            (
                f"${g['symbol']}$",
                STYLES[g["name"]][0]
                + ("" if g["device"] == "cpu" else f" ({g['device']})"),
                power(g["symbol"], g["time"], g["time_counted"]),
                power(g["symbol"], g["memory"], g["memory_counted"]),
                "" if g["stopped_after"] is None else f"{g['stopped_after']:,}",
            )
            for section in chosen
            for g in section["growth"]
        ],
    )


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-bm-kernel", "caption": "**The class-averaged kernel: time and memory as one size grows.** Columns: points, outputs and parameters of an MLP with tanh, and positions of a layer of attention and tanh. Both axes are logarithmic, so that the slope is the exponent. A line that ends early was stopped: its last size took more than a second or a gigabyte."}, "image": {"alt": "Eight panels with logarithmic axes. In the three columns of the MLP the grey line of the Jacobian lies far above the lines of empirical_ntk and neural-tangents, in time and in memory, and ends early. In the column of positions the lines lie close together."}}
kernels = task("class-averaged")
draw(kernels)
plt.show()

# %% tags=["hide-input"]
exponents(kernels)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-bm-product", "caption": "**Twenty products with the flattened kernel, set-up included.** As in {numref}`fig-bm-kernel`. The dense kernel has $(NC)^2$ entries and is stopped early in points and outputs; the matrix-free ways hold little more than the activations."}, "image": {"alt": "Eight panels with logarithmic axes. The grey line of the dense kernel rises steeply and ends early in points and outputs. The lines of NTKOperator and curvlinops run close together, far below it in memory."}}
products = task("20 products")
draw(products)
plt.show()

# %% tags=["hide-input"]
exponents(products)

# %% [markdown]
# ## Where a peer is better
#
# The largest size that both finished: the peer's CPU time and memory as multiples of ours. **Bold numbers below 1 are where the peer is better.**


# %% tags=["hide-input"]
def beside():
    """(section, symbol, size, peer, time over ours, memory over ours)."""
    for section in growths:
        measured = series(section)
        (mine,) = (
            k for k in measured if k[1] == "cpu" and is_ours({"name": k[0]})
        )
        own = {row["size"]: row for row in measured[mine]}
        for (name, device), theirs in measured.items():
            common = [row for row in theirs if row["size"] in own]
            if (name, device) == mine or device != "cpu" or not common:
                continue
            last, ours = common[-1], own[common[-1]["size"]]
            symbol = section["growth"][0]["symbol"]
            yield (
                section, symbol, last["size"], name,
                took(last) / took(ours), last["peak_mb"] / max(ours["peak_mb"], 1),
            )  # fmt: skip


def ratio(value):
    return f"**{value:.2f}**" if value < 1 else f"{value:.3g}"


ratios = list(beside())
table(
    ["task", "at", "peer", "time", "memory"],
    [
        (
            "kernel" if section in kernels else "20 products",
            f"${symbol} = {size:,}$".replace(",", "{,}"),
            STYLES[name][0],
            ratio(time),
            ratio(space),
        )
        for section, symbol, size, name, time, space in ratios
    ],
)

# %% [markdown]
# Five things follow. The next cell fails should a new run contradict the first four.
#
# - **On the MLP the structure is worth a factor of more than ten** over the Jacobian written out, in time and in memory, and the factor grows.
# - **neural-tangents has it too, and is better at small kernels and with positions.** It compiles the whole computation, so its fixed cost
#   is a fraction of ours. At the largest number of positions it needs less time than we do; in memory it is ahead nearly everywhere.
# - **With many positions and few parameters, structure buys nothing.** The Jacobian of such a model is small, and to write it out is the best that can be
#   done. Our kernel does so too, tensor by tensor, and takes about as long as the plain recipe.
# - **A small kernel is best written out.** With positions, $NC$ stays small here: to write the flattened kernel out once and multiply with it takes less time than twenty
#   products without it, though more memory.
# - **curvlinops does the same products in about the same memory**, and much more with them: Hessians, Fisher matrices, K-FAC and its inverse, traces, diagonals, spectral
#   densities. For large $P$ or $T$, a product of either costs the same passes through the network, and the times come close.

# %% tags=["nbval-check-output"]
for section, symbol, size, name, time, space in ratios:
    at = (symbol, size, name, time, space)
    if section in kernels and "jacrev" in name:
        assert min(time, space) > 10 if symbol != "T" else 0.25 < time < 4, at
    if section in kernels and "neural" in name and symbol == "T":
        assert max(time, space) < 1, at
    if section in products and name == "dense kernel" and symbol == "T":
        assert time < 1 < space, at
for section in kernels[:3]:
    first = {name: rows[0] for (name, _), rows in series(section).items()}
    if "neural-tangents" in first:
        assert took(first["neural-tangents"]) < took(first["empirical_ntk"])
print("what is said of the first four holds in this run")

# %% [markdown]
# What is *not* measured: a GPU; several devices; convolutions; double precision beyond (b) and (d); nngeometry; the time to compile in JAX, which is
# seconds and paid once for each shape. Sizes are those of a laptop. And all of it is one machine: expect other
# ratios, and the same exponents, on another.
#
# ## The peers' features beside ours
#
# What each tool offers, from its documentation and its source. An en dash means that we found nothing of the kind in either.
#
# | | vmapped `jacrev` | curvlinops | neural-tangents | nngeometry | this package |
# |---|---|---|---|---|---|
# | written for | PyTorch | PyTorch | JAX, an old version | PyTorch | PyTorch |
# | models | what `torch.func` can transform | what `torch.func` can transform; K-FAC: linear and 2-d convolutional layers | any function in JAX; structured derivatives: not every primitive | modules made of layers on its list | any `nn.Module` with outputs $(N, C)$ |
# | structured products | – | – | yes | linear layers, for inputs without positions | linear operations, embeddings, convolutions; the rest by autograd |
# | which kernels | full, trace, diagonal | products only | full, trace and diagonal over chosen axes | full | full, per class, class-averaged, mean output |
# | layer by layer | by hand | chosen parameters | by hand | chosen layers | `by="tensor"` or `"module"`, all in one pass |
# | matrix-free products | by hand, `jvp` of `vjp` | yes | `empirical_ntk_vp_fn` | yes, with the Fisher matrix | `NTKOperator` |
# | eigenpairs | – | through SciPy's `eigsh`; spectral densities | – | dense `eigh` | `top_eigenpairs`, stopped by each pair's residual |
# | memory | samples in chunks (`vmap`) | batches of data | batches (`nt.batch`) | batches of data | a budget in bytes |
# | several devices | – | – | yes (`nt.batch`) | – | logit kernels only |
# | language models | by hand | by hand | by hand | by hand | `LogitKernel` for Hugging Face causal models |
# | infinite width | – | – | yes, most layers (`nt.stax`) | – | ReLU networks (`relu_ntk`) |
# | other curvature | – | Hessian, Gauss–Newton, Fisher, K-FAC, EK-FAC, inverses, traces | – | Fisher, Hessian, K-FAC, EK-FAC, diagonal | – |
# | source | [tutorial](https://docs.pytorch.org/tutorials/intermediate/neural_tangent_kernels.html), [`torch.func`](https://docs.pytorch.org/docs/stable/func.api.html) | [documentation](https://curvlinops.readthedocs.io/en/latest/linops.html), version 3.0.1; {cite:t}`dangel2025` | [documentation](https://neural-tangents.readthedocs.io/en/latest/), version 0.6.5; {cite:t}`novak2020` | [repository](https://github.com/tfjgeorge/nngeometry), [documentation](https://nngeometry.readthedocs.io); {cite:t}`george2021` | [the method](02_method.ipynb) |
#
# Two remarks. neural-tangents was archived by its owner in May 2025; its structured derivatives fail with newer versions of JAX, but we know of nothing else that computes
# the kernels of infinitely wide networks for as many kinds of layers. And if you want curvature other than
# the tangent kernel (Hessians, Fisher matrices, their inverses), this package is not what you need: curvlinops or nngeometry is.
