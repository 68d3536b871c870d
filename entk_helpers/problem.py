"""A model, its points and the parameters of interest, checked before anything is differentiated.

A kernel is only as right as its idea of "the output at one point". Here that idea is
fixed once, in :class:`Problem`: ``f(x_n)`` is the model applied to a batch that holds
``x_n`` alone. Everything that would make this ambiguous (dropout, batch statistics,
samples that see each other) is refused with a reason.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .inputs import Inputs, each, leaves, require_dense, require_finite, require_real, take

Params = str | Sequence[str] | None

_UNSEEN = "model's forward runs under torch.no_grad, torch.inference_mode or the like"
_SHARDED = (
    "is sharded over processes; load its full state dict "
    "(torch.distributed.checkpoint.state_dict) into a plain copy of the model"
)
_REMEDIES = {
    "ndarray": "; pass torch.as_tensor({0})",
    "list": "; pass torch.as_tensor({0}), or a tuple for several arguments",
}


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
    verified: set[str] = field(default_factory=set)
    """The ways of taking gradients that gave those of plain autograd."""

    @classmethod
    def check(cls, model: nn.Module, x: Inputs, params: Params = None, *, name: str = "x"):
        """Validate and bind; every refusal is a ValueError that says what would work."""
        model = unwrapped(model)
        n_points = _count_points(x, name)
        x = each(x, Tensor.detach)
        _refuse_modules(model)
        for key, p in model.named_parameters():
            if is_lazy(p):
                raise ValueError(f"parameter {key!r} has no shape yet; call the model once before")
            if hasattr(p, "full_tensor"):
                raise ValueError(f"parameter {key!r} {_SHARDED}")
        # Cloned, so that a model that writes to its buffers or parameters leaves them as they were.
        tensors = {key: p.detach().clone() for key, p in model.named_parameters()}
        if not tensors:
            raise ValueError("model has no parameters, so it has no tangent kernel")
        for key, value in tensors.items():
            if value.is_complex():
                raise ValueError(
                    f"parameter {key!r} is complex; give its real and imaginary parts "
                    "as two real parameters"
                )
            require_finite(value, f"parameter {key!r}")
        chosen = select(model, params)
        for key in chosen:
            if not tensors[key].is_floating_point():
                raise ValueError(
                    f"parameter {key!r} is {tensors[key].dtype} and has no derivative; name others "
                    "through `params`"
                )
        fixed = {key: value for key, value in tensors.items() if key not in chosen}
        fixed |= {key: value.detach().clone() for key, value in model.named_buffers()}
        selected = {key: tensors[key] for key in chosen}
        # Three points are enough to see that one changes another.
        some = take(x, slice(0, 3))
        watch = _Forward(model)
        cuda = {p.device for p in tensors.values() if p.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            with watch:
                alone = [
                    _call(model, selected | fixed, take(x, slice(i, i + 1)))
                    for i in range(min(n_points, 3))
                ]
            together = _call(model, selected | fixed, some)
            again = _differentiably(model, selected | fixed, some)
        real = [t.dtype for t in (*tensors.values(), *leaves(x)) if t.is_floating_point()]
        coarsest = max(torch.finfo(dtype).eps for dtype in real)
        _check_outputs(together, alone, again, coarsest)
        _refuse_hidden(model, watch.hidden, again)
        if not again.requires_grad:
            raise ValueError(f"{_UNSEEN}, so that no parameter has a derivative; take that out")
        return cls(
            model,
            x,
            selected,
            fixed,
            n_points,
            together.shape[1],
            together.dtype,
            together.device,
            max(1, watch.numbers // len(alone)),
        )

    def __call__(self, params: Mapping[str, Tensor], point: Inputs) -> Float[Tensor, " C"]:
        """Outputs at one point, with `params` in place of the bound ones."""
        return _call(self.model, self.fixed | dict(params), take(point, None))[0]

    @torch.no_grad()
    def outputs(self) -> Float[Tensor, "N C"]:
        """Outputs at all points at once."""
        return require_finite(_call(self.model, self.selected | self.fixed, self.x), "model(x)")

    def with_points(self, x2: Inputs) -> Problem:
        """The same model and parameters at other points."""
        other = Problem.check(self.model, x2, list(self.selected), name="x2")
        if other.n_outputs != self.n_outputs:
            raise ValueError(
                f"x2 gives {other.n_outputs} outputs a point and x gives {self.n_outputs}; "
                "a cross kernel needs the same outputs on both sides"
            )
        return other

    def weights(self, class_weight: Tensor | None) -> Float[Tensor, " C"]:
        """`class_weight`, checked, in the precision of the outputs; ones for None."""
        ones = torch.ones(self.n_outputs, dtype=self.dtype, device=self.device)
        if class_weight is None:
            return ones
        require_real(class_weight=class_weight)
        if class_weight.shape != ones.shape:
            raise ValueError(
                f"class_weight must have shape ({self.n_outputs},), one number an output; "
                f"got {tuple(class_weight.shape)}"
            )
        return require_finite(class_weight, "class_weight").detach().to(ones)

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


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, whose parameters have their own names; it may be wrapped for several devices."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def rows_of(output: object) -> object:
    """What a model gives; of a Hugging Face output, its logits."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def select(model: nn.Module, params: Params) -> list[str]:
    """The names of the parameters that `params` asks for, in the model's order.

    A tied parameter has several names; any of them selects it.
    """
    canonical = {id(p): name for name, p in model.named_parameters()}
    if params is None:
        return list(canonical.values())
    aliases = {name: canonical[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    wanted = [params] if isinstance(params, str) else params
    if not (isinstance(wanted, Sequence) and all(isinstance(name, str) for name in wanted)):
        raise TypeError(
            f"params must be None, a name, a glob or a list of them, not {type(params).__name__}"
        )
    if not wanted:
        raise ValueError("params is an empty list; pass None for all parameters, or names or globs")
    found: set[str] = set()
    for pattern in wanted:
        exact = [pattern] if pattern in aliases else []  # a name may look like a glob
        hits = {aliases[a] for a in exact or aliases if exact or fnmatchcase(a, pattern)}
        if not hits:
            close = difflib.get_close_matches(pattern, aliases, n=3, cutoff=0.3)
            close = ", ".join(map(repr, close or list(aliases)[:3]))
            raise ValueError(f"params: {pattern!r} matches no parameter; closest: {close}")
        found |= hits
    return [name for name in canonical.values() if name in found]


def _call(model: nn.Module, tensors: Mapping[str, Tensor], x: Inputs):
    x = each(x, Tensor.clone)  # a model may begin with an in-place operation
    args, kwargs = ((), x) if isinstance(x, dict) else (x, {})
    # One name for each attribute. Left to itself, functional_call also takes the second name of
    # a module that is registered twice, and does not put its parameters back.
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    everywhere = {
        name: tensors[names[id(t)]]
        for prefix, module in model.named_modules()
        for own in (module.named_parameters, module.named_buffers)
        for name, t in own(prefix, recurse=False, remove_duplicate=False)
    }
    # The fused attention kernels lack forward-mode and second derivatives and batching rules;
    # torch.compile (which imports its compiler only when used) would trace the watching as well.
    compiles = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
    with sdpa_kernel(SDPBackend.MATH), eager, _kept_activations():
        return rows_of(functional_call(model, everywhere, args, kwargs, tie_weights=False))


@contextmanager
def _kept_activations() -> Iterator[None]:
    """Let torch.utils.checkpoint do nothing: what it runs a second time has other parameters."""

    def run(function: Callable, preserve_rng_state: bool, *args: object) -> object:
        """What `CheckpointFunction.apply` gives."""
        return function(*args)

    def around(*args: object, **kwargs: object) -> Iterator[None]:
        """A generator that is started and, where the function raises, thrown at."""
        yield

    instead = {
        "CheckpointFunction": SimpleNamespace(apply=run),
        "_checkpoint_without_reentrant_generator": around,
    }
    before = {name: getattr(checkpoint, name) for name in instead if hasattr(checkpoint, name)}
    try:
        for name in before:
            setattr(checkpoint, name, instead[name])
        yield
    finally:
        for name, value in before.items():
            setattr(checkpoint, name, value)


def _count_points(x: Inputs, name: str) -> int:
    tensors = leaves(x) if isinstance(x, Tensor | tuple | dict) else []
    if isinstance(x, dict) and not all(isinstance(key, str) for key in x):
        raise ValueError(f"{name} has the keys {list(x)}; they must name arguments of the model")
    odd = [t for t in tensors if not isinstance(t, Tensor)]
    for t in tensors:
        if isinstance(t, Tensor):
            require_dense(t, name)
    if not tensors or odd or not all(t.dim() > 0 for t in tensors):
        other = type(odd[0] if odd else x)
        mapping = "; pass dict({0})" if isinstance(x, Mapping) and not isinstance(x, dict) else ""
        remedy = _REMEDIES.get(other.__name__, mapping)
        raise ValueError(
            f"{name} must be a tensor with a first dimension of points, or a tuple or dict of such "
            f"tensors; got {other.__name__}" + remedy.format(name)
        )
    sizes = {len(t) for t in tensors}
    if len(sizes) > 1:
        raise ValueError(f"{name}: its tensors have different first dimensions {sorted(sizes)}")
    (n_points,) = sizes
    if n_points == 0:
        raise ValueError(
            f"{name} is empty (shape {tuple(tensors[0].shape)}); pass at least one point"
        )
    for t in tensors:
        require_finite(t, name)
    return n_points


def _refuse_modules(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"model is a {type(model).__name__}, whose parameters cannot be replaced; give the module "
            "that was scripted or traced"
        )
    for name, module in model.named_modules():
        kind = type(module).__name__
        where = f"{kind} at {name!r}"
        if getattr(module, "scale_grad_by_freq", False):
            raise ValueError(
                f"model has {where} with scale_grad_by_freq=True, whose gradients are "
                "no derivatives; set it to False"
            )
        if kind == "FullyShardedDataParallel":
            raise ValueError(f"model has {where}, which {_SHARDED}")
        if module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(
                f"model has {where} with a backward hook, which may make gradients that are no "
                "derivatives; remove it (handle.remove())"
            )
        if getattr(module, "sparse", False) is True:
            raise ValueError(f"model has {where} with sparse=True; set it to False")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training:
                raise ValueError(
                    f"model is in train mode and has {where}, whose statistics come "
                    "from the batch; call model.eval() first"
                )
            if not module.track_running_stats:
                raise ValueError(
                    f"model has {where} with track_running_stats=False: it mixes the "
                    "samples of a batch even in eval mode; keep running statistics"
                )
        elif module.training and (
            (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
            or (isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0)
            or isinstance(module, nn.RReLU)
        ):
            raise ValueError(
                f"model is in train mode and has {where}, which is random; call model.eval() first"
            )


@torch.enable_grad()
def _differentiably(model: nn.Module, tensors: Mapping[str, Tensor], x: Inputs) -> object:
    """Outputs as a function of all parameters."""
    own = {name for name, p in model.named_parameters() if p.is_floating_point()}
    live = {
        name: value.detach().requires_grad_().clone() if name in own else value
        for name, value in tensors.items()
    }
    try:
        return _call(model, live, x)
    except RuntimeError as error:
        if "nference tensor" in str(error):
            raise ValueError(f"{_UNSEEN}, in part; take that out") from error
        if "requires_grad" in str(error):
            raise ValueError(
                "model changes requires_grad of a parameter in forward; do that outside of it, or "
                "choose parameters through `params` (frozen ones count)"
            ) from error
        raise


def _check_outputs(together, alone: list, again, coarsest: float) -> None:
    n = len(alone)
    rows = isinstance(together, Tensor) and together.dim() == 2 and len(together) == n
    if not rows or together.shape[1] == 0:
        got = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
        raise ValueError(
            f"model(x) must give a tensor of shape (N, C); for {n} points it gave {got}. "
            "Wrap the model so that it returns one row of outputs a point"
        )
    if not together.is_floating_point():
        raise ValueError(f"model(x) must give real numbers, not {together.dtype}")
    require_finite(together, "model(x)")
    eps = max(coarsest, torch.finfo(together.dtype).eps)  # a part may be in another precision
    tolerance = min(1e3 * eps, 0.05) * (1 + together.abs().max())
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


def _refuse_hidden(model: nn.Module, hidden: set[str], output: Tensor) -> None:
    """Refuse parameters that a model reaches past `functional_call`, which swaps attributes.

    `output` was computed from detached parameters: a graph that leads to one nevertheless
    comes from a view or a product of it that the model made once and keeps.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if output.requires_grad and own:
        found = torch.autograd.grad(
            output.sum(), list(own.values()), allow_unused=True, retain_graph=True
        )
        hidden = hidden | {n for n, grad in zip(own, found, strict=True) if grad is not None}
    if hidden:
        raise ValueError(
            f"model reaches its parameter {min(hidden)!r} by another way than its attribute (a plain "
            "list, a closure, a view or product made once), which torch.func.functional_call cannot "
            "replace; use the attribute in forward, or an nn.ParameterList"
        )


class _Forward(TorchDispatchMode):
    """Counts the numbers in all new tensors that the operations of a forward pass return.

    Also notes which of the model's own parameters take part, though others stand in for them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._own = {id(p): name for name, p in model.named_parameters()}
        self.numbers = 0
        self.hidden: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = tree_leaves((args, kwargs))
        self.hidden |= {self._own[id(value)] for value in given if id(value) in self._own}
        if not func.is_view and not func._schema.is_mutable:
            self.numbers += sum(v.numel() for v in tree_leaves(out) if isinstance(v, Tensor))
        return out
