"""Per-sample Jacobians of any torch module, by parameter group, in a byte budget.

A kernel is only as right as its idea of "the output at one point". Here that idea is
fixed once, in :class:`Problem`: ``f(x_n)`` is the model applied to a batch that holds
``x_n`` alone. Everything that would make this ambiguous (dropout, batch statistics,
samples that see each other) is refused with a reason.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Params = str | Sequence[str] | None

_BatchNorm = nn.modules.batchnorm._BatchNorm
_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


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
    """
    problem = Problem.check(model, x, params)
    groups = problem.groups(by)
    rows = torch.eye(problem.n_outputs, dtype=problem.dtype, device=problem.device)
    size = sum(p.numel() for p in problem.selected.values()) * problem.n_outputs
    # One copy is being filled, one comes out of the backward pass, activations beside them.
    per_sample = (3 * size + problem.n_outputs * problem.activations) * problem.dtype.itemsize
    step = fit(per_sample, memory, limit=problem.n_points)
    blocks: dict[str, list[Tensor]] = {key: [] for key in groups}
    for block in problem.blocks(step):
        gradients = per_sample_rows(problem, problem.selected, block, rows)
        for key, names in groups.items():
            blocks[key].append(torch.cat([gradients[name].flatten(2) for name in names], dim=2))
    out = {key: require_finite(torch.cat(parts), "the Jacobian") for key, parts in blocks.items()}
    return out if by else out[""]


@dataclass(frozen=True)
class Problem:
    """A model, its points and the parameters of interest, checked and ready to differentiate.

    Calling it with a dict of the selected parameters and one point (no batch dimension)
    gives the (C,) outputs at that point.
    """

    model: nn.Module
    x: Inputs
    selected: dict[str, Tensor]
    fixed: dict[str, Tensor]
    n_points: int
    n_outputs: int
    dtype: torch.dtype
    device: torch.device
    activations: int
    """Numbers that one forward pass of one point makes, an upper estimate."""

    @classmethod
    def check(cls, model: nn.Module, x: Inputs, params: Params = None, *, name: str = "x"):
        """Validate and bind; every refusal is a ValueError that says what would work."""
        n_points = _count_points(x, name)
        _refuse_train_mode(model)
        tensors = {key: p.detach() for key, p in model.named_parameters()}
        if not tensors:
            raise ValueError("model has no parameters, so it has no tangent kernel")
        for key, value in tensors.items():
            require_finite(value, f"parameter {key!r}")
        chosen = select(model, params)
        fixed = {key: value for key, value in tensors.items() if key not in chosen}
        # Cloned, so that a module that counts its calls in a buffer is left as it was.
        fixed |= {key: value.detach().clone() for key, value in model.named_buffers()}
        selected = {key: tensors[key] for key in chosen}
        # Three points are enough to see that one changes another.
        some = take(x, slice(0, 3))
        counter = _Activations()
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(model)):
            with counter:
                alone = [_call(model, selected | fixed, take(x, slice(i, i + 1)))
                         for i in range(min(n_points, 3))]
            together = _call(model, selected | fixed, some)
            again = _call(model, selected | fixed, some)
        _check_outputs(together, alone, again)
        return cls(
            model, x, selected, fixed, n_points, together.shape[1], together.dtype,
            together.device, counter.numbers // len(alone),
        )

    def __call__(self, params: Mapping[str, Tensor], point: Inputs) -> Float[Tensor, " C"]:
        return _call(self.model, self.fixed | dict(params), take(point, None))[0]

    def with_points(self, x: Inputs, name: str = "x2") -> Problem:
        """The same model and parameters at other points."""
        other = Problem.check(self.model, x, list(self.selected), name=name)
        if other.n_outputs != self.n_outputs:
            raise ValueError(
                f"{name} gives {other.n_outputs} outputs a point and x gives {self.n_outputs}; "
                "a cross kernel needs the same outputs on both sides"
            )
        return other

    def blocks(self, step: int) -> Iterator[Inputs]:
        """The points in consecutive blocks of at most `step`."""
        for start in range(0, self.n_points, step):
            yield take(self.x, slice(start, start + step))

    def groups(self, by: str | None) -> dict[str, list[str]]:
        """Parameter names by group: {"": all} for None, else by tensor or owning module."""
        if by is None:
            return {"": list(self.selected)}
        if by not in ("tensor", "module"):
            raise ValueError(f'by must be None, "tensor" or "module", not {by!r}')
        groups: dict[str, list[str]] = {}
        for name in self.selected:
            key = name if by == "tensor" else name.rpartition(".")[0]
            groups.setdefault(key, []).append(name)
        return groups


