"""Fully connected networks of any width, trained by plain gradient descent.

The parametrisation is that of tangent-kernel theory (Jacot et al. 2018): weights are of order
one and each layer divides by the square root of its width, so that one learning rate and one
time axis serve all widths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from entk_helpers.mode import own_defaults
from entk_helpers.progress import progress_bar
from entk_helpers.testbeds import Run
from entk_helpers.testbeds.checks import check, check_seeds


class _Activation(NamedTuple):
    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]  # the derivative, from the value of the function
    gain: float  # 1 / sqrt(E[function(z)^2]), z standard normal


ACTIVATIONS = {
    "relu": _Activation(torch.relu, lambda a: (a > 0).to(a), math.sqrt(2)),
    "tanh": _Activation(torch.tanh, lambda a: 1 - a.square(), 1.5925374),
}


class WideNetwork(nn.Module):
    """f(x) = scale * (g(x; W) - g(x; start)) with g a fully connected network without biases.

    z^1 = W^1 x / sqrt(d), z^(l+1) = gain / sqrt(n) W^(l+1) s(z^l), g the last z, (N, C); s is
    the activation and gain^2 = 1 / E[s(z)^2] for a standard normal z (2 for ReLU).
    `weights`: one (fan out, fan in) matrix a layer. `start`: weights of the same shapes whose
    function is subtracted, or None for g alone. `scale` is the alpha of Chizat et al. 2019.

    Examples:
        >>> model = WideNetwork([torch.eye(2), torch.ones(1, 2)])
        >>> model(torch.tensor([[1.0, -1.0]])).detach()  # relu(1 / sqrt(2)) + relu(-1 / sqrt(2))
        tensor([[0.7071]])
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        start: Sequence[Tensor] | None = None,
        scale: float = 1.0,
        activation: str = "relu",
    ):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(W.detach().clone()) for W in weights)
        self.depth, self.scale, self.centred = len(weights) - 1, scale, start is not None
        self.activation = activation
        for layer, W in enumerate(start or ()):
            self.register_buffer(f"start{layer}", W.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (N, C) of the points x (N, d)."""
        out = _apply(list(self.weights), x, self.activation)
        if self.centred:
            start = [getattr(self, f"start{layer}") for layer in range(self.depth + 1)]
            out = out - _apply(start, x, self.activation)
        return self.scale * out


@own_defaults()
def draw_weights(sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Standard normal weights of the layers between `sizes` = (d, n, ..., C), float32, CPU.

    Examples:
        >>> [tuple(W.shape) for W in draw_weights([2, 8, 1], seed=0)]
        [(8, 2), (1, 8)]
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = itertools.pairwise(sizes)
    return [
        torch.randn(out, fan_in, generator=generator, dtype=torch.float32) for fan_in, out in pairs
    ]


def network(
    sizes: Sequence[int],
    seed: int,
    *,
    scale: float = 1.0,
    centred: bool = False,
    activation: str = "relu",
) -> WideNetwork:
    """An untrained network; with `centred`, its initial function is subtracted.

    Examples:
        >>> network([2, 8, 1], seed=0, centred=True)(torch.ones(1, 2)).item()
        0.0
    """
    weights = draw_weights(sizes, seed)
    return WideNetwork(weights, weights if centred else None, scale, activation)


@own_defaults()
@torch.no_grad()
def train_seeds(
    sizes: Sequence[int],
    x: Tensor,
    targets: Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    rate: float,
    scale: float = 1.0,
    centred: bool = False,
    activation: str = "relu",
    watch: Tensor | None = None,
    record_at: Sequence[int] = (),
    stop_loss: float = 0.0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[Run]:
    """Independent networks on the same data, one for each seed, trained as one batch.

    Full-batch gradient descent on (1/2) sum over points and outputs of (f - y)^2 / scale^2, in
    the dtype of x, so that one unit of time (1 / rate steps) means the same at every width and
    scale. Seeds stop together: after `steps`, or when every loss, (1/2) mean (f - y)^2, is at or
    below `stop_loss`.

    x (N, d); targets (N, C), or (seeds, N, C), each seed its own; sizes (d, n, ..., C). `watch`
    (M, d): points whose outputs are recorded, x unless given. `record_at`: the steps recorded in the history and kept as
    checkpoints, beside the first and the last. Returns a `Run` per seed; history: "step",
    "loss", "outputs" (a list of (M, C)). `device`: the CPU unless given. Raises ValueError for
    settings that do not fit together, and when training diverges: at NaN, at a loss far above the
    start, or when every unit of a layer has died.

    Examples:
        >>> x, targets = torch.eye(2), torch.tensor([[1.0], [-1.0]])
        >>> runs = train_seeds([2, 256, 1], x, targets, [0, 1], steps=50, rate=0.5)
        >>> [run.history["loss"][-1] < 1e-6 for run in runs]
        [True, True]
    """
    sizes, seeds, watch = list(sizes), list(seeds), x if watch is None else watch
    check_seeds(seeds)
    own = targets.dim() == 3 and len(targets) == len(seeds)
    _check_data(sizes, x, targets[0] if own else targets, watch)
    check(not own or bool(targets.isfinite().all()), "targets holds NaN or Inf; clean it first")
    check(steps >= 1, f"steps is {steps}; give at least 1")
    check(rate > 0, f"rate is {rate}; give a positive number")
    check(scale > 0, f"scale is {scale}; give a positive number")
    check(
        all(0 <= step <= steps for step in record_at),
        f"record_at is {list(record_at)}; give steps from 0 to {steps}",
    )
    check(
        activation in ACTIVATIONS,
        f"activation is {activation!r}; give one of {', '.join(ACTIVATIONS)}",
    )

    x = x.to(device or "cpu")
    targets, watch = targets.to(x), watch.to(x)
    drawn = [draw_weights(sizes, seed) for seed in seeds]
    start = [torch.stack(layer).to(x) for layer in zip(*drawn, strict=True)]
    weights = [W.clone() for W in start]
    first = _apply(start, x, activation) if centred else 0.0
    kept, records = {0, *record_at}, {}
    with progress_bar(steps, f"networks of width {sizes[1]}", show=progress) as bar:
        for step in range(steps + 1):
            out, inner = _forward(weights, x, activation)
            error = scale * (out - first) - targets
            loss = error.square().sum(2).mean(1) / 2
            alive = out.abs().amax((1, 2)) > 0
            if step == 0:
                # Far above the start, and above where a large rate may catapult it and return.
                ceiling = 1e6 * (loss + targets.square().sum(-1).mean(-1) + 1)
                born = alive
            check(
                bool((loss <= ceiling).all()) and bool((alive | ~born).all()),
                f"rate is {rate}; training diverged, give less",
            )
            done = step == steps or bool((loss <= stop_loss).all())
            if step in kept or done:
                seen = _apply(weights, watch, activation)
                if centred:
                    seen -= _apply(start, watch, activation)
                records[step] = loss, scale * seen, [W.clone() for W in weights]
            if done:
                break
            _descend_(weights, inner, error * (rate / scale), activation)
            bar.update()

    runs = []
    for r in range(len(seeds)):
        initial = [W[r] for W in start] if centred else []
        fixed = {f"start{layer}": W for layer, W in enumerate(initial)}
        checkpoints = {
            s: {f"weights.{layer}": W[r] for layer, W in enumerate(Ws)} | fixed
            for s, (_, _, Ws) in records.items()
        }
        history = {
            "step": list(records),
            "loss": [loss[r].item() for loss, _, _ in records.values()],
            "outputs": [seen[r] for _, seen, _ in records.values()],
        }
        last = [W[r] for W in records[max(records)][2]]
        model = WideNetwork(last, initial or None, scale, activation)
        runs.append(Run(model, x, targets[r] if own else targets, history, checkpoints))
    return runs


def _check_data(sizes: list[int], x: Tensor, targets: Tensor, watch: Tensor) -> None:
    check(len(sizes) >= 2, f"sizes is {sizes}; give at least inputs and outputs")
    check(min(sizes) >= 1, f"sizes is {sizes}; give at least 1 in every place")
    for value, name in ((x, "x"), (watch, "watch"), (targets, "targets")):
        columns = sizes[-1] if name == "targets" else sizes[0]
        check(
            value.dim() == 2 and value.shape[1] == columns and len(value) > 0,
            f"{name} has shape {tuple(value.shape)}; sizes {sizes} need (N, {columns})",
        )
        check(value.is_floating_point(), f"{name} is {value.dtype}; give floating-point numbers")
        check(bool(value.isfinite().all()), f"{name} holds NaN or Inf; clean it first")
    check(len(x) == len(targets), f"x has {len(x)} points and targets has {len(targets)}")


def _apply(weights: Sequence[Tensor], x: Tensor, activation: str) -> Tensor:
    """Outputs of one network (weights (out, in)) or of many (weights (S, out, in))."""
    return _forward(weights, x, activation)[0]


def _forward(weights: Sequence[Tensor], x: Tensor, activation: str) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and what each layer multiplies: its inputs after the activation."""
    s = ACTIVATIONS[activation]
    inner, z = [], x
    for layer, W in enumerate(weights):
        a = s.function(z) if layer else z
        inner.append(a)
        z = a @ W.mT * ((s.gain if layer else 1.0) / W.shape[-1] ** 0.5)
    return z, inner


def _descend_(weights: list[Tensor], inner: list[Tensor], error: Tensor, activation: str) -> None:
    """A step of gradient descent in place, by hand: several times faster than autograd."""
    s = ACTIVATIONS[activation]
    for layer in reversed(range(len(weights))):
        W, a = weights[layer], inner[layer]
        error = error * ((s.gain if layer else 1.0) / W.shape[-1] ** 0.5)
        back = error @ W * s.slope(a) if layer else None
        W -= error.mT @ a
        error = back
