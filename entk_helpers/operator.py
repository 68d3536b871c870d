"""The empirical NTK as a linear operator: K v = J (J^T v), with neither J nor K in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from .inputs import Inputs, blocks, fit, leaves, parse_bytes, require_finite, require_real, take
from .jacobian import OUTPUTS, per_sample_rows, vectorised, verify
from .mode import own_mode
from .problem import Params, Problem


class NTKOperator:
    """J J^T of a model on N points with C outputs, as a symmetric (N*C, N*C) operator.

    ``K @ v`` maps (N*C,) or (N*C, k) to the same shape; row n*C + c is point n, output c.
    ``jvp(v)`` is J v, from (P,) or (P, k) to (N*C,) or (N*C, k); ``vjp(u)`` is J^T u, back.
    Parameters are concatenated in the order of ``model.named_parameters()``. Vectors are
    cast to the model's dtype. `matvecs` counts the columns that K has multiplied.

    A product costs about three passes backward through the model. Graphs are kept
    between products where `memory` allows it, and made anew block by block where not. Where an
    operation of the model has no second derivative, gradients are written out instead.

    Raises ValueError for everything that `empirical_ntk` refuses, and for a vector whose
    length does not fit.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> K = NTKOperator(torch.nn.Linear(2, 1), x)
        >>> K.shape, K.n_parameters
        ((2, 2), 3)
        >>> K @ torch.tensor([1.0, 0.0])  # the first column of x.x' + 1
        tensor([2., 1.])
    """

    @own_mode()
    def __init__(
        self,
        model: nn.Module,
        x: Inputs,
        *,
        params: Params = None,
        class_weight: Float[Tensor, " C"] | None = None,
        memory: str | int = "1GiB",
    ):
        self._problem = problem = Problem.check(model, x, params)
        n, c = problem.n_points, problem.n_outputs
        self.shape = (n * c, n * c)
        self.n_parameters = sum(p.numel() for p in problem.selected.values())
        self.dtype, self.device, self.matvecs = problem.dtype, problem.device, 0
        self._weight = problem.weights(class_weight).repeat(n)
        self._live = {name: p.detach().requires_grad_() for name, p in problem.selected.items()}
        self._memory = parse_bytes(memory)
        try:
            # A graph holds the activations, those of its own derivative, and their like.
            self._begin(Graph.record, 6 * problem.activations)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NoSecondDerivative):
            # The gradients, once more in the making, and one pass back for each output.
            self._begin(Rows.record, c * (3 * self.n_parameters + problem.activations))

    def _begin(self, record: Callable[..., Graph | Rows], numbers: int) -> None:
        """Record as many points at a time as fit, of so many numbers each."""
        self._record, per_point = record, numbers * self.dtype.itemsize
        self._step = fit(per_point, self._memory, limit=self._problem.n_points)
        self._columns = max(1, self._memory // (per_point * self._step))
        _, graph = next(self._fresh_graphs())
        graph.check()
        self._kept = (slice(None), graph) if self._step == self._problem.n_points else None

    def __matmul__(self, v: Tensor) -> Tensor:
        """K @ v."""
        out = self._columnwise(v, self.shape[0], "v", lambda u: self._push(self._pull(u)))
        self.matvecs += v.numel() // self.shape[0]
        return out

    matvec = __matmul__

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u."""
        return self._columnwise(u, self.shape[0], "u", self._pull)

    def jvp(self, v: Tensor) -> Tensor:
        """J v."""
        return self._columnwise(v, self.n_parameters, "v", self._push)

    @own_mode()
    def compress(self, Q: Float[Tensor, "N q"]) -> Float[Tensor, "C C q q"]:
        """Q^T K_cd Q for every pair of classes: the kernel as seen from a subspace of points.

        Costs q * C products with J^T, whose results are kept, (q * C, P); where `memory` does not
        allow it, as many with K. Entry [c, d, k, l] is the inner product under K_cd of columns k and
        l of Q.
        """
        require_real(Q=Q)
        n = self._problem.n_points
        c = self._problem.n_outputs
        if Q.dim() != 2 or len(Q) != n or not Q.numel():
            raise ValueError(f"Q must have shape ({n}, q), one row a point, got {tuple(Q.shape)}")
        Q = require_finite(Q, "Q").detach().to(self.device, self.dtype)
        only = Q.new_zeros(n, c, Q.shape[1])

        def of_class(d: int) -> Tensor:
            """Q at output d, zero at the others, (N*C, q)."""
            only.zero_()[:, d] = Q
            return only.flatten(0, 1)

        if 2 * c * Q.shape[1] * self.n_parameters * self.dtype.itemsize <= self._memory:
            gradients = torch.stack([self.vjp(of_class(d)).T for d in range(c)])  # (C, q, P)
            gram = gradients.flatten(0, 1) @ gradients.flatten(0, 1).T
            gram = gram.unflatten(0, (c, -1)).unflatten(2, (c, -1)).transpose(1, 2)
            return require_finite(gram, "Q^T K Q")
        rows = []
        for d in range(c):
            image = (self @ of_class(d)).unflatten(0, (n, c))
            rows.append(torch.einsum("nck,nl->clk", image, Q))
        return require_finite(torch.stack(rows, dim=1), "Q^T K Q")

    @own_mode()
    def _columnwise(self, v: Tensor, length: int, name: str, multiply) -> Tensor:
        require_real(**{name: v})
        if v.dim() not in (1, 2) or len(v) != length or v.numel() == 0:
            raise ValueError(
                f"{name} must have shape ({length},) or ({length}, k), got {tuple(v.shape)}"
            )
        require_finite(v, name)
        columns = v.to(self.device, self.dtype).reshape(length, -1).T
        out = torch.cat([multiply(part) for part in columns.split(self._columns)])
        return require_finite(out, f"the product with {name}").T.reshape(-1, *v.shape[1:])

    def _pull(self, u: Tensor) -> Tensor:
        """(k, N*C) -> (k, P)."""
        u = u * self._weight
        return sum(graph.pull(u[:, rows]) for rows, graph in self._graphs())

    def _push(self, v: Tensor) -> Tensor:
        """(k, P) -> (k, N*C)."""
        parts = [graph.push(v) for _, graph in self._graphs()]
        return torch.cat(parts, dim=1) * self._weight

    def _graphs(self) -> Iterator[tuple[slice, Graph | Rows]]:
        return iter([self._kept]) if self._kept else self._fresh_graphs()

    def _fresh_graphs(self) -> Iterator[tuple[slice, Graph | Rows]]:
        c = self._problem.n_outputs
        for block in blocks(self._problem.n_points, self._step):
            graph = self._record(self._problem, self._live, take(self._problem.x, block))
            yield slice(block.start * c, block.stop * c), graph


