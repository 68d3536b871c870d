"""Ground truths that eigenvectors are compared with: input features and Fourier families."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def tms_features(X: Float[Tensor, "N n"]) -> Float[Tensor, "Nn n"]:
    """Return the input features as directions of the flattened kernel of a toy model.

    Column i holds x_i of every point at class i and zero elsewhere: row p*n + c of the
    flattened kernel is point p, class c (arXiv 2510.00468, section 3). Columns are not
    normalised; a feature that no point has is a zero column.
    """
    if X.dim() != 2:
        raise ValueError(f"X must have shape (N, n), got {tuple(X.shape)}")
    return torch.diag_embed(X).reshape(-1, X.shape[1])


def fourier_families(p: int) -> dict[str, dict[int, Float[Tensor, "pp 2"]]]:
    """Return cos and sin of a, b, a+b and a-b on all pairs of integers below an odd p.

    ``families["sum"][k]`` has the orthonormal columns cos and sin of 2 pi k (a + b) / p for
    k = 1 .. (p - 1) / 2; row a*p + b is the pair (a, b). All are centred by construction,
    and the families "a", "b", "sum", "diff" are orthogonal to one another.
    """
    if p < 3 or p % 2 == 0:
        raise ValueError(f"p must be an odd number of at least 3, got {p}")
    a, b = (m.flatten() for m in torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij"))

    def waves(argument: Tensor) -> dict[int, Tensor]:
        angles = 2 * torch.pi / p * (argument % p).double()
        return {
            k: torch.stack([(k * angles).cos(), (k * angles).sin()], dim=1) * (2**0.5 / p)
            for k in range(1, (p - 1) // 2 + 1)
        }

    return {"a": waves(a), "b": waves(b), "sum": waves(a + b), "diff": waves(a - b)}
