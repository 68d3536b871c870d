"""The empirical NTK of a network of squares, f(x) = (1/H) W2 (W1 x / sqrt(D))^2, by formula."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import require_finite


@torch.no_grad()
def quadratic_ntk(
    W1: Float[Tensor, "H D"],
    W2: Float[Tensor, "C _"],
    x: Float[Tensor, "N _"],
    *,
    classes: Float[Tensor, "_ _"] | None = None,
) -> dict[str, Float[Tensor, "N N"]]:
    """Return the kernels of both layers of f(x) = (1/H) W2 (W1 x / sqrt(D))^2; they add up.

    With z = W1 x / sqrt(D) and primes for the second point,

        K_cd for W1 = 4 / (D H^2) (x.x') sum_n W2_cn W2_dn z_n z'_n,
        K_cd for W2 = delta_cd / H^2 sum_n z_n^2 z'_n^2

    (arXiv 2510.00468, section 3). The result is sum_cd classes_cd K_cd: by default
    the class-averaged kernel, classes = 1/C on the diagonal, as from `empirical_ntk`.
    Computed in the dtype of W1. Raises ValueError for shapes that do not fit together.
    """
    (H, D), C = W1.shape, len(W2)
    if W2.shape[1] != H or x.shape[1] != D:
        raise ValueError(
            f"W1 {(H, D)} needs W2 of shape (C, {H}) and x of shape (N, {D}), "
            f"got {tuple(W2.shape)} and {tuple(x.shape)}"
        )
    W1, W2, x = (require_finite(t, n).to(W1) for t, n in ((W1, "W1"), (W2, "W2"), (x, "x")))
    if classes is None:
        per_unit, trace = W2.square().mean(0), 1.0
    elif classes.shape == (C, C):
        S = require_finite(classes, "classes").to(W1)
        per_unit, trace = (W2 * (S @ W2)).sum(0), float(S.trace())
    else:
        raise ValueError(f"classes must have shape ({C}, {C}), got {tuple(classes.shape)}")
    z = x @ W1.T / D**0.5
    first = (x @ x.T) * ((z * per_unit) @ z.T) * (4 / (D * H**2))
    second = (z.square() @ z.square().T) * (trace / H**2)
    return {"W1": (first + first.T) / 2, "W2": (second + second.T) / 2}  # exactly symmetric


@torch.no_grad()
def quadratic_class_pairs(
    W1: Float[Tensor, "H D"],
    W2: Float[Tensor, "C _"],
    x: Float[Tensor, "N _"],
    Q: Float[Tensor, "N q"],
) -> Float[Tensor, "C C q q"]:
    """Return Q^T K_cd Q of the same network, for every pair of classes.

    In the first layer a unit's gradient for class c is W2_cn times one that is the same for
    all classes, so each unit is compressed once: G_n = 4 / (D H^2) Q^T (z_n z_n^T * x x^T) Q,
    and Q^T K_cd Q = sum_n W2_cn W2_dn G_n, plus the last layer for c = d. As
    `NTKOperator.compress`, in milliseconds; computed in the dtype of W1.
    """
    (H, D), C = W1.shape, len(W2)
    if W2.shape[1] != H or x.shape[1] != D or len(Q) != len(x):
        raise ValueError(
            f"W1 {(H, D)} needs W2 of shape (C, {H}), x of shape (N, {D}) and Q of shape (N, q), "
            f"got {tuple(W2.shape)}, {tuple(x.shape)} and {tuple(Q.shape)}"
        )
    W2, x, Q = (require_finite(t, n).to(W1) for t, n in ((W2, "W2"), (x, "x"), (Q, "Q")))
    z = x @ require_finite(W1, "W1").T / D**0.5
    gradients = torch.einsum("xk,xn,xi->nki", Q, z, x) * (2 / (H * D**0.5))
    units = (gradients @ gradients.mT).flatten(1)
    compressed = ((W2[:, None] * W2).flatten(0, 1) @ units).unflatten(0, (C, C))
    compressed = compressed.unflatten(2, (Q.shape[1],) * 2)
    last = Q.T @ z.square() / H
    compressed.diagonal(dim1=0, dim2=1).add_((last @ last.T)[..., None])
    return compressed
