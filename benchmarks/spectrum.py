"""The flattened (N*C, N*C) spectrum of toy models of superposition: smaller side against eigh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from entk_helpers import gram_eigenpairs, jacobian
from entk_helpers.spectrum import Eigenpairs
from entk_helpers.testbeds import tms

from .measure import Contender, Measure, Outcome, difference
from .report import Row, Section, Target

KEY = "b"
TOLERANCE = 1e-10  # of eigenvalues and residuals, relative to the largest eigenvalue
# Hidden units and sparsity: for P = 550 and P = 2050 the case of the paper's Figure 1 with the
# most open gates; and, with P = 2050, one that it does not show, where most rows are at work.
CASES = ((10, 0.3), (40, 0.9), (40, 0.3))
_SMALL = {"m": 2, "sparsity": 0.3, "n": 6, "n_points": 10, "steps": 2, "k": 3}


@dataclass(frozen=True)
class Problem:
    """A trained model, its data, its Jacobian J as a matrix, and how many pairs to find."""

    model: nn.Module
    x: Tensor
    J: Tensor
    k: int
    K: Tensor | None = None


def problem(*, k: int, rows: int | None = None, **settings: Any) -> Problem:
    """Train briefly; with `rows`, so many random rows of J and their kernel K in float64."""
    result = tms.train(seed=0, **settings)
    J = jacobian(result.model, result.inputs).flatten(0, 1)
    if rows is None:
        return Problem(result.model, result.inputs, J, k)
    chosen = torch.randperm(len(J), generator=torch.Generator().manual_seed(0))[:rows]
    J = J[chosen].double()
    return Problem(result.model, result.inputs, J, k, J @ J.T)


def smaller_side(at: Problem) -> Eigenpairs:
    return gram_eigenpairs(at.J, at.k)


def from_model(at: Problem) -> Eigenpairs:
    return gram_eigenpairs(jacobian(at.model, at.x), at.k)


def dense_eigh(at: Problem) -> tuple[Tensor, Tensor]:
    return torch.linalg.eigh(at.K)


def smaller_side_facts(at: Problem, _: Eigenpairs) -> dict[str, Any]:
    """The worst residual in float64, worked out here and not taken from the answer."""
    J = at.J.double()
    pairs = gram_eigenpairs(J, at.k)
    gap = J @ (J.T @ pairs.vectors) - pairs.vectors * pairs.values
    worst = gap.norm(dim=0).max() / pairs.values[0]
    return {"residual": worst.item(), "open": int(at.J.any(1).sum()), "shape": tuple(at.J.shape)}


def dense_facts(at: Problem, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """How far `gram_eigenpairs` of the same rows is from the dense eigenvalues."""
    top = answer[0].flip(0)[: at.k].numpy()
    return {"difference": difference(gram_eigenpairs(at.J, at.k).values.numpy(), top)}


def contenders(size: dict[str, Any], dense_sizes: list[int]) -> list[Contender]:
    """This package without and with the Jacobian, then dense `eigh` of growing matrices."""
    k = size["k"]
    ways = {f"gram_eigenpairs(J, k={k})": smaller_side, "jacobian + gram_eigenpairs": from_model}
    ours = [
        Contender(name, problem, way, smaller_side_facts, size, _SMALL)
        for name, way in ways.items()
    ]
    theirs = [
        Contender(
            f"dense eigh, n = {n:,}", problem, dense_eigh, dense_facts,
            size | {"rows": n}, _SMALL | {"rows": 40},
        )
        for n in dense_sizes
    ]  # fmt: skip
    return ours + theirs


def extrapolate(sizes: list[int], seconds: list[float], n: int) -> tuple[float, float]:
    """Time at n, and the exponent fitted to the measured times (least squares of logarithms).

    `eigh` takes of order n^3 operations: a steeper fit is noise or caches that overflow, and
    n^3 through the middle of the points is used instead, so that no speed-up comes from it.
    """
    log_n, log_t = np.log(sizes), np.log(seconds)
    slope = float(np.polyfit(log_n, log_t, 1)[0])
    used = min(slope, 3.0)
    return float(np.exp(log_t.mean() + used * (np.log(n) - log_n.mean()))), slope


def run(
    measure: Measure, threads: int, *, smoke: bool = False, full: bool = False, dense: bool = False
) -> Iterator[Section]:
    """Measure a section for each case."""
    if smoke:
        size = {"m": 3, "sparsity": 0.3, "n": 8, "n_points": 40, "steps": 10, "k": 5}
        yield _section(measure, threads, size, [40, 80, 160], real=dense, smoke=True)
        return
    sizes = [1000, 2000, 4000, *([8000] if full else [])]
    shape = {"n": 50, "n_points": 500, "steps": 300, "k": 100}
    for m, sparsity in CASES:
        size = {"m": m, "sparsity": sparsity} | shape
        yield _section(measure, threads, size, sizes, real=dense)


def _section(
    measure: Measure, threads: int, size: dict[str, Any], sizes: list[int], *,
    real: bool, smoke: bool = False,
) -> Section:  # fmt: skip
    n = size["n_points"] * size["n"]
    measured = [*sizes, *([n] if real else [])]
    field = contenders(size, measured)
    outcomes = [measure(contender) for contender in field]
    (spectrum, whole), eighs = outcomes[:2], outcomes[2:]
    rows = [
        Row(
            contender.name, out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb, None,
            out.facts["difference"], TOLERANCE, "gram_eigenpairs on the same rows",
        )
        for contender, out in zip(field[2:], eighs, strict=True)
    ]  # fmt: skip
    if real:
        baseline = eighs[-1].seconds
    else:
        baseline, slope = extrapolate(sizes, [min(out.runs) for out in eighs], n)
        peak = eighs[-1].peak_mb * (n / sizes[-1]) ** 2
        capped = f"n^3 (fitted: n^{slope:.2f})" if slope > 3 else f"n^{slope:.2f}, fitted"
        note = f"EXTRAPOLATED: time by {capped} to the fastest runs, memory by n^2"
        rows.append(Row(f"dense eigh, n = {n:,}", baseline, 0, None, peak, 1.0, note=note))
    ours = [
        Row(
            contender.name, out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb,
            baseline / out.seconds, out.facts["residual"], TOLERANCE, "worst residual, float64",
        )
        for contender, out in zip(field[:2], outcomes[:2], strict=True)
    ]  # fmt: skip
    title = (
        f"{size['k']} eigenpairs of the flattened {n:,} x {n:,} kernel, TMS with m = {size['m']}, "
        f"S = {size['sparsity']}, P = {spectrum.facts['shape'][1]:,}; "
        f"{spectrum.facts['open']:,} rows are not zero"
    )
    return Section(KEY, title, threads, ours + rows, _targets(spectrum, whole, baseline, smoke))


def _targets(spectrum: Outcome, whole: Outcome, baseline: float, smoke: bool) -> list[Target]:
    ratio, residual = baseline / spectrum.seconds, spectrum.facts["residual"]
    beside = f"{spectrum.seconds:.2f} s ({whole.seconds:.2f} s with the Jacobian)"
    return [
        Target("3 s or less", beside, None if smoke else spectrum.seconds <= 3),
        Target("300x under dense eigh", f"{ratio:,.0f}x", None if smoke else ratio >= 300),
        Target("residuals below 1e-10", f"{residual:.1e}", residual < TOLERANCE),
    ]
