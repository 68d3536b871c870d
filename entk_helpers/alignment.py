"""How eigenvectors and features line up: cosines, subspace overlaps, one-to-one matches.

Arrays only: nothing here knows a model. Every score has a level that chance reaches; it
is stated beside the score, or should be measured with random vectors beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .inputs import require_finite


def orthonormalise(F: Float[Tensor, "N m"], *, rtol: float = 1e-6) -> Float[Tensor, "N r"]:
    """Return an orthonormal basis of the span of the columns, by singular vectors.

    Directions with a singular value below `rtol` times the largest are dropped, so r <= m.
    Raises ValueError for columns that are all zero.
    """
    require_finite(F, "F")
    U, s, _ = torch.linalg.svd(F, full_matrices=False)
    if s.numel() == 0 or s[0] == 0:
        raise ValueError(
            f"F, of shape {tuple(F.shape)}, spans nothing; pass at least one nonzero column"
        )
    return U[:, s > rtol * s[0]]


def subspace_overlap(Q: Float[Tensor, "N q"], F: Float[Tensor, "N m"]) -> float:
    """Return ||Q^T F||_F^2 of the two column spans, from 0 to min(q, m).

    Both are orthonormalised first. Two random subspaces overlap by q m / N on average.
    """
    _same_points(Q, F, "Q", "F")
    return float((orthonormalise(Q).T @ orthonormalise(F)).square().sum())


def alignment(
    vectors: Float[Tensor, "N k"], features: Float[Tensor, "N F"]
) -> Float[Tensor, "k F"]:
    """Return |cos| between each vector and each feature, uncentred.

    Two random directions have a mean |cos| of sqrt(2 / (pi N)). Raises ValueError for a
    zero column, which has no direction.
    """
    _same_points(vectors, features, "vectors", "features")
    return (_unit(vectors, "vectors").T @ _unit(features, "features")).abs()


@dataclass(frozen=True)
class Match:
    """One-to-one pairs of rows and columns of a score matrix, rows in ascending order."""

    rows: Int[Tensor, " r"]
    columns: Int[Tensor, " r"]
    scores: Float[Tensor, " r"]


def match(A: Float[Tensor, "k F"]) -> Match:
    """Pair rows with columns one to one so that the sum of scores is largest.

    Solves the assignment problem; min(k, F) pairs. A matrix of noise matches well above
    its own mean, so compare with the match of a random basis.
    """
    require_finite(A, "A")
    rows, columns = linear_sum_assignment(A.cpu().numpy(), maximize=True)
    r, c = torch.as_tensor(rows), torch.as_tensor(columns)
    return Match(r, c, A[r.to(A.device), c.to(A.device)])


def family_alignment(
    vectors: Float[Tensor, "N k"], families: Mapping[str, Float[Tensor, "N _"]]
) -> dict[str, Float[Tensor, " k"]]:
    """Return, for each family, the norm of each vector's projection on the family's span.

    A family is a set of features that are one up to a phase (cos and sin of a frequency).
    The score is 1 for a vector within the span, whatever its phase; a random vector
    reaches about sqrt(m / N) for a family of m dimensions.
    """
    if not families:
        raise ValueError("families is empty; pass at least one name with its (N, m) features")
    unit = _unit(vectors, "vectors")
    for name, features in families.items():
        _same_points(vectors, features, "vectors", f"families[{name!r}]")
    return {name: (orthonormalise(f).T @ unit).norm(dim=0) for name, f in families.items()}


def block_energy(vectors: Float[Tensor, "NC k"], n_classes: int) -> Float[Tensor, "k C"]:
    """Return the share of each eigenvector of a flattened kernel that lies in each class.

    Row n*C + c is point n, class c, as everywhere; the shares of a vector add up to one.
    A random vector has 1 / C in each.
    """
    rows = len(vectors)
    if n_classes < 1 or rows % n_classes:
        raise ValueError(f"n_classes={n_classes} does not divide the {rows} rows of vectors")
    energy = _unit(vectors, "vectors").square().reshape(rows // n_classes, n_classes, -1)
    return energy.sum(0).T


def kernel_alignment(
    K: Float[Tensor, "N N"], K2: Float[Tensor, "N N"], *, centred: bool = True
) -> float:
    """Return the cosine between two kernels as vectors, <K, K2>_F / (||K||_F ||K2||_F).

    Centred (both kernels' rows and columns made to sum to zero), this is the centred kernel
    alignment, or CKA, of Cortes et al. 2012; uncentred, that of Cristianini et al. 2001. It is
    1 for kernels that are multiples of each other and does not fall below 0 for positive
    semi-definite ones. Large kernels of few dimensions reach high values by chance: compare
    with shuffled points. Raises ValueError for kernels that are not the same square, or zero.
    """
    K, K2 = _kernel(K, "K", centred), _kernel(K2, "K2", centred)
    if K.shape != K2.shape:
        raise ValueError(f"K {tuple(K.shape)} and K2 {tuple(K2.shape)} must have the same points")
    return float((K * K2).sum() / (K.norm() * K2.norm()))


def kernel_target_alignment(
    K: Float[Tensor, "N N"], targets: Float[Tensor, "N C"], *, centred: bool = True
) -> float:
    """Return `kernel_alignment` of K with the kernel of the targets, Y Y^T.

    1 if the kernel were the targets' own; for C balanced classes as one-hot vectors, centred,
    the identity matrix reaches sqrt((C - 1) / (N - 1)).
    """
    if targets.dim() != 2 or len(targets) != len(K):
        raise ValueError(
            f"targets must have shape ({len(K)}, C), one row a point, got {tuple(targets.shape)}"
        )
    targets = require_finite(targets, "targets").to(K.device).double()
    if (targets == (targets[:1] if centred else 0)).all():
        raise ValueError("targets is the same for all points; there is nothing to align with")
    return kernel_alignment(K, targets @ targets.T, centred=centred)


def kernel_drift(K: Tensor, K0: Tensor) -> float:
    """Return ||K - K0||_F / ||K0||_F: how far a kernel of any shape has moved from K0."""
    if K.shape != K0.shape:
        raise ValueError(f"K {tuple(K.shape)} and K0 {tuple(K0.shape)} must have the same shape")
    K, K0 = (require_finite(k, name).detach().double() for k, name in ((K, "K"), (K0, "K0")))
    if not K0.any():
        raise ValueError("K0 is zero; a drift is relative to a kernel that is not")
    return float((K - K0).norm() / K0.norm())


def _kernel(K: Tensor, name: str, centred: bool) -> Tensor:
    if K.dim() != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"{name} must be a square matrix, got {tuple(K.shape)}")
    K = require_finite(K, name).detach().double()
    before = K.norm()
    if centred:
        K = K - K.mean(0)
        K = K - K.mean(1, keepdim=True)
    if K.norm() <= 1e-12 * before:
        raise ValueError(f"{name} is zero{' after centring' if centred else ''}")
    return K


def _unit(vectors: Tensor, name: str) -> Tensor:
    norms = require_finite(vectors, name).norm(dim=0)
    if (norms == 0).any():
        where = (norms == 0).nonzero().flatten().tolist()[:5]
        raise ValueError(f"{name}: columns {where} are zero and have no direction; leave them out")
    return vectors / norms


def _same_points(a: Tensor, b: Tensor, name_a: str, name_b: str) -> None:
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b):
        raise ValueError(
            f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} must be matrices with the same "
            "number of rows, one a data point"
        )
