"""Ground truths that eigenvectors are compared with: input features and Fourier families."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import require_finite, require_real, whole


def tms_features(X: Float[Tensor, "N n"]) -> Float[Tensor, "Nn n"]:
    """Return the input features as directions of the flattened kernel of a toy model.

    Column i holds x_i of every point at class i and zero elsewhere: row p*n + c of the
    flattened kernel is point p, class c (arXiv 2510.00468, section 3). Columns are not
    normalised; a feature that no point has is a zero column.

    Examples:
        >>> tms_features(torch.tensor([[3.0, 0.0], [4.0, 5.0]]))  # two rows a point
        tensor([[3., 0.],
                [0., 0.],
                [4., 0.],
                [0., 5.]])
    """
    require_real(X=X)
    if X.dim() != 2 or not X.shape[1]:
        raise ValueError(f"X must have shape (N, n), got {tuple(X.shape)}")
    return torch.diag_embed(require_finite(X, "X")).reshape(-1, X.shape[1])


def fourier_families(p: int) -> dict[str, dict[int, Float[Tensor, "pp 2"]]]:
    """Return cos and sin of a, b, a+b and a-b on all pairs of integers below an odd p.

    ``families["sum"][k]`` has the orthonormal columns cos and sin of 2 pi k (a + b) / p for
    k = 1 .. (p - 1) / 2; row a*p + b is the pair (a, b). All are centred by construction,
    and the families "a", "b", "sum", "diff" are orthogonal to one another.

    Examples:
        >>> families = fourier_families(5)
        >>> list(families), list(families["sum"])
        (['a', 'b', 'sum', 'diff'], [1, 2])
        >>> waves = families["sum"][1]
        >>> waves.shape, torch.allclose(waves.T @ waves, torch.eye(2, dtype=waves.dtype))
        (torch.Size([25, 2]), True)
    """
    p = whole(p, "p")
    if p < 3 or p % 2 == 0:
        raise ValueError(f"p must be an odd number of at least 3, got {p}")
    a, b = (m.flatten() for m in torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij"))

    def waves(argument: Tensor) -> dict[int, Tensor]:
        """A family's cosines and sines, by their k."""
        angles = 2 * torch.pi / p * (argument % p).double()
        return {
            k: torch.stack([(k * angles).cos(), (k * angles).sin()], dim=1) * (2**0.5 / p)
            for k in range(1, (p - 1) // 2 + 1)
        }

    return {"a": waves(a), "b": waves(b), "sum": waves(a + b), "diff": waves(a - b)}
