"""Empirical neural tangent kernels: all reductions, whole and layer by layer.

K_cd(x, x') = sum over parameters mu of (d f_c(x)/d theta_mu) (d f_d(x')/d theta_mu).
The gradients come from `structure.py` as sums of outer products wherever the model allows
it, and are contracted here without being written out: for one position,
<b a^T, b' a'^T> = (b.b')(a.a').
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .inputs import Inputs, blocks, fit, parse_bytes, require_finite, require_real, take
from .mode import own_mode
from .problem import Params, Problem
from .progress import progress_bar
from .structure import Outer, Plan, gradients, read_plan

Reduce = Literal["full", "per_class", "class_averaged", "pseudo"]


@own_mode()
def empirical_ntk(
    model: nn.Module,
    x: Inputs,
    x2: Inputs | None = None,
    *,
    reduce: Reduce = "class_averaged",
    params: Params = None,
    by: str | None = None,
    class_weight: Float[Tensor, " C"] | None = None,
    memory: str | int = "1GiB",
    progress: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Return the empirical NTK of a model between the points `x` and `x2` (default: `x`).

    With C outputs, N points in x and M in x2, `reduce` gives

    - ``"full"``: (N, M, C, C), every pair of outputs;
    - ``"per_class"``: (C, N, M), the diagonal blocks K_cc;
    - ``"class_averaged"``: (N, M), (1/C) sum_c K_cc: a mean, not a trace, so that
      eigenvalues scale with 1/C;
    - ``"pseudo"``: (N, M), (1/C^2) sum_cd K_cd, the kernel of the mean output (the
      'summed-output' kernel of arXiv 2510.00468, up to the factor).

    Args:
        model: maps N points to outputs of shape (N, C), each point on its own.
        x, x2: a tensor, or a tuple or dict of tensors, with the points along dimension 0.
        params: None for all parameters (frozen ones too), a name, a glob, a list of them.
        by: ``"tensor"`` or ``"module"`` for a dict of kernels that add up to the whole.
        class_weight: (C,) multiplies the Jacobian's rows, e.g. ``importance ** (tau / 2)``.
        memory: bytes for intermediate results; the kernels themselves come on top.
        progress: show a bar in the terminal.

    Raises:
        ValueError: for anything that would make the kernel wrong or ambiguous: empty or
            non-finite data, outputs that are not (N, C), dropout or batch statistics in
            train mode, unknown parameter names, a budget too small for one point.

    Examples:
        >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> empirical_ntk(model, x)  # x.x' + 1
        tensor([[2., 1.],
                [1., 5.]])
        >>> empirical_ntk(model, x, by="tensor")["bias"]  # the 1 alone
        tensor([[1., 1.],
                [1., 1.]])
    """
    if reduce not in get_args(Reduce):
        raise ValueError(f"reduce must be one of {', '.join(get_args(Reduce))}, not {reduce!r}")
    left = Problem.check(model, x, params)
    right = left if x2 is None else left.with_points(x2)
    groups = {name: key for key, names in left.groups(by).items() for name in names}
    weight = left.weights(class_weight)
    # The combinations of outputs to differentiate: their mean, or one a class.
    rows = weight[None] / len(weight) if reduce == "pseudo" else torch.diag(weight)
    plan, budget = read_plan(left), parse_bytes(memory)
    points, classes = _step(
        left, plan, reduce, len(rows), max(left.n_points, right.n_points), memory
    )
    shape = {
        "full": (left.n_points, right.n_points, *[len(rows)] * 2),
        "per_class": (len(rows), left.n_points, right.n_points),
    }.get(reduce, (left.n_points, right.n_points))
    kernels = {
        key: torch.zeros(shape, dtype=left.dtype, device=left.device) for key in groups.values()
    }
    class_blocks = blocks(len(rows), classes)
    steps = len(class_blocks) * len(blocks(left.n_points, points))
    with progress_bar(steps, "kernel", show=progress) as bar:
        for some in class_blocks:
            for a, b, mine, theirs in _pairs(left, right, plan, rows[some], points):
                where = (some, a, b) if reduce == "per_class" else (a, b)
                for name in [name for name in mine if name in theirs]:
                    kernel = kernels[groups[name]]
                    part = _contract(mine[name], theirs[name], reduce, budget // 4)
                    kernel[where] += part
                    if right is left and a != b:
                        _mirror(kernel, reduce)[where] += part
                bar.update(b.stop == right.n_points)
    for key, kernel in kernels.items():
        if reduce == "class_averaged":
            kernel /= len(rows)
        require_finite(kernel, f"the kernel{f' of {key!r}' if by else ''}")
    return kernels if by else kernels[""]


@own_mode()
def compressed_ntk(
    model: nn.Module,
    x: Inputs,
    Q: Float[Tensor, "N q"],
    *,
    params: Params = None,
    memory: str | int = "1GiB",
) -> Float[Tensor, "C C q q"]:
    """Q^T K_cd Q for every pair of classes, as from `NTKOperator.compress`.

    One pass backward for each class serves all columns of Q: the factors of the gradients are
    summed over points with the weights in Q. The sums, (C * q, P), come on top of `memory`.

    Examples:
        >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> compressed_ntk(model, x, torch.ones(2, 1)).item()  # all entries of x.x' + 1
        9.0
    """
    problem = Problem.check(model, x, params)
    n, classes = problem.n_points, problem.n_outputs
    require_real(Q=Q)
    if Q.dim() != 2 or len(Q) != n or not Q.numel():
        raise ValueError(f"Q must have shape ({n}, q), one row a point, got {tuple(Q.shape)}")
    Q = require_finite(Q, "Q").detach().to(problem.device, problem.dtype)
    plan, rows = read_plan(problem), torch.diag(problem.weights(None))
    points, _ = _step(problem, plan, "pseudo", classes, n, memory)
    sums: dict[str, Tensor] = {}
    for block in blocks(n, points):
        found = gradients(problem, plan, take(problem.x, block), rows)
        for name, gradient in found.items():
            part = _weighted_sums(gradient, Q[block])
            sums[name] = sums[name].add_(part) if name in sums else part
    size = classes * Q.shape[1]
    gram = sum((J @ J.T for J in sums.values()), Q.new_zeros(size, size))
    gram = gram.unflatten(0, (classes, -1)).unflatten(2, (classes, -1)).transpose(1, 2)
    return require_finite(gram, "Q^T K Q")


def flatten_kernel(K: Float[Tensor, "N M C C"]) -> Float[Tensor, "NC MC"]:
    """(N, M, C, C) -> (N*C, M*C); row n*C + c is point n, output c.

    Examples:
        >>> K = empirical_ntk(torch.nn.Linear(2, 3), torch.ones(4, 2), reduce="full")
        >>> K.shape, flatten_kernel(K).shape
        (torch.Size([4, 4, 3, 3]), torch.Size([12, 12]))
        >>> flatten_kernel(K)[:3, 3:6]  # points 0 and 1: x.x' + 1 for equal outputs, else 0
        tensor([[3., 0., 0.],
                [0., 3., 0.],
                [0., 0., 3.]])
    """
    require_real(K=K)
    if K.dim() != 4 or K.shape[2] != K.shape[3]:
        raise ValueError(
            f'K must have shape (N, M, C, C), as reduce="full" gives; got {tuple(K.shape)}'
        )
    n, m, c, _ = K.shape
    return K.permute(0, 2, 1, 3).reshape(n * c, m * c)


def _pairs(
    left: Problem, right: Problem, plan: Plan, rows: Tensor, step: int
) -> Iterator[tuple[slice, slice, dict[str, Outer | Tensor], dict[str, Outer | Tensor]]]:
    """Blocks of points on both sides, with their gradients; of mirror images, one."""
    for a in blocks(left.n_points, step):
        mine = gradients(left, plan, take(left.x, a), rows)
        for b in blocks(right.n_points, step):
            if right is left and b == a:
                yield a, b, mine, mine
            elif right is not left or b.start > a.start:
                yield a, b, mine, gradients(right, plan, take(right.x, b), rows)


def _step(
    problem: Problem, plan: Plan, reduce: Reduce, n_rows: int, n_points: int, memory: str | int
) -> tuple[int, int]:
    """How many points and how many rows to take at a time within the budget.

    Classes are cut first where the reduction treats them one by one: cutting points costs
    repeated backward passes, cutting classes only repeated forward passes.
    """
    item = problem.dtype.itemsize

    def per_point(classes: int) -> int:
        """Bytes for one point and so many rows."""
        held = sum(p.numel() for p in plan.dense.values()) * classes
        for name in plan.names():
            sites = [site for site in plan.sites if site.name == name]
            held += sum(s.activation_shape.numel() + 2 * classes * s.shape.numel() for s in sites)
            g, o, i = sites[0].layout.shape()
            positions = sum(s.shape.numel() for s in sites) // (g * o)
            mixed = any(s.layout != sites[0].layout for s in sites)
            if mixed or _prefer_dense(max(1, positions), g, o, i, classes, reduce):
                held += (1 + mixed) * classes * g * o * i
        # Two blocks of gradients at a time, and one pass forward and back in the making.
        return item * (2 * held + (2 + 2 * classes) * problem.activations)

    budget = parse_bytes(memory) * 3 // 4
    classes = n_rows
    if reduce in ("class_averaged", "per_class"):
        while classes > 1 and per_point(classes) * n_points > budget:
            classes = (classes + 1) // 2
    need = per_point(classes)
    most = fit(-(-need * 4 // 3), memory, limit=n_points)
    # The block of the kernel itself, its parts and its mirror image: 4 copies, for p^2 pairs.
    pair = 4 * item * {"full": n_rows**2, "per_class": classes}.get(reduce, 1)
    points = int(2 * budget / (need + math.sqrt(need**2 + 4 * pair * budget)))
    return max(1, min(most, points)), classes


def _weighted_sums(f: Outer | Tensor, Q: Tensor) -> Tensor:
    """Gradients summed over points with each column of Q: (R * q, P), P in any one order."""
    if isinstance(f, Outer) and f.A.is_floating_point():
        sums = torch.einsum("nrgto,nkgti->rkgoi", f.B, torch.einsum("nk,ngti->nkgti", Q, f.A))
    else:
        f = f.dense() if isinstance(f, Outer) else f
        sums = torch.einsum("nk,nrp->rkp", Q, f)
    return sums.flatten(0, 1).flatten(1)


def _prefer_dense(t: int, g: int, o: int, i: int, rows: int, reduce: Reduce) -> bool:
    """Whether writing the gradients out costs fewer products a pair than the Gram route."""
    pairs = rows**2 if reduce == "full" else rows
    return t * t * g * (i + pairs * o) > pairs * g * o * i


def _contract(f: Outer | Tensor, h: Outer | Tensor, reduce: Reduce, budget: int) -> Tensor:
    """Inner products of two blocks of gradients of one parameter, over (n, m) and classes."""
    if isinstance(f, Outer) and isinstance(h, Outer):
        t = max(f.B.shape[3], h.B.shape[3])
        g, o, i = f.layout.shape()
        if reduce == "class_averaged":
            f, h = _one_row(f, h)
        if not _prefer_dense(t, g, o, i, f.B.shape[1], reduce):
            return _contract_outer(f, h, reduce, budget)
    f = f.dense() if isinstance(f, Outer) else f
    h = h.dense() if isinstance(h, Outer) else h
    if reduce == "per_class":
        return torch.einsum("nrp,mrp->rnm", f, h)
    if reduce == "full":
        return torch.einsum("nrp,msp->nmrs", f, h)
    return f.flatten(1) @ h.flatten(1).T


def _one_row(f: Outer, h: Outer) -> tuple[Outer, Outer]:
    """The same sums over outputs from one row, where outputs differ by a factor a unit only.

    Before a last linear layer, unit o has b_co = w_co g_o with w the same for all points.
    With w of norm one over c, g = sum_c w_c b_c, and what b has beyond w g is orthogonal to
    it: the kernel loses that part's energy and no cross terms. If this is above rounding at
    any position of any point, nothing is changed; nor where squares under- or overflow.
    """
    uses, kind = (f,) if h is f else (f, h), torch.finfo(f.B.dtype)
    tol = 16 * kind.eps
    peak = max(float(extreme.abs()) for use in uses for extreme in use.B.aminmax())
    if tol > 1e-4 or not kind.tiny**0.4 < peak < kind.tiny**-0.4:  # half precision; squares
        return f, h
    energies = [_sum_of_products(use.B, use.B.transpose(0, 1)) for use in uses]  # (n, g, t, o)
    where = energies[0].transpose(1, 2).flatten(0, 1).argmax(0)  # n*T + t of each unit (g, o)
    g, o = (where >= 0).nonzero(as_tuple=True)
    n, t = where.flatten() // f.B.shape[3], where.flatten() % f.B.shape[3]
    w = f.B[n, :, g, t, o].T.unflatten(1, where.shape)  # (R, g, o)
    w = w / w.norm(dim=0).clamp(min=torch.finfo(w.dtype).tiny)
    rows = []
    for use, energy in zip(uses, energies, strict=True):
        one = _sum_of_products(use.B, w[:, None, :, None])
        lost = (energy - one.square()).sum(-1)  # (n, g, t): each has one activation
        if not (lost <= tol * energy.sum(-1)).all():
            return f, h
        rows.append(Outer(use.A, one[:, None], use.layout))
    return rows[0], rows[-1]


def _sum_of_products(B: Tensor, factors: Tensor) -> Tensor:
    """Sum over rows of B (n, R, g, T, o) times `factors` (R, ...), with no copy of B."""
    total = torch.zeros_like(B[:, 0])
    for b, factor in zip(B.unbind(1), factors, strict=True):
        total.addcmul_(b, factor)
    return total


def _contract_outer(f: Outer, h: Outer, reduce: Reduce, budget: int) -> Tensor:
    """sum_tt' (a_t.a'_t')(b_t.b'_t'), in strips of points that fit the budget."""
    n, rows, g, t, _ = f.B.shape
    m, _, _, s, _ = h.B.shape
    copies = rows**2 if reduce == "full" else 1
    strip = budget // max(1, g * t * m * s * (1 + 2 * copies) * f.B.element_size())
    if f is h and reduce != "full":
        strip = min(strip, -(-n // 4))  # the strips below the diagonal are all that is needed
    keep = rows if reduce == "per_class" else 1
    shape = (n, m, rows, rows) if reduce == "full" else (keep, n, m)
    out = f.B.new_empty(shape)
    for a in blocks(n, max(1, strip)):
        b = slice(0, a.stop) if f is h and reduce != "full" else slice(0, m)
        aa = _activation_gram(f.A[a], h.A[b])
        if reduce == "full":
            bb = torch.einsum("nrgto,mqgso->gntmsrq", f.B[a], h.B)
            aa = aa.reshape(g, t, -1, s, m).permute(0, 2, 1, 4, 3)[..., None, None]
            out[a] = bb.mul_(aa).sum((0, 2, 4))
            continue
        for k in range(keep):
            bb = torch.zeros_like(aa, dtype=f.B.dtype)
            for r in range(rows) if keep == 1 else [k]:
                bb.baddbmm_(_positions_first(f.B[a, r]), _positions_first(h.B[b, r]).mT)
            part = bb.mul_(aa).reshape(g * t, -1, s, b.stop).sum(0).sum(1)
            out[k, a, b] = part
            if f is h:
                out[k, b, a] = part.T
    return out if reduce in ("full", "per_class") else out[0]


def _activation_gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (g, t*n, s*m) of activations, or equality of row numbers."""
    if a.is_floating_point():
        return _positions_first(a) @ _positions_first(b).mT
    a, b = (rows.permute(1, 2, 0).flatten(1) for rows in (a, b))
    return a[:, :, None] == b[:, None, :]


def _positions_first(value: Tensor) -> Tensor:
    """(n, g, t, i) -> (g, t*n, i): sums over positions then run along the points."""
    return value.permute(1, 2, 0, 3).flatten(1, 2)


def _mirror(kernel: Tensor, reduce: Reduce) -> Tensor:
    """The same kernel, seen with the points of both sides exchanged."""
    return kernel.permute(1, 0, 3, 2) if reduce == "full" else kernel.mT