@dataclass(frozen=True)
class Graph:
    """Autograd's record of one block of points, ready for J^T u and J v.

    J^T u is linear in u, so its own derivative by u, applied to v, is J v: both directions
    use reverse mode alone, and no forward pass is repeated.
    """

    live: list[Tensor]
    outputs: Tensor
    dual: Tensor
    gradients: list[Tensor]

    @classmethod
    def record(cls, problem: Problem, live: dict[str, Tensor], block: Inputs) -> Graph:
        """The record of a model's outputs at a block of points."""
        at, points = partial(problem, live), range(len(leaves(block)[0]))
        eye = torch.eye(problem.n_outputs, dtype=problem.dtype, device=problem.device)

        def verified(forward: Callable[[], Tensor]) -> Graph:
            """The record, if its products with two vectors at once are those of plain autograd."""
            graph = cls.of(forward, live)

            def mixed(mix: Tensor) -> dict[str, Tensor]:
                u = torch.stack([mix, mix]).to(graph.outputs)
                u = torch.nn.functional.pad(u, (0, graph.outputs.numel() - len(mix)))
                sizes = [p.numel() for p in live.values()]
                return dict(zip(live, graph.pull(u)[0].split(sizes), strict=True))

            verify("graph", problem, block, eye, mixed)
            return graph

        return vectorised(
            lambda: verified(lambda: vmap(at)(block)),
            otherwise=lambda: verified(lambda: torch.stack([at(take(block, i)) for i in points])),
        )

    @classmethod
    def of(cls, forward: Callable[[], Tensor], live: dict[str, Tensor]) -> Graph:
        """The record of what `forward` makes of the live tensors, (n*C,) when flattened."""
        with torch.enable_grad():
            outputs = forward().flatten()
            if not outputs.is_meta:  # where costs are counted without numbers
                require_finite(outputs.detach(), OUTPUTS)
            dual = torch.zeros_like(outputs, requires_grad=True)
            gradients = [torch.zeros_like(p) for p in live.values()]
            if outputs.requires_grad:
                found = torch.autograd.grad(
                    outputs, list(live.values()), dual, create_graph=True, allow_unused=True
                )
                gradients = [z if g is None else g for z, g in zip(gradients, found, strict=True)]
        return cls(list(live.values()), outputs, dual, gradients)

    def check(self) -> None:
        """Raise unless u.(J v) = (J^T u).v: an operation may lack a second derivative."""
        generator = torch.Generator().manual_seed(0)
        u, v = (
            torch.randn(1, n, generator=generator, device="cpu").to(self.outputs)
            for n in (self.outputs.numel(), sum(p.numel() for p in self.live))
        )
        u[:, 16:] = 0  # few enough that an error in one of them shows
        pulled, pushed = self.pull(u), self.push(v) * (u != 0)
        apart = ((u * pushed).sum() - (pulled * v).sum()).abs()
        if not apart <= 0.01 * (u.norm() * pushed.norm() + pulled.norm()):  # NaN is no derivative
            raise NoSecondDerivative(
                "model has an operation whose backward pass cannot be differentiated again (a custom "
                "autograd.Function?), so J v cannot be had from it; use empirical_ntk or jacobian"
            )

    def pull(self, u: Tensor) -> Tensor:
        """(k, n*C) -> (k, P)."""
        found = batched_grad([self.outputs], self.live, [u])
        return torch.cat([g.reshape(len(u), -1) for g in found], dim=1).detach()

    def push(self, v: Tensor) -> Tensor:
        """(k, P) -> (k, n*C)."""
        sizes = [p.numel() for p in self.live]
        pieces = [
            piece.reshape(len(v), *p.shape)
            for piece, p in zip(v.split(sizes, dim=1), self.live, strict=True)
        ]
        return batched_grad(self.gradients, [self.dual], pieces)[0]


