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

from .inputs import real, require_finite, require_floats, require_real, whole
from .mode import constant, full_precision, own_defaults


@full_precision()
def orthonormalise(F: Float[Tensor, "N m"], *, rtol: float = 1e-6) -> Float[Tensor, "N r"]:
    """Return an orthonormal basis of the span of the columns, by singular vectors.

    Directions with a singular value below `rtol` times the largest are dropped, so r <= m.
    Raises ValueError for columns that are all zero.

    Examples:
        >>> parallel = torch.tensor([[3.0, 6.0], [4.0, 8.0]])
        >>> orthonormalise(parallel).abs()  # one direction, of norm one
        tensor([[0.6000],
                [0.8000]])
    """
    return _span(F, "F", real(rtol, "rtol"))


def _span(F: Tensor, name: str, rtol: float = 1e-6) -> Tensor:
    require_floats(**{name: F})
    if F.dim() != 2 or not 0 <= rtol < 1:
        raise ValueError(
            f"{name} must be a matrix, got {tuple(F.shape)}, and rtol={rtol} between 0 and 1"
        )
    require_finite(F, name)
    U, s, _ = torch.linalg.svd(F, full_matrices=False)
    if s.numel() == 0 or s[0] == 0:
        raise ValueError(
            f"{name}, of shape {tuple(F.shape)}, spans nothing; pass at least one nonzero column"
        )
    return U[:, s > rtol * s[0]]


@constant()
def subspace_overlap(Q: Float[Tensor, "N q"], F: Float[Tensor, "N m"]) -> float:
    """Return ||Q^T F||_F^2 of the two column spans, from 0 to min(q, m).

    Both are orthonormalised first. Two random subspaces overlap by q m / N on average.

    Examples:
        >>> axes = torch.eye(3)
        >>> round(subspace_overlap(axes[:, :2], axes[:, 1:]), 4)  # two planes share a line
        1.0
    """
    Q, F = _same_points(Q, F, "Q", "F")
    return (_span(Q, "Q").T @ _span(F, "F")).square().sum().item()


@full_precision()
def alignment(
    vectors: Float[Tensor, "N k"], features: Float[Tensor, "N F"]
) -> Float[Tensor, "k F"]:
    """Return |cos| between each vector and each feature, uncentred.

    Two random directions have a mean |cos| of sqrt(2 / (pi N)). Raises ValueError for a
    zero column, which has no direction.

    Examples:
        >>> alignment(torch.tensor([[1.0], [1.0]]), torch.eye(2))  # 45 degrees from both
        tensor([[0.7071, 0.7071]])
    """
    vectors, features = _same_points(vectors, features, "vectors", "features")
    return (_unit(vectors, "vectors").T @ _unit(features, "features")).abs()


@dataclass(frozen=True)
class Match:
    """One-to-one pairs of rows and columns of a score matrix, rows in ascending order."""

    rows: Int[Tensor, " r"]
    columns: Int[Tensor, " r"]
    scores: Float[Tensor, " r"]


@own_defaults()
def match(A: Float[Tensor, "k F"]) -> Match:
    """Pair rows with columns one to one so that the sum of scores is largest.

    Solves the assignment problem; min(k, F) pairs. A matrix of noise matches well above
    its own mean, so compare with the match of a random basis.

    Examples:
        >>> pairs = match(torch.tensor([[0.9, 0.8], [0.7, 0.1]]))
        >>> pairs.columns, pairs.scores  # 0.8 + 0.7 is more than 0.9 + 0.1
        (tensor([1, 0]), tensor([0.8000, 0.7000]))
    """
    require_real(A=A)
    if A.dim() != 2:
        raise ValueError(f"A must have shape (k, F), got {tuple(A.shape)}")
    scores = require_finite(A, "A").detach().double().cpu()
    rows, columns = linear_sum_assignment(scores.resolve_neg().numpy(), maximize=True)
    r, c = torch.as_tensor(rows), torch.as_tensor(columns)
    return Match(r, c, A[r.to(A.device), c.to(A.device)])


@full_precision()
def family_alignment(
    vectors: Float[Tensor, "N k"], families: Mapping[str, Float[Tensor, "N _"]]
) -> dict[str, Float[Tensor, " k"]]:
    """Return, for each family, the norm of each vector's projection on the family's span.

    A family is a set of features that are one up to a phase (cos and sin of a frequency).
    The score is 1 for a vector within the span, whatever its phase; a random vector
    reaches about sqrt(m / N) for a family of m dimensions.

    Examples:
        >>> waves = fourier_families(5)["sum"]
        >>> wave = waves[1] @ torch.tensor([[0.6], [0.8]], dtype=torch.float64)  # of some phase
        >>> found = family_alignment(wave, {"frequency 1": waves[1], "frequency 2": waves[2]})
        >>> {name: round(score.item(), 4) for name, score in found.items()}
        {'frequency 1': 1.0, 'frequency 2': 0.0}
    """
    if not families:
        raise ValueError("families is empty; pass at least one name with its (N, m) features")
    if not isinstance(families, Mapping):
        raise TypeError(f"families must map names to features, not be a {type(families).__name__}")
    scores = {}
    for name, features in families.items():
        label = f"families[{name!r}]"
        some, features = _same_points(vectors, features, "vectors", label)
        scores[name] = (_span(features, label).T @ _unit(some, "vectors")).norm(dim=0)
    return scores


