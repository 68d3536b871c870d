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

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap
from torch.overrides import TorchFunctionMode

from .jacobian import Inputs, Problem, per_sample_rows, take, vectorised


@dataclass(frozen=True)
class Layout:
    """How the entries of a parameter are indexed by (g, o, i): group, output, input.

    `sizes` splits the parameter's shape; `order` permutes the split dimensions to groups
    first, then outputs, then inputs; `ends` says where groups and outputs end.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    ends: tuple[int, int]

    def shape(self) -> tuple[int, int, int]:
        """Sizes (g, o, i)."""
        ordered = [self.sizes[d] for d in self.order]
        first, second = self.ends
        return (
            math.prod(ordered[:first]),
            math.prod(ordered[first:second]),
            math.prod(ordered[second:]),
        )

    def flatten(self, gradient: Tensor) -> Tensor:
        """(..., g, o, i) in this layout -> (..., P) in the parameter's own order."""
        lead = gradient.shape[:-3]
        ordered = gradient.reshape(*lead, *(self.sizes[d] for d in self.order))
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        back = [*range(len(lead)), *(len(lead) + d for d in inverse)]
        return ordered.permute(back).reshape(*lead, -1)


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
class Site:
    """One recognised use of a parameter."""

    name: str
    layout: Layout
    activation: Callable[[Tensor], Tensor]
    """Activation as recorded, for one point -> (g, T, i), or (g, T) row numbers."""
    cotangent: Callable[[Tensor], Tensor]
    """Derivative by the operation's result, for one point -> (g, T, o)."""
    shape: torch.Size
    """Shape of the operation's result for one point."""
    activation_shape: torch.Size


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
    with torch.inference_mode(False), torch.enable_grad():
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
    sites = tuple(site for site in watch.sites if site.name not in direct)
    return Plan(
        sites, {name: problem.selected[name] for name in problem.selected if name in direct}
    )


def gradients(
    problem: Problem, plan: Plan, block: Inputs, rows: Tensor
) -> dict[str, Outer | Tensor]:
    """Gradients of rows @ f(x_n): name -> Outer, or (n, R, P) where there is no structure.

    Parameters that the outputs do not depend on may be absent.
    """
    watched = {name: problem.selected[name] for name in plan.names()}

    def one(point: Inputs) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        def run(taps: list[Tensor], dense: dict[str, Tensor]):
            with _Watch(watched, taps) as watch:
                out = problem({**problem.selected, **dense}, point)
            if [(s.name, s.layout, s.shape) for s in watch.sites] != [
                (s.name, s.layout, s.shape) for s in plan.sites
            ]:
                raise RuntimeError("the operations of the model change from call to call")
            return out, watch.activations

        taps = [rows.new_zeros(site.shape) for site in plan.sites]
        _, pull, activations = vjp(run, taps, dict(plan.dense), has_aux=True)
        cotangents, dense = vmap(pull)(rows)
        return activations, cotangents, dense

    def structured() -> dict[str, Outer | Tensor]:
        activations, cotangents, dense = vmap(one)(block)
        found: dict[str, Outer | Tensor] = _matrices(dense)
        for name in plan.names():
            uses = [
                Outer(vmap(site.activation)(a), vmap(vmap(site.cotangent))(b), site.layout)
                for site, a, b in zip(plan.sites, activations, cotangents, strict=True)
                if site.name == name
            ]
            found[name] = _merge(uses)
        return found

    def unstructured() -> dict[str, Outer | Tensor]:
        # All of them: a point may take a route that the plan's point did not.
        return _matrices(per_sample_rows(problem, problem.selected, block, rows))

    return vectorised(structured, otherwise=unstructured)


def _matrices(found: dict[str, Tensor]) -> dict[str, Outer | Tensor]:
    """(n, R, *shape) -> (n, R, P), for scalars too."""
    return {name: g.reshape(*g.shape[:2], -1) for name, g in found.items()}


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
        if func in _TRANSPOSES and id(args[0]) in self._known and args[0].dim() == 2:
            name, transposed = self._known[id(args[0])]
            out = func(*args, **kwargs)
            if (out.shape, out.stride()) == (args[0].shape[::-1], args[0].stride()[::-1]):
                self._known[id(out)] = (name, not transposed)
                self._alive.append(out)
            return out
        read = _READERS.get(func)
        if read is None or "out" in kwargs or torch.is_autocast_enabled():
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


