"""The empirical NTK of a network of squares, f(x) = (1/H) W2 (W1 x / sqrt(D))^2, by formula."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import require_finite, require_floats, require_real
from .mode import constant


@torch.no_grad()
@constant()
def quadratic_ntk(
    W1: Float[Tensor, "H D"], W2: Float[Tensor, "C _"], x: Float[Tensor, "N _"]
) -> dict[str, Float[Tensor, "N N"]]:
    """Return the class-averaged kernels of both layers; they add up to the whole.

    With z = W1 x / sqrt(D) and primes for the second point,

        W1: 4 / (D H^2) (x.x') sum_n mean_c(W2_cn^2) z_n z'_n,
        W2: 1 / H^2 sum_n z_n^2 z'_n^2

    (arXiv 2510.00468, section 3), as from `empirical_ntk`. Computed in the dtype of W1.
    Raises ValueError for shapes that do not fit together.

    Examples:
        >>> W1, x = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0, 0.0]])
        >>> quadratic_ntk(W1, torch.tensor([[3.0]]), x)  # z = 1: 4/4 * 4 * 3^2 * 1, and 1
        {'W1': tensor([[36.]]), 'W2': tensor([[1.]])}
    """
    W1, W2, x = _fitting(W1, W2, x)
    H, D = W1.shape
    z = x @ W1.T / D**0.5
    first = (z * W2.square().mean(0)) @ z.T  # halves, in place: N^2 numbers take time to move
    first.mul_(x @ x.T).mul_(2 / (D * H**2))
    z.square_()
    second = (z @ z.T).mul_(0.5 / H**2)
    kernels = {"W1": first + first.T, "W2": second + second.T}  # exactly symmetric
    return {name: require_finite(K, f"the kernel of {name}") for name, K in kernels.items()}


@torch.no_grad()
@constant()
def quadratic_class_pairs(
    W1: Float[Tensor, "H D"],
    W2: Float[Tensor, "C _"],
    x: Float[Tensor, "N _"],
    Q: Float[Tensor, "_ q"],
) -> Float[Tensor, "C C q q"]:
    """Return Q^T K_cd Q of the same network, for every pair of classes.

    In the first layer a unit's gradient for class c is W2_cn times one that is the same for
    all classes, so each unit is compressed once: G_n = 4 / (D H^2) Q^T (z_n z_n^T * x x^T) Q,
    and Q^T K_cd Q = sum_n W2_cn W2_dn G_n, plus the last layer for c = d. As from
    `NTKOperator.compress`; computed in the dtype of W1. Raises ValueError for shapes that do
    not fit together.

    Examples:
        >>> W1, x = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 0.0, 0.0]])
        >>> W2 = torch.tensor([[3.0], [1.0]])  # two classes: 4 W2 W2^T, plus 1 for c = d
        >>> quadratic_class_pairs(W1, W2, x, Q=torch.eye(1))[:, :, 0, 0]
        tensor([[37., 12.],
                [12.,  5.]])
    """
    W1, W2, x = _fitting(W1, W2, x)
    (H, D), C = W1.shape, len(W2)
    require_real(Q=Q)
    if Q.dim() != 2 or len(Q) != len(x):
        raise ValueError(f"Q must have shape ({len(x)}, q), one row a point, got {tuple(Q.shape)}")
    Q = require_finite(Q, "Q").to(W1)
    z = x @ W1.T / D**0.5
    gradients = torch.einsum("xk,xn,xi->nki", Q, z, x) * (2 / (H * D**0.5))
    units = (gradients @ gradients.mT).flatten(1)
    compressed = ((W2[:, None] * W2).flatten(0, 1) @ units).unflatten(0, (C, C))
    compressed = compressed.unflatten(2, (Q.shape[1],) * 2)
    last = Q.T @ z.square() / H
    compressed.diagonal(dim1=0, dim2=1).add_((last @ last.T)[..., None])
    return require_finite(compressed, "the kernels of W1 and W2 between the columns of Q")


def _fitting(W1: Tensor, W2: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    require_floats(half=True, W1=W1)
    require_real(W2=W2, x=x)
    if W1.dim() != 2 or not W1.numel():
        raise ValueError(f"W1 must have shape (H, D), none of them zero, got {tuple(W1.shape)}")
    H, D = W1.shape
    fit = W2.dim() == x.dim() == 2 and W2.shape[1] == H and x.shape[1] == D
    if not (fit and len(W2)):
        raise ValueError(
            f"W1 {(H, D)} needs W2 of shape (C, {H}), C > 0, and x of shape (N, {D}), "
            f"got {tuple(W2.shape)} and {tuple(x.shape)}"
        )
    return tuple(require_finite(t, n).to(W1) for t, n in ((W1, "W1"), (W2, "W2"), (x, "x")))