def per_sample_rows(
    problem: Problem, wanted: Mapping[str, Tensor], block: Inputs, rows: Float[Tensor, "R C"]
) -> dict[str, Tensor]:
    """Gradients of rows @ f(x_n) for each point of a block: name -> (n, R, *shape)."""

    def one(point: Inputs) -> dict[str, Tensor]:
        _, pull = vjp(lambda params: problem({**problem.selected, **params}, point), dict(wanted))
        return vmap(lambda row: pull(row)[0])(rows)

    def loop() -> dict[str, Tensor]:
        n = len(next(iter(leaves(block))))
        each = [_one_by_one(problem, wanted, take(block, i), rows) for i in range(n)]
        return {name: torch.stack([gradients[name] for gradients in each]) for name in wanted}

    return vectorised(lambda: vmap(one)(block), otherwise=loop)


def vectorised(attempt: Callable, *, otherwise: Callable):
    """Run a vmapped computation; where vmap cannot follow the model, go the slow way.

    vmap refuses what it cannot do (control flow that depends on data, `.item()`, numpy)
    with an exception and never guesses, so what it returns can be trusted.
    """
    try:
        return attempt()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as refusal:
        result = otherwise()
        reason = str(refusal).strip().partition("\n")[0][:160]
        warnings.warn(
            f"torch.func.vmap cannot follow this model ({reason}); going point by point, "
            "which is right but slow",
            stacklevel=2,
        )
        return result


def _one_by_one(
    problem: Problem, wanted: Mapping[str, Tensor], point: Inputs, rows: Tensor
) -> dict[str, Tensor]:
    """Gradients at one point by plain autograd, for models that vmap cannot follow."""
    with torch.enable_grad():
        live = {name: value.detach().clone().requires_grad_() for name, value in wanted.items()}
        out = problem({**problem.selected, **live}, point)
        per_row = []
        for row in rows:
            grads: Sequence[Tensor | None] = [None] * len(live)
            if out.requires_grad:
                grads = torch.autograd.grad(
                    out, list(live.values()), row, retain_graph=True, allow_unused=True
                )
            per_row.append([
                torch.zeros_like(value) if grad is None else grad
                for grad, value in zip(grads, live.values(), strict=True)
            ])
    return {name: torch.stack(column) for name, column in zip(live, zip(*per_row), strict=True)}


def select(model: nn.Module, params: Params) -> list[str]:
    """The names of the parameters that `params` asks for, in the model's order.

    A tied parameter has several names; any of them selects it.
    """
    names = [name for name, _ in model.named_parameters()]
    if params is None:
        return names
    canonical = {id(p): name for name, p in model.named_parameters()}
    aliases = {
        name: canonical[id(p)] for name, p in model.named_parameters(remove_duplicate=False)
    }
    wanted = [params] if isinstance(params, str) else list(params)
    if not wanted:
        raise ValueError("params is an empty list; pass None for all parameters, or names or globs")
    found: set[str] = set()
    for pattern in wanted:
        hits = {aliases[a] for a in aliases if a == pattern or fnmatchcase(a, pattern)}
        if not hits:
            close = difflib.get_close_matches(pattern, aliases, n=3, cutoff=0.3) or list(aliases)[:3]
            raise ValueError(
                f"params: {pattern!r} matches no parameter; closest: {', '.join(map(repr, close))}"
            )
        found |= hits
    return [name for name in names if name in found]


def parse_bytes(memory: str | int) -> int:
    """Read "1GiB", "600 MB" or a plain number as bytes."""
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise ValueError(f'memory must be bytes or text such as "1GiB", not {memory!r}')
    text = str(memory).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f'memory must be bytes or text such as "1GiB" or "600MB", not {memory!r}')
    value = int(float(match[1]) * _UNITS[match[2]])
    if value < 1:
        raise ValueError(f"memory must be at least one byte, not {memory!r}")
    return value