@dataclass(frozen=True)
class _Use:
    """One candidate: z = run(weight), linear in both the weight and the activation."""

    weight: Tensor
    activation: Tensor
    run: Callable[[Tensor], Tensor]
    site: Callable[[str, bool, torch.Size], Site | None]


def _product(known, letters: tuple[str, str, str], weight, activation, run) -> _Use | None:
    """A use that reads z[letters z] = sum W[letters w] a[letters a], "..." leading in a and z."""
    if known(activation) or not activation.is_floating_point():
        return None

    def site(name: str, transposed: bool, shape: torch.Size) -> Site | None:
        return _einsum_site(name, letters, weight, transposed, activation.shape, shape)

    return _Use(weight, activation, run, site)


def _einsum_site(
    name: str,
    letters: tuple[str, str, str],
    weight: Tensor,
    transposed: bool,
    a_shape: torch.Size,
    z_shape: torch.Size,
) -> Site | None:
    w, a, z = letters
    # "..." stands for the leading dimensions; give them letters that nobody uses.
    spare = "".join(chr(ord("\u0391") + k) for k in range(len(z_shape)))
    spare = spare[: len(z_shape) - len(z.replace("...", ""))]
    a, z = a.replace("...", spare), z.replace("...", spare)
    if (
        len(a) != len(a_shape)
        or len(z) != len(z_shape)
        or any(len(set(s)) < len(s) for s in (w, a, z))
    ):
        return None
    size: dict[str, int] = {}
    for names, shape in ((w, weight.shape), (a, a_shape), (z, z_shape)):
        for letter, n in zip(names, shape, strict=True):
            if size.setdefault(letter, n) != n:
                return None  # a broadcast dimension
    if 0 in size.values():
        return None
    if set(z) != (set(w) ^ set(a)) | (set(w) & set(a) & set(z)):
        return None  # a letter is summed in one operand alone
    group = [c for c in w if c in a and c in z]
    out = [c for c in w if c not in a]
    into = [c for c in w if c not in z]
    position = [c for c in z if c not in w]
    own = w[::-1] if transposed else w
    order = tuple(own.index(c) for c in group + out + into)
    layout = Layout(tuple(size[c] for c in own), order, (len(group), len(group) + len(out)))
    g, o, i = layout.shape()

    def arrange(value: Tensor, have: str, want: list[str], last: int) -> Tensor:
        return value.permute([have.index(c) for c in want]).reshape(g, -1, last)

    return Site(
        name,
        layout,
        activation=lambda value: arrange(value, a, group + position + into, i),
        cotangent=lambda value: arrange(value, z, group + position + out, o),
        shape=z_shape,
        activation_shape=a_shape,
    )


def _read_linear(known, input, weight, bias=None):
    if not known(weight):
        return None
    run = lambda w: F.linear(input, w, bias)  # noqa: E731
    return _product(known, ("oi", "...i", "...o"), weight, input, run)


def _read_matmul(known, left, right):
    if not isinstance(left, Tensor) or not isinstance(right, Tensor) or known(left) == known(right):
        return None
    weight, activation = (right, left) if known(right) else (left, right)
    ranks = (
        weight.dim(),
        activation.dim() if weight.dim() == 3 or activation.dim() == 1 else "more",
    )
    if known(right):
        letters = {1: ("i", "...i", "..."), 2: ("io", "...i", "...o")}.get(right.dim())
        if ranks == (3, 3):
            letters = ("gio", "gti", "gto")
        run = lambda w: torch.matmul(left, w)  # noqa: E731
    else:
        letters = {
            (1, 1): ("i", "i", ""), (2, 1): ("oi", "i", "o"), (3, 3): ("goi", "git", "got"),
            (1, "more"): ("i", "...it", "...t"), (2, "more"): ("oi", "...it", "...ot"),
        }.get(ranks)  # fmt: skip
        run = lambda w: torch.matmul(w, right)  # noqa: E731
    return letters and _product(known, letters, weight, activation, run)


def _read_addmm(known, input, mat1, mat2, *, beta=1, alpha=1):
    if beta != 1 or alpha != 1 or not known(mat2) or known(mat1):
        return None
    return _product(
        known, ("io", "...i", "...o"), mat2, mat1, lambda w: torch.addmm(input, mat1, w)
    )


