"""Kernels of infinitely wide ReLU networks, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .inputs import require_finite, require_real, whole


class InfiniteWidth(NamedTuple):
    """Two (N, M) kernels of one output; different outputs have a kernel of zero between them.

    nngp: the covariance of the outputs of random networks, a Gaussian process.
    ntk: the tangent kernel, the same for every network and throughout training.
    """

    nngp: Float[Tensor, "N M"]
    ntk: Float[Tensor, "N M"]


def relu_ntk(
    x: Float[Tensor, "N d"], x2: Float[Tensor, "M d"] | None = None, *, depth: int = 1
) -> InfiniteWidth:
    """Return the kernels of a ReLU network with `depth` hidden layers as width goes to infinity.

    The network is that of `testbeds.wide`: z^1 = W^1 x / sqrt(d), then
    z^(l+1) = sqrt(2 / n) W^(l+1) relu(z^l), all weights from N(0, 1), no biases. With t the angle
    between two points in layer l and S^l their covariance there (S^1 = x.x' / d),

        S^(l+1) = sqrt(S^l(x, x) S^l(x', x')) (sin t + (pi - t) cos t) / pi,
        T^(l+1) = S^(l+1) + T^l (pi - t) / pi,    T^1 = S^1

    (Cho and Saul 2009; Jacot et al. 2018). Float64, accurate for small angles too. Raises
    ValueError for points of different length, a point of norm zero or too large to square, or
    depth < 0.

    Examples:
        >>> relu_ntk(torch.eye(2)).ntk  # points at a right angle: 1 / (2 pi)
        tensor([[1.0000, 0.1592],
                [0.1592, 1.0000]], dtype=torch.float64)
    """
    other = x if x2 is None else x2
    require_real(x=x, x2=other)
    if x.dim() != 2 or other.dim() != 2 or x.shape[1] != other.shape[1] or x.shape[1] == 0:
        raise ValueError(
            f"x {tuple(x.shape)} and x2 {tuple(other.shape)} must be (N, d) and (M, d), d > 0"
        )
    if whole(depth, "depth") < 0:
        raise ValueError(f"depth is {depth}; give the number of hidden layers, at least 0")
    x, other = require_finite(x, "x").double(), require_finite(other, "x2").double()
    a, b = x.norm(dim=1), other.norm(dim=1)
    # This scaling keeps every point's variance, |x|^2 / d, through all layers.
    size = require_finite(torch.outer(a, b) / x.shape[1], "the product of the norms of x and x2")
    if not (size > 0).all():
        raise ValueError("x or x2 holds a point of norm zero, which has no angle to others")
    u, v = x / a[:, None], other / b[:, None]
    exact = "donot_use_mm_for_euclid_dist"
    t = 2 * torch.atan2(
        torch.cdist(u, v, compute_mode=exact), torch.cdist(u, -v, compute_mode=exact)
    )
    nngp = ntk = size * t.cos()
    for _ in range(depth):
        # 1 - cos of the next angle, without cancellation where points are close.
        versine = 2 * (t / 2).sin().square() - (t.sin() - t * t.cos()) / torch.pi
        nngp = size * (1 - versine)
        ntk = nngp + ntk * (1 - t / torch.pi)
        t = 2 * (versine / 2).clamp(0, 1).sqrt().asin()
    return InfiniteWidth(nngp, ntk)