@full_precision()
def block_energy(vectors: Float[Tensor, "NC k"], n_classes: int) -> Float[Tensor, "k C"]:
    """Return the share of each eigenvector of a flattened kernel that lies in each class.

    Row n*C + c is point n, class c, as everywhere; the shares of a vector add up to one.
    A random vector has 1 / C in each.

    Examples:
        >>> vector = torch.tensor([[1.0], [2.0], [1.0], [2.0]])  # two points, two classes
        >>> block_energy(vector, n_classes=2)
        tensor([[0.2000, 0.8000]])
    """
    require_floats(half=True, vectors=vectors)
    n_classes = whole(n_classes, "n_classes")
    if vectors.dim() != 2:
        raise ValueError(f"vectors must have shape (N*C, k), got {tuple(vectors.shape)}")
    rows = len(vectors)
    if n_classes < 1 or rows % n_classes:
        raise ValueError(f"n_classes={n_classes} does not divide the {rows} rows of vectors")
    energy = _unit(vectors, "vectors").square().unflatten(0, (rows // n_classes, n_classes))
    return energy.sum(0).T


@constant()
def kernel_alignment(
    K: Float[Tensor, "N N"], K2: Float[Tensor, "N N"], *, centred: bool = True
) -> float:
    """Return the cosine between two kernels as vectors, <K, K2>_F / (||K||_F ||K2||_F).

    Centred (both kernels' rows and columns made to sum to zero), this is the centred kernel
    alignment, or CKA, of Cortes et al. 2012; uncentred, that of Cristianini et al. 2001. It is
    1 for kernels that are multiples of each other and does not fall below 0 for positive
    semi-definite ones. Large kernels of few dimensions reach high values by chance: compare
    with shuffled points. Raises ValueError for kernels that are not the same square, or zero.

    Examples:
        >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> round(kernel_alignment(K, torch.eye(2), centred=False), 4)  # 4 / sqrt(10 * 2)
        0.8944
        >>> round(kernel_alignment(K, torch.eye(2)), 4)  # centred, they are multiples
        1.0
    """
    K, K2 = _kernel(K, "K", centred), _kernel(K2, "K2", centred)
    if K.shape != K2.shape:
        raise ValueError(f"K {tuple(K.shape)} and K2 {tuple(K2.shape)} must have the same points")
    return float((K * K2).sum() / (K.norm() * K2.norm()))


@constant()
def kernel_target_alignment(
    K: Float[Tensor, "N N"], targets: Float[Tensor, "N C"], *, centred: bool = True
) -> float:
    """Return `kernel_alignment` of K with the kernel of the targets, Y Y^T.

    1 if the kernel were the targets' own; for C balanced classes as one-hot vectors, centred,
    the identity matrix reaches sqrt((C - 1) / (N - 1)).

    Examples:
        >>> labels = torch.eye(2).repeat(2, 1)  # four points, two classes
        >>> round(kernel_target_alignment(torch.eye(4), labels) ** 2, 4)  # (2 - 1) / (4 - 1)
        0.3333
    """
    require_real(K=K, targets=targets)
    if K.dim() != 2:
        raise ValueError(f"K must be a square matrix, got {tuple(K.shape)}")
    if targets.dim() != 2 or len(targets) != len(K):
        raise ValueError(
            f"targets must have shape ({len(K)}, C), one row a point, got {tuple(targets.shape)}"
        )
    targets = require_finite(targets, "targets").to(K.device).double()
    if (targets == (targets[:1] if centred else 0)).all():
        raise ValueError("targets is the same for all points; there is nothing to align with")
    targets = targets / targets.abs().amax()  # no size overflows
    return kernel_alignment(K, targets @ targets.T, centred=centred)


@constant()
def kernel_drift(K: Tensor, K0: Tensor) -> float:
    """Return ||K - K0||_F / ||K0||_F: how far a kernel of any shape has moved from K0.

    Examples:
        >>> kernel_drift(torch.full((2, 2), 1.5), torch.ones(2, 2))
        0.5
    """
    require_real(K=K, K0=K0)
    if K.shape != K0.shape:
        raise ValueError(f"K {tuple(K.shape)} and K0 {tuple(K0.shape)} must have the same shape")
    require_finite(K, "K")
    require_finite(K0, "K0")
    size = max(abs(float(end)) for end in K0.detach().aminmax()) if K0.numel() else 0
    if not size:
        raise ValueError("K0 is zero; a drift is relative to a kernel that is not")
    K, K0 = K.detach().double(), K0.detach().double()
    apart = K - K0
    if not 1e-100 < size < 1e100:  # squares would over- or underflow
        apart, K0 = apart / size, K0 / size
    return float(require_finite(apart.norm() / K0.norm(), "K over K0"))


def _kernel(K: Tensor, name: str, centred: bool) -> Tensor:
    require_real(**{name: K})
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
    # Where squares would over- or underflow, in units of the column's largest entry.
    tiny = torch.finfo(vectors.dtype).tiny
    peak = (
        require_finite(vectors, name).abs().amax(0)
        if len(vectors)
        else vectors.new_zeros(vectors.shape[1])
    )
    vectors = vectors / torch.where(
        (peak > tiny**0.25) & (peak < tiny**-0.25) | (peak == 0), 1, peak
    )
    norms = vectors.norm(dim=0)
    if (norms == 0).any():
        where = (norms == 0).nonzero().flatten().tolist()[:5]
        raise ValueError(f"{name}: columns {where} are zero and have no direction; leave them out")
    return vectors / norms


def _same_points(a: Tensor, b: Tensor, name_a: str, name_b: str) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes."""
    require_floats(half=True, **{name_a: a, name_b: b})
    if a.dim() != 2 or b.dim() != 2 or len(a) != len(b):
        raise ValueError(
            f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)} must be matrices with the same "
            "number of rows, one a data point"
        )
    kind = torch.promote_types(a.dtype, b.dtype)
    return a.to(kind), b.to(kind)
