"""Per-sample Jacobians of any torch module, by parameter group, in a byte budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vjp, vmap

from .inputs import Inputs, blocks, fit, leaves, require_finite, take
from .mode import own_mode
from .problem import Params, Problem

# Checked at every point: an output that is NaN may have a gradient of zero.
OUTPUTS = "the model's output"


@own_mode()
def jacobian(
    model: nn.Module,
    x: Inputs,
    *,
    params: Params = None,
    by: str | None = None,
    memory: str | int = "1GiB",
) -> Float[Tensor, "N C P"] | dict[str, Float[Tensor, "N C _"]]:
    """Return J[n, c, :], the gradient of output c at point n.

    Args:
        model: maps N points to outputs of shape (N, C), each point on its own.
        x: a tensor, tuple or dict of tensors with the same first dimension N;
            a tuple is passed as ``model(*x)``, a dict as ``model(**x)``.
        params: None for all parameters (frozen ones too), a name, a glob such as
            ``"layers.*.weight"``, or a list of them.
        by: None for one tensor with the P columns in the order of
            ``model.named_parameters()``; ``"tensor"`` or ``"module"`` for a dict whose
            values, side by side, are those columns.
        memory: bytes for intermediate results ("1GiB", "600MB" or a number); the
            Jacobian itself comes on top.

    Raises:
        ValueError: for anything that would make the result wrong or ambiguous.

    Examples:
        >>> model = torch.nn.Linear(2, 1)
        >>> jacobian(model, torch.tensor([[3.0, 4.0]]))  # of w.x + b: x, and 1 for b
        tensor([[[3., 4., 1.]]])
    """
    problem = Problem.check(model, x, params)
    groups = problem.groups(by)
    rows = torch.eye(problem.n_outputs, dtype=problem.dtype, device=problem.device)
    size = sum(p.numel() for p in problem.selected.values()) * problem.n_outputs
    # One copy is being filled, one comes out of the backward pass, activations beside them.
    per_point = (3 * size + problem.n_outputs * problem.activations) * problem.dtype.itemsize
    step = fit(per_point, memory, limit=problem.n_points)
    width = {key: sum(problem.selected[n].numel() for n in names) for key, names in groups.items()}
    out = {key: rows.new_empty(problem.n_points, len(rows), p) for key, p in width.items()}
    for block in blocks(problem.n_points, step):
        gradients = per_sample_rows(problem, problem.selected, take(problem.x, block), rows)
        for key, names in groups.items():
            torch.cat([gradients[name] for name in names], dim=2, out=out[key][block])
    for value in out.values():
        require_finite(value, "the Jacobian")
    return out if by else out[""]


def per_sample_rows(
    problem: Problem, wanted: Mapping[str, Tensor], block: Inputs, rows: Float[Tensor, "R C"]
) -> dict[str, Tensor]:
    """Gradients of rows @ f(x_n) for each point of a block: name -> (n, R, P)."""

    def one(point: Inputs) -> tuple[dict[str, Tensor], Tensor]:
        """Those at one point, name -> (R, *shape), and the outputs."""
        out, pull = vjp(lambda params: problem({**problem.selected, **params}, point), dict(wanted))
        return vmap(lambda row: pull(row)[0])(rows), out

    def together() -> dict[str, Tensor]:
        """Those at all points, at once."""
        gradients, outputs = vmap(one)(block)
        require_finite(outputs, OUTPUTS)
        found = {name: g[0].reshape(len(rows), -1) for name, g in gradients.items()}
        verify("rows", problem, block, rows, lambda mix: {n: mix @ g for n, g in found.items()})
        return gradients

    def loop() -> dict[str, Tensor]:
        """Those at all points, one after the other."""
        points = [take(block, i) for i in range(len(leaves(block)[0]))]
        found = [_one_by_one(problem, wanted, point, rows) for point in points]
        return {name: torch.stack([gradients[name] for gradients in found]) for name in wanted}

    return matrices(vectorised(together, otherwise=loop))


def matrices(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(n, R, *shape) -> (n, R, P), for scalars too."""
    return {name: g[..., None].flatten(2) for name, g in gradients.items()}


def vectorised(attempt: Callable, *, otherwise: Callable):
    """Run a vmapped computation; where vmap cannot follow the model, go the slow way.

    vmap refuses what it cannot do (control flow that depends on data, `.item()`, numpy) with
    an exception; for operations that it takes wrongly, see `verify`.
    """
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as refusal:
        result = otherwise()
        reason = str(refusal).strip().partition("\n")[0][:160]
        warnings.warn(
            f"torch.func.vmap cannot follow this model ({reason}); going point by point, "
            "which is right but slow",
            stacklevel=2,
        )
        return result


def verify(
    way: str,
    problem: Problem,
    block: Inputs,
    rows: Float[Tensor, "R C"],
    mixed: Callable[[Tensor], Mapping[str, Tensor]],
) -> None:
    """Raise RuntimeError unless plain autograd finds the same gradients at the block's first point.

    Some rules by which torch batches a backward pass are wrong (that of `torch.cdist` is, in
    2.13), and nothing says so. `mixed` maps factors (R,) to the gradients of that combination of
    rows, name -> (P,). Done once for each problem and way.
    """
    if way in problem.verified:
        return
    mix = torch.randn(len(rows), generator=torch.Generator().manual_seed(0), device="cpu").to(rows)
    found = mixed(mix)
    wanted = {name: problem.selected[name] for name in found}
    plain = _one_by_one(problem, wanted, take(block, 0), (mix @ rows)[None])
    plain = {name: gradient.flatten() for name, gradient in plain.items()}
    eps = torch.finfo(rows.dtype).eps
    size = sum(gradient.norm() for gradient in plain.values())
    for name, gradient in plain.items():
        apart = (found[name] - gradient).norm()
        if not apart <= max(0.01, 30 * eps) * gradient.norm() + eps**0.5 * size:
            raise RuntimeError(f"its gradients by {name!r} differ from those of plain autograd")
    problem.verified.add(way)


def _one_by_one(
    problem: Problem, wanted: Mapping[str, Tensor], point: Inputs, rows: Tensor
) -> dict[str, Tensor]:
    """Gradients at one point by plain autograd, for models that vmap cannot follow."""
    with torch.enable_grad():
        live = {name: value.detach().clone().requires_grad_() for name, value in wanted.items()}
        out = problem({**problem.selected, **live}, point)
    require_finite(out.detach(), OUTPUTS)
    if not out.requires_grad:
        return {name: value.new_zeros(len(rows), *value.shape) for name, value in wanted.items()}
    by_row = [
        torch.autograd.grad(
            out, list(live.values()), row, retain_graph=True, materialize_grads=True
        )
        for row in rows
    ]
    return dict(zip(live, map(torch.stack, zip(*by_row, strict=True)), strict=True))
