"""Per-sample gradients as sums of outer products, read off one forward pass.

Where a parameter W meets an activation a in a linear operation z = W a, the gradient of
an output f_c with respect to W is sum_t b_t a_t^T, with b = df_c/dz and t the positions
(tokens, pixels) at which W is used. A kernel needs only inner products of such sums, so
the gradients themselves are never stored: ('ghost' products; `kernel.py` contracts them).

Which operations these are is decided by watching the *operations*, not the module types:
a raw parameter in an einsum counts as much as an `nn.Linear`. And it is decided safely.
The watched uses of a parameter are cut out of autograd's graph; if the outputs still
depend on it, something uses it in a way that is not recognised here (W^T W, a norm, a
compiled block), and the parameter is differentiated directly instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.overrides import TorchFunctionMode

from .inputs import Inputs, require_finite, take
from .jacobian import OUTPUTS, matrices, per_sample_rows, vectorised, verify
from .operations import READERS, TRANSPOSES, Layout, Site
from .problem import Problem


@dataclass(frozen=True)
class Outer:
    """Gradients sum_t B[n, r, g, t, :] A[n, g, t, :]^T of one parameter.

    A is (n, g, T, i), or (n, g, T) row numbers where the activation is one-hot (an
    embedding); B is (n, R, g, T, o).
    """

    A: Tensor
    B: Tensor
    layout: Layout

    def dense(self) -> Tensor:
        """The same gradients written out: (n, R, P)."""
        n, rows, g, _, o = self.B.shape
        if self.A.is_floating_point():
            gradient = torch.einsum("nrgto,ngti->nrgoi", self.B, self.A)
        else:
            gradient = self.B.new_zeros(n, rows, g, self.layout.shape()[2], o)
            index = self.A[:, None, :, :, None].expand_as(self.B)
            gradient = gradient.scatter_add_(3, index, self.B).transpose(3, 4)
        return self.layout.flatten(gradient)


@dataclass(frozen=True)
class Plan:
    """Which parameters have structure, through which sites, and which have none."""

    sites: tuple[Site, ...]
    dense: dict[str, Tensor]

    def names(self) -> list[str]:
        """Parameters with structure, in an order that does not change from run to run."""
        return list(dict.fromkeys(site.name for site in self.sites))


def read_plan(problem: Problem) -> Plan:
    """Watch one forward pass and decide, for each parameter, which route is right."""
    live = {name: p.clone().requires_grad_() for name, p in problem.selected.items()}
    with _Watch(live, None) as watch:
        out = problem(live, take(problem.x, 0))
    uncut = [None] * len(live)
    if out.requires_grad:
        uncut = torch.autograd.grad(out.sum(), list(live.values()), allow_unused=True)
    direct = {name for name, grad in zip(live, uncut, strict=True) if grad is not None}
    # An activation that was overwritten after its use: left to autograd, which refuses it.
    direct |= {
        site.name
        for site, activation, version in zip(
            watch.sites, watch.activations, watch.versions, strict=True
        )
        if activation._version != version
    }
    dense = {name: p for name, p in problem.selected.items() if name in direct}
    return Plan(tuple(site for site in watch.sites if site.name not in direct), dense)


def gradients(
    problem: Problem, plan: Plan, block: Inputs, rows: Tensor
) -> dict[str, Outer | Tensor]:
    """Gradients of rows @ f(x_n): name -> Outer, or (n, R, P) where there is no structure.

    Parameters that the outputs do not depend on may be absent.
    """
    watched = {name: problem.selected[name] for name in plan.names()}

    def one(point: Inputs) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], Tensor]:
        """At one point: activations and cotangents of the sites, other gradients, outputs."""

        def run(taps: list[Tensor], dense: dict[str, Tensor]):
            """Outputs and activations, with taps at the sites."""
            with _Watch(watched, taps) as watch:
                out = problem({**problem.selected, **dense}, point)
            if [(s.name, s.layout, s.shape) for s in watch.sites] != [
                (s.name, s.layout, s.shape) for s in plan.sites
            ]:
                raise RuntimeError("the operations of the model change from call to call")
            return out, watch.activations

        taps = [rows.new_zeros(site.shape) for site in plan.sites]
        out, pull, activations = vjp(run, taps, dict(plan.dense), has_aux=True)
        cotangents, dense = vmap(pull)(rows)
        return activations, cotangents, dense, out

    def structured() -> dict[str, Outer | Tensor]:
        """At all points at once."""
        activations, cotangents, dense, outputs = vmap(one)(block)
        require_finite(outputs, OUTPUTS)
        found: dict[str, Outer | Tensor] = matrices(dense)
        for name in plan.names():
            uses = [
                Outer(vmap(site.activation)(a), vmap(vmap(site.cotangent))(b), site.layout)
                for site, a, b in zip(plan.sites, activations, cotangents, strict=True)
                if site.name == name
            ]
            found[name] = _merge(uses)
        verify(
            "structure",
            problem,
            block,
            rows,
            lambda mix: {n: _mixed(g, mix) for n, g in found.items()},
        )
        return found

    # Otherwise all are written out: a point may take a route that the plan's point did not.
    return vectorised(
        structured, otherwise=lambda: per_sample_rows(problem, problem.selected, block, rows)
    )


def _mixed(gradient: Outer | Tensor, mix: Tensor) -> Tensor:
    """A combination of the rows of the first point's gradients, (P,)."""
    if isinstance(gradient, Tensor):
        return mix @ gradient[0]
    one = torch.einsum("r,rgto->gto", mix, gradient.B[0])
    return Outer(gradient.A[:1], one[None, None], gradient.layout).dense().flatten()


