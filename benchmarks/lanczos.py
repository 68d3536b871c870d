"""The top of a flat spectrum without the matrix: block Lanczos, ARPACK, and a fixed 50 steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from entk_helpers import NTKOperator, top_eigenpairs

from . import mlp
from .measure import Contender, Measure, Outcome, difference
from .report import Row, Section, Target

KEY = "c"
TOL = 1e-4  # residual of each pair relative to its eigenvalue, for all who take a tolerance
TOLERANCE = 2 * TOL
STEPS = 50

Pairs = tuple[Tensor, Tensor]


class Problem:
    """The operator and how many pairs to find; the products of the last answer are counted."""

    def __init__(self, k: int, **size: int):
        at = mlp.problem(**size)
        self.operator, self.k = NTKOperator(at.model, at.x), k


def ours(at: Problem) -> Pairs:
    at.operator.matvecs = 0
    pairs = top_eigenpairs(at.operator, at.k, tol=TOL)
    return pairs.values, pairs.vectors


def arpack(at: Problem, tol: float = TOL) -> Pairs:
    """SciPy's eigsh: ARPACK, implicitly restarted, on one vector at a time."""
    at.operator.matvecs = 0

    def multiply(v: np.ndarray) -> np.ndarray:
        return (at.operator @ torch.from_numpy(np.ascontiguousarray(v.ravel()))).numpy()

    n = at.operator.shape[0]
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    A = LinearOperator((n, n), matvec=multiply, dtype=np.float32)
    values, vectors = eigsh(A, at.k, tol=tol, v0=start)
    return torch.from_numpy(values.copy()).flip(0), torch.from_numpy(vectors.copy()).flip(1)


def fixed_steps(at: Problem) -> Pairs:
    """Lanczos from one vector for a fixed number of steps, with no look at a residual."""
    at.operator.matvecs = 0
    n = at.operator.shape[0]
    v = torch.randn(n, generator=torch.Generator().manual_seed(0))
    basis: list[Tensor] = [v / v.norm()]
    images: list[Tensor] = []
    for _ in range(min(STEPS, n)):
        images.append(at.operator @ basis[-1])
        Q = torch.stack(basis, dim=1)
        v = images[-1] - Q @ (Q.T @ images[-1])
        v = v - Q @ (Q.T @ v)
        basis.append(v / v.norm())
    H = (Q.T @ torch.stack(images, dim=1)).double()
    values, S = torch.linalg.eigh((H + H.T) / 2)
    return values.flip(0)[: at.k].float(), Q @ S.flip(1)[:, : at.k].float()


def facts(at: Problem, answer: Pairs) -> dict[str, Any]:
    """Eigenvalues, products, and the worst residual, measured here with the operator."""
    products, (values, vectors) = at.operator.matvecs, answer
    worst = ((at.operator @ vectors - vectors * values).norm(dim=0) / values).max().item()
    return {"values": values.numpy(), "products": products, "worst": worst, "n": len(vectors)}


def contenders(smoke: bool = False) -> list[Contender]:
    """Reference first."""
    ways = {
        "scipy eigsh (ARPACK)": arpack,
        "top_eigenpairs": ours,
        f"Lanczos, fixed {STEPS} steps": fixed_steps,
    }
    size = {"k": 5, "p": 5, "width": 16} if smoke else {"k": 25} | mlp.SIZE
    small = {"k": 2, "p": 5, "width": 8}
    return [Contender(name, Problem, way, facts, size, small) for name, way in ways.items()]


def run(measure: Measure, threads: int, *, smoke: bool = False, **_: bool) -> list[Section]:
    """Measure all contenders and compare their eigenvalues with the reference's."""
    field = contenders(smoke)
    outcomes = [measure(contender) for contender in field]
    reference, table = outcomes[0], rows(field, outcomes, TOLERANCE)
    n, k = reference.facts["n"], len(reference.facts["values"])
    title = f"top {k} eigenpairs, matrix-free, of the {n:,} x {n:,} kernel of the MLP of (a)"
    worst = outcomes[1].facts["worst"]
    aim = Target(f"every residual below {TOL:.0e} of its eigenvalue", f"{worst:.1e}", worst <= TOL)
    return [Section(KEY, title, threads, table, [aim])]


def rows(field: list[Contender], outcomes: list[Outcome], tolerance: float) -> list[Row]:
    """What each contender took, how far off its eigenvalues are, its products and residuals."""
    reference, table = outcomes[0], []
    for contender, out in zip(field, outcomes, strict=True):
        last = abs(out.facts["values"][-1] / reference.facts["values"][-1] - 1)
        unchecked = contender.solve is fixed_steps  # here to show its error
        table.append(Row(
            contender.name, out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb,
            reference.seconds / out.seconds,
            difference(out.facts["values"], reference.facts["values"]),
            None if unchecked else tolerance,
            f"{out.facts['products']} products, worst residual {out.facts['worst']:.1e}, "
            f"last eigenvalue off by {last:.1e}",
        ))  # fmt: skip
    return table
