"""Which operations are linear in a parameter, and how its gradient follows from them.

Each reader looks at one call of one operation. If it recognises z = W a, linear in a
parameter W and an activation a, it returns a `Use`: what to watch and how to read the
outer products off it. Where anything is unusual (broadcasting, an option, a summed letter)
it returns None, and the parameter is left to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


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
class Use:
    """One candidate: z = run(weight), linear in both the weight and the activation."""

    weight: Tensor
    activation: Tensor
    run: Callable[[Tensor], Tensor]
    site: Callable[[str, bool, torch.Size], Site | None]


def _product(known, letters: tuple[str, str, str], weight, activation, run) -> Use | None:
    """A use that reads z[letters z] = sum W[letters w] a[letters a], "..." leading in a and z."""
    if known(activation) or not activation.is_floating_point():
        return None
    return Use(weight, activation, run, partial(_einsum_site, letters, weight, activation.shape))


def _einsum_site(
    letters: tuple[str, str, str],
    weight: Tensor,
    a_shape: torch.Size,
    name: str,
    transposed: bool,
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
        """The dimensions `have`, in the order that is wanted, as (g, T, last)."""
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
    if known(right):
        weight, activation, run = right, left, lambda w: torch.matmul(left, w)
        letters = {1: ("i", "...i", "..."), 2: ("io", "...i", "...o"), 3: ("gio", "gti", "gto")}
    else:
        weight, activation, run = left, right, lambda w: torch.matmul(w, right)
        letters = {1: ("i", "...it", "...t"), 2: ("oi", "...it", "...ot"), 3: ("goi", "git", "got")}
        if right.dim() == 1:
            letters = {1: ("i", "i", ""), 2: ("oi", "i", "o")}
    found = letters.get(weight.dim())
    return found and _product(known, found, weight, activation, run)


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
    # The padding's row has no gradient: left to autograd.
    unusual = padding_idx is not None or max_norm is not None or scale_grad_by_freq or sparse
    return None if unusual or known(input) or not known(weight) else _lookup(weight, input)


def _read_index(known, weight, index):
    numbers = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
    return _lookup(weight, index) if numbers and known(weight) else None


def _lookup(weight: Tensor, index: Tensor) -> Use:
    rows = len(weight)

    def site(name: str, transposed: bool, shape: torch.Size) -> Site | None:
        """One group, whose inputs are the rows."""
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

    return Use(weight, index, lambda w: w[index], site)


def _read_conv(spatial, known, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
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
    width = len(weight) // groups
    patch = math.prod(weight.shape[1:])
    two = [(1,) * (2 - spatial) + s for s in (kernel, dilation, stride)]
    pad = (0,) * (2 - spatial) + padding

    def activation(value: Tensor) -> Tensor:
        """The patches that the kernel sees, (g, T, i)."""
        image = value if spatial == 2 else value[:, :, None]
        columns = F.unfold(image, two[0], dilation=two[1], padding=pad, stride=two[2])
        columns = columns.reshape(len(value), groups, patch, -1)
        return columns.permute(1, 0, 3, 2).reshape(groups, -1, patch)

    def cotangent(value: Tensor) -> Tensor:
        """The channels at each position, (g, T, o)."""
        split = value.reshape(len(value), groups, width, -1)
        return split.permute(1, 0, 3, 2).reshape(groups, -1, width)

    def site(name: str, transposed: bool, shape: torch.Size) -> Site:
        """Channels in groups, each a product with patches."""
        layout = Layout((groups, width, patch), (0, 1, 2), (1, 2))
        return Site(name, layout, activation, cotangent, shape, input.shape)

    convolve = (F.conv1d, F.conv2d)[spatial - 1]
    run = lambda w: convolve(input, w, bias, stride, padding, dilation, groups)  # noqa: E731
    return Use(weight, input, run, site)


def _each(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


TRANSPOSES = {
    torch.t,
    torch.Tensor.t,
    torch.transpose,
    torch.Tensor.transpose,
    torch.Tensor.permute,
    torch.Tensor.T.__get__,
    torch.Tensor.mT.__get__,
}
READERS = {
    F.linear: _read_linear,
    torch.matmul: _read_matmul, torch.Tensor.matmul: _read_matmul,
    torch.Tensor.__matmul__: _read_matmul, torch.mm: _read_matmul, torch.Tensor.mm: _read_matmul,
    torch.bmm: _read_matmul, torch.Tensor.bmm: _read_matmul,
    torch.Tensor.__rmatmul__: lambda known, right, left: _read_matmul(known, left, right),
    torch.addmm: _read_addmm,
    torch.einsum: _read_einsum,
    F.embedding: _read_embedding,
    torch.Tensor.__getitem__: _read_index,
    F.conv1d: partial(_read_conv, 1), F.conv2d: partial(_read_conv, 2),
}  # fmt: skip