def _merge(uses: list[Outer]) -> Outer | Tensor:
    """Several uses of one parameter: more positions where the layouts agree, else written out."""
    first = uses[0]
    if len(uses) == 1:
        return first
    if all(u.layout == first.layout and u.A.dtype == first.A.dtype for u in uses):
        return Outer(
            torch.cat([u.A for u in uses], dim=2),
            torch.cat([u.B for u in uses], dim=3),
            first.layout,
        )
    total = first.dense()
    for use in uses[1:]:
        total += use.dense()
    return total


class _Watch(TorchFunctionMode):
    """Recognises linear uses of the given parameters and cuts them out of the graph.

    Without taps it records sites; with taps (one a site, in order) it adds them to the
    results, so that the derivative by a tap is the derivative by the result.
    """

    def __init__(self, params: Mapping[str, Tensor], taps: list[Tensor] | None):
        super().__init__()
        # id -> (name, transposed); the tensors are kept alive so that ids stay theirs.
        self._known = {id(p): (name, False) for name, p in params.items()}
        self._alive = list(params.values())
        self._taps = taps
        self.sites: list[Site] = []
        self.activations: list[Tensor] = []
        self.versions: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in TRANSPOSES and id(args[0]) in self._known and args[0].dim() == 2:
            name, transposed = self._known[id(args[0])]
            out = func(*args, **kwargs)
            if (out.shape, out.stride()) == (args[0].shape[::-1], args[0].stride()[::-1]):
                self._known[id(out)] = (name, not transposed)
                self._alive.append(out)
            return out
        read = READERS.get(func)
        if read is None or "out" in kwargs:
            return func(*args, **kwargs)
        try:
            use = read(self._is_known, *args, **kwargs)
        except TypeError:  # keywords that the reader does not know
            use = None
        if use is None:
            return func(*args, **kwargs)
        name, transposed = self._known[id(use.weight)]
        out = use.run(use.weight.detach())
        if out.is_complex() or not out.is_floating_point():
            return func(*args, **kwargs)
        site = use.site(name, transposed, out.shape)
        if site is None:
            return func(*args, **kwargs)
        self.sites.append(site)
        self.activations.append(use.activation)
        if self._taps is None:
            self.versions.append(use.activation._version)
            return out
        if len(self.sites) > len(self._taps):
            raise RuntimeError("the operations of the model change from call to call")
        return out + self._taps[len(self.sites) - 1]

    def _is_known(self, value: object) -> bool:
        return isinstance(value, Tensor) and id(value) in self._known