class NoSecondDerivative(ValueError):
    """An operation's backward pass is no function that autograd could differentiate."""


@dataclass(frozen=True)
class Rows:
    """The gradients of one block of points written out, where a graph gives no J v."""

    J: Tensor

    @classmethod
    def record(cls, problem: Problem, live: dict[str, Tensor], block: Inputs) -> Rows:
        """The gradients of a model's outputs at a block of points."""
        eye = torch.eye(problem.n_outputs, dtype=problem.dtype, device=problem.device)
        found = per_sample_rows(problem, problem.selected, block, eye)
        return cls(torch.cat([found[name] for name in live], dim=2).flatten(0, 1))

    def check(self) -> None:
        """Nothing to check: both ways are products with the same matrix."""

    def pull(self, u: Tensor) -> Tensor:
        """(k, n*C) -> (k, P)."""
        return u @ self.J

    def push(self, v: Tensor) -> Tensor:
        """(k, P) -> (k, n*C)."""
        return v @ self.J.T


def batched_grad(
    outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor]:
    """Vector-Jacobian products for k cotangents (k, *shape) at once; zero where unconnected."""
    k = len(cotangents[0])
    connected = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if connected:
        outs, cots = zip(*connected, strict=True)
        found = torch.autograd.grad(
            outs, inputs, [c[0] for c in cots] if k == 1 else cots, retain_graph=True,
            allow_unused=True, is_grads_batched=k > 1,
        )  # fmt: skip
    return [
        i.new_zeros(k, *i.shape) if g is None else g.reshape(k, *i.shape)
        for i, g in zip(inputs, found, strict=True)
    ]