def fit(per_sample: int, memory: str | int, *, limit: int) -> int:
    """How many points of `per_sample` bytes fit in the budget, at most `limit`."""
    budget = parse_bytes(memory)
    if per_sample > budget:
        raise ValueError(
            f"memory={memory!r} is too small: one point needs about {per_sample:,} bytes; "
            "pass at least that, or fewer parameters through `params`"
        )
    return max(1, min(limit, budget // max(per_sample, 1)))


def leaves(x: Inputs) -> list[Tensor]:
    """The tensors of an input, in order."""
    return [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, dict) else x)


def take(x: Inputs, index: int | slice | None) -> Inputs:
    """Index the first dimension of every tensor; None adds one."""
    if isinstance(x, Tensor):
        return x[index]
    if isinstance(x, dict):
        return {key: value[index] for key, value in x.items()}
    return tuple(value[index] for value in x)


def require_finite(value: Tensor, what: str) -> Tensor:
    """Return `value`, or raise if it holds NaN or Inf."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(
            f"{what} holds {bad} NaN or Inf of {value.numel()} numbers; clean it first "
            "(a result like this means that the model overflows: try float64)"
        )
    return value


def _call(model: nn.Module, tensors: Mapping[str, Tensor], x: Inputs) -> Tensor:
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
    # The fused attention kernels lack forward-mode and second derivatives and batching rules.
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, dict(tensors), args, kwargs)


def _count_points(x: Inputs, name: str) -> int:
    tensors = leaves(x) if isinstance(x, Tensor | tuple | dict) else []
    if not tensors or not all(isinstance(t, Tensor) and t.dim() > 0 for t in tensors):
        raise ValueError(
            f"{name} must be a tensor with a first dimension of points, or a tuple or dict of such "
            f"tensors; got {type(x).__name__}"
        )
    sizes = {len(t) for t in tensors}
    if len(sizes) > 1:
        raise ValueError(f"{name}: its tensors have different first dimensions {sorted(sizes)}")
    (n_points,) = sizes
    if n_points == 0:
        raise ValueError(f"{name} is empty (shape {tuple(tensors[0].shape)}); pass at least one point")
    for t in tensors:
        require_finite(t, name)
    return n_points


def _refuse_train_mode(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = f"{kind} at {name!r}"
        if isinstance(module, _BatchNorm):
            if module.training:
                raise ValueError(f"model is in train mode and has {where}, whose statistics come "
                                 "from the batch; call model.eval() first")
            if not module.track_running_stats:
                raise ValueError(f"model has {where} with track_running_stats=False: it mixes the "
                                 "samples of a batch even in eval mode; keep running statistics")
        elif module.training and (
            (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
            or (isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0)
            or isinstance(module, nn.RReLU)
        ):
            raise ValueError(f"model is in train mode and has {where}, which is random; "
                             "call model.eval() first")


def _check_outputs(together: Tensor, alone: list[Tensor], again: Tensor) -> None:
    n = len(alone)
    if not isinstance(together, Tensor) or together.dim() != 2 or len(together) != n:
        got = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
        raise ValueError(
            f"model(x) must give a tensor of shape (N, C); for {n} points it gave {got}. "
            "Wrap the model so that it returns one row of outputs a point"
        )
    if not together.is_floating_point():
        raise ValueError(f"model(x) must give real numbers, not {together.dtype}")
    require_finite(together, "model(x)")
    tolerance = 1e3 * torch.finfo(together.dtype).eps * (1 + together.abs().max())
    if (together - again).abs().max() > tolerance:
        raise ValueError(
            "two calls of the model on the same points differ: it is random (dropout in train "
            "mode?) or keeps state; call model.eval() first"
        )
    apart = (together - torch.cat(alone)).abs().max()
    if apart > tolerance:
        raise ValueError(
            f"the outputs of a point depend on the other points of its batch (by up to {apart:.2g}): "
            "a per-sample Jacobian is not defined. Remove statistics over the batch from the model"
        )


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.is_cuda})


class _Activations(torch.overrides.TorchFunctionMode):
    """Counts the numbers in all new tensors that the operations of a forward pass return."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D105
        out = func(*args, **(kwargs or {}))
        old = {_storage(value) for value in args if isinstance(value, Tensor)}
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and _storage(value) not in old:
                self.numbers += value.numel()
        return out


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