def _read_einsum(known, equation, *operands):
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if (
        not isinstance(equation, str)
        or len(operands) != 2
        or known(operands[0]) == known(operands[1])
    ):
        return None
    terms, arrow, z = equation.replace(" ", "").partition("->")
    if not arrow or terms.count(",") != 1:
        return None
    first, second = terms.split(",")
    which = 0 if known(operands[0]) else 1
    w, a = (first, second) if which == 0 else (second, first)
    if "." in w or a.rfind("...") > 0 or z.rfind("...") > 0 or ("..." in a) != ("..." in z):
        return None
    weight, activation = operands[which], operands[1 - which]
    pair = (lambda v: (v, activation)) if which == 0 else (lambda v: (activation, v))
    return _product(
        known, (w, a, z), weight, activation, lambda v: torch.einsum(equation, *pair(v))
    )


def _read_embedding(
    known,
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    if not known(weight) or known(input) or max_norm is not None or scale_grad_by_freq or sparse:
        return None
    if padding_idx is not None:
        return None  # that row has no gradient: left to autograd
    return _lookup(weight, input)


def _read_index(known, weight, index):
    if (
        not known(weight)
        or not isinstance(index, Tensor)
        or index.dtype not in (torch.int64, torch.int32)
    ):
        return None
    return _lookup(weight, index)


def _lookup(weight: Tensor, index: Tensor) -> _Use:
    rows = len(weight)

    def site(name: str, transposed: bool, shape: torch.Size) -> Site | None:
        if transposed or weight.dim() < 1:
            return None
        width = math.prod(weight.shape[1:])
        return Site(
            name,
            Layout((rows, width), (1, 0), (0, 1)),
            activation=lambda value: (value.long() % rows).reshape(1, -1),
            cotangent=lambda value: value.reshape(1, -1, width),
            shape=shape,
            activation_shape=index.shape,
        )

    return _Use(weight, index, lambda w: w[index], site)


def _conv_reader(spatial: int):
    convolve = (F.conv1d, F.conv2d)[spatial - 1]

    def read(known, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if not known(weight) or known(input) or input.dim() != spatial + 2:
            return None
        kernel = tuple(weight.shape[2:])
        stride, dilation = _each(stride, spatial), _each(dilation, spatial)
        if padding == "valid":
            padding = 0
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            if any(t % 2 for t in total):
                return None  # padded more on one side: left to autograd
            padding = tuple(t // 2 for t in total)
        padding = _each(padding, spatial)
        out_channels, per_group = weight.shape[:2]
        patch = per_group * math.prod(kernel)
        two = [(1,) * (2 - spatial) + s for s in (kernel, dilation, stride)]
        pad = (0,) * (2 - spatial) + padding

        def activation(value: Tensor) -> Tensor:
            image = value if spatial == 2 else value[:, :, None]
            columns = F.unfold(image, two[0], dilation=two[1], padding=pad, stride=two[2])
            columns = columns.reshape(len(value), groups, patch, -1)
            return columns.permute(1, 0, 3, 2).reshape(groups, -1, patch)

        def cotangent(value: Tensor) -> Tensor:
            split = value.reshape(len(value), groups, out_channels // groups, -1)
            return split.permute(1, 0, 3, 2).reshape(groups, -1, out_channels // groups)

        def site(name: str, transposed: bool, shape: torch.Size) -> Site | None:
            layout = Layout((groups, out_channels // groups, patch), (0, 1, 2), (1, 2))
            return Site(name, layout, activation, cotangent, shape, input.shape)

        run = lambda w: convolve(input, w, bias, stride, padding, dilation, groups)  # noqa: E731
        return _Use(weight, input, run, site)

    return read


def _each(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


_TRANSPOSES = {
    torch.t,
    torch.Tensor.t,
    torch.transpose,
    torch.Tensor.transpose,
    torch.Tensor.permute,
    torch.Tensor.T.__get__,
    torch.Tensor.mT.__get__,
}
_READERS = {
    F.linear: _read_linear,
    torch.matmul: _read_matmul, torch.Tensor.matmul: _read_matmul,
    torch.Tensor.__matmul__: _read_matmul, torch.mm: _read_matmul, torch.Tensor.mm: _read_matmul,
    torch.bmm: _read_matmul, torch.Tensor.bmm: _read_matmul,
    torch.Tensor.__rmatmul__: lambda known, right, left: _read_matmul(known, left, right),
    torch.addmm: _read_addmm,
    torch.einsum: _read_einsum,
    F.embedding: _read_embedding,
    torch.Tensor.__getitem__: _read_index,
    F.conv1d: _conv_reader(1), F.conv2d: _conv_reader(2),
}  # fmt: skip
