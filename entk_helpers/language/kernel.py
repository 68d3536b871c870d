"""The logit kernel of one layer of a causal language model, as an operator that only multiplies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn

from ..inputs import parse_bytes, require_finite, require_real
from ..jacobian import OUTPUTS
from ..mode import own_mode
from ..operator import Graph, batched_grad
from .models import Parts, Readout, RightPadded, bare, differentiable, first, linear_map, trace
from .processes import several

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogitKernel:
    """K~ = S^(1/2) J J^T S^(1/2) of N windows, a symmetric (N*d, N*d) operator.

    J is the Jacobian of the final state h (d numbers, after the last norm, at each window's last
    real token) with respect to the weight of one layer's linear map; S = U^T U for the unembedding
    U. The logits are U h, so K~ has the nonzero eigenvalues of their flattened empirical NTK
    (arXiv 2510.00468v4, section 5). Row n*d + j is window n, coordinate j of S^(1/2) h. Positions
    are counted over real tokens, as `generate` does. Where the model caps its logits (Gemma 2), K~
    is that of the logits before the cap; a constant factor on them is part of S.

    ``K @ v`` maps (N*d,) or (N*d, k) to the same shape. ``vjp(u)`` is J^T S^(1/2) u, from the same
    to (P,) or (P, k), with P entries in the layout of the weight (`weight_shape`); ``jvp(v)``
    is S^(1/2) J v, back. `matvecs` counts the columns that K has multiplied; `metric_root` is
    S^(1/2), with the constant factor `scale` of the logits.

    How. The layer's inputs to the map are kept, A (N, T, f); a change of the weight moves its
    outputs Z by A dW^T, and only what comes after them is differentiated: J^T u = (dZ)^T A. Of the
    last layer only keys and values are needed at all positions. The record of that tail is kept
    where `memory` allows it (`kept`), and made anew, some windows at a time, where not.

    Written out, the tail's Jacobian takes d passes backward, and a product is two of matrices from
    then on. That pays where more products follow than d, and N d T o numbers fit: in small models.

    In a process group of `torch.distributed` (started by torchrun), every process is given all
    windows and differentiates its share; only J^T u is summed over processes, and the rows of a
    product are gathered. `top_eigenpairs` keeps the processes together through `agreed`.

    Many models take norms and softmax in float32 whatever their dtype: in float64 they are not
    symmetric to its rounding, which `top_eigenpairs` refuses. Use float32.

    Args:
        model: in float32 or float64, in eval mode; its weights and settings are left as they were.
        input_ids: (N, T), padded on either side where `attention_mask` is 0.
        layer: number of the decoder layer, from 0; negative from the end.
        module: name of an `nn.Linear` or `Conv1D` within the layer.
        memory: what activations and records may take, in bytes or as text.
        written_out: whether the Jacobian of the final states by the map's outputs is written out.

    Raises:
        ValueError: a layer or module that is not there, a weight that is used twice, windows
            without tokens, a model in train mode or half precision, logits that are no linear map
            of h, too little memory (with what is needed), NaN.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> K = LogitKernel(model, grammar.windows_before("cat", 4, seed=0, length=8), layer=-1)
        >>> K.shape, K.weight_shape  # 4 windows of 16 coordinates; 32 inputs, 16 outputs
        ((64, 64), (16, 32))
        >>> (K @ torch.ones(64)).shape, K.matvecs
        (torch.Size([64]), 1)
    """

    @own_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: Int[Tensor, "N T"],
        *,
        attention_mask: Int[Tensor, "N T"] | None = None,
        layer: int,
        module: str = "mlp.down_proj",
        memory: str | int = "1GiB",
        written_out: bool = False,
    ):
        model = bare(model)
        parts = Parts.of(model)
        parts.layer(layer)
        self.layer, self.module = layer % len(parts.layers), module
        linear = linear_map(parts, self.layer, module)
        self._transposed = not isinstance(linear, nn.Linear)  # Conv1D keeps its weight as (f, o)
        self.weight_shape = tuple(linear.weight.shape)
        self.n_parameters = linear.weight.numel()
        self.dtype, self.device, self.matvecs = model.dtype, model.device, 0
        windows = RightPadded.of(input_ids, attention_mask, model.device)
        self._shares = _shares(windows, (self.layer, module, _samples(model)))
        mine = self._shares[dist.get_rank() if several() else 0]
        self._mine = slice(mine.start, mine.stop)
        windows = windows[self._mine]
        self.model, self._stamp = model, _stamp(model)
        # Held, lest another weight comes to lie where one of these lay and gets the same stamp.
        self._weights = [p.detach() for p in model.parameters()]
        with differentiable(model):
            readout = Readout.of(parts, windows[:1])
            self.scale, self.metric_root = readout.scale, readout.metric_root()
            self.n_windows, d = len(input_ids), len(self.metric_root)
            self.shape = (self.n_windows * d, self.n_windows * d)
            tail = _Tail(parts, self.layer, module)
            self._parts, self.kept = _record(tail, windows, parse_bytes(memory), written_out)

    def __matmul__(self, v: Tensor) -> Tensor:
        """K~ @ v."""
        out = self._columnwise(v, self.shape[0], "v", lambda u: self._push(self._pull(u)))
        self.matvecs += v.numel() // self.shape[0]
        return out

    matvec = __matmul__

    def vjp(self, u: Tensor) -> Tensor:
        """J^T S^(1/2) u."""
        return self._columnwise(u, self.shape[0], "u", lambda u: self._laid_out(self._pull(u)))

    def jvp(self, v: Tensor) -> Tensor:
        """S^(1/2) J v."""
        return self._columnwise(v, self.n_parameters, "v", lambda v: self._push(self._taken(v)))

    def agreed(self, v: Tensor) -> Tensor:
        """The first process's v, in all processes."""
        if not several():
            return v
        out = v.detach().to(self.device, copy=True).contiguous()
        dist.broadcast(out, 0)
        return out.to(v.device)

    @own_mode()
    def _columnwise(
        self, v: Tensor, length: int, name: str, multiply: Callable[[Tensor], Tensor]
    ) -> Tensor:
        require_real(**{name: v})
        if v.dim() not in (1, 2) or len(v) != length or v.numel() == 0:
            raise ValueError(
                f"{name} must have shape ({length},) or ({length}, k), got {tuple(v.shape)}"
            )
        require_finite(v, name)
        if _stamp(self.model) != self._stamp:
            raise ValueError(
                "model's weights have changed since its activations were kept; make a new LogitKernel"
            )
        columns = v.to(self.device, self.dtype).reshape(length, -1).T
        # With a record, one by one: measured faster than several at once.
        at_once = len(columns) if isinstance(self._parts[0], _Written) else 1
        with differentiable(self.model):
            out = torch.cat([multiply(some) for some in columns.split(at_once)])
        return require_finite(out, f"the product with {name}").T.reshape(-1, *v.shape[1:])

    def _pull(self, u: Tensor) -> Tensor:
        """(k, N*d) -> (k, o, f), summed over all windows."""
        u = u.unflatten(1, (-1, len(self.metric_root))) @ self.metric_root
        pieces = u[:, self._mine].split([part.n for part in self._parts], dim=1)
        out = sum(part.pull(piece) for part, piece in zip(self._parts, pieces, strict=True))
        if several():
            dist.all_reduce(out)
        return out

    def _push(self, v: Tensor) -> Tensor:
        """(k, o, f) -> (k, N*d)."""
        mine = torch.cat([part.push(v) for part in self._parts], dim=1)  # (k, n, d)
        if several():
            most = max(map(len, self._shares))
            padded = mine.new_zeros(len(mine), most, mine.shape[2])
            padded[:, : mine.shape[1]] = mine
            pieces = [torch.empty_like(padded) for _ in self._shares]
            dist.all_gather(pieces, padded)
            pairs = zip(pieces, self._shares, strict=True)
            mine = torch.cat([piece[:, : len(share)] for piece, share in pairs], dim=1)
        return (mine @ self.metric_root).flatten(1)

    def _laid_out(self, w: Tensor) -> Tensor:
        return (w.mT if self._transposed else w).flatten(1)

    def _taken(self, v: Tensor) -> Tensor:
        v = v.unflatten(1, self.weight_shape)
        return v.mT if self._transposed else v


@dataclass(frozen=True)
class _Part:
    """Some windows with the activations that the tail starts from, ready for products.

    A: inputs of the linear map (n, t, f), t = 1 where only the last position matters; Z: its
    outputs (n, t, o). `graph` is the kept record of the final states as a function of Z.
    """

    A: Tensor
    Z: Tensor
    forward: Callable[[Tensor], Tensor]
    graph: Graph | None = None

    @property
    def n(self) -> int:
        """How many windows."""
        return len(self.A)

    def recorded(self) -> Graph:
        """The kept record, or a new one."""
        live = self.Z.detach().requires_grad_()
        return self.graph or Graph.of(lambda: self.forward(live), {"Z": live})

    def pull(self, u: Tensor) -> Tensor:
        """(k, n, d) -> (k, o, f)."""
        if self.graph:
            moved = self.graph.pull(u.flatten(1))
        else:  # one pass backward; a record would prepare the way forward too
            live = self.Z.detach().requires_grad_()
            with torch.enable_grad():
                final = self.forward(live)
            require_finite(final.detach(), OUTPUTS)
            (moved,) = batched_grad([final], [live], [u])
        A = self.A.flatten(0, 1)
        return moved.reshape(len(u), len(A), -1).mT @ A

    def push(self, v: Tensor) -> Tensor:
        """(k, o, f) -> (k, n, d)."""
        moved = self.A.flatten(0, 1) @ v.mT
        return self.recorded().push(moved.flatten(1)).unflatten(1, (self.n, -1))


@dataclass(frozen=True)
class _Written:
    """Some windows with the tail's Jacobian D (n, d, t * o): final states by the map's outputs."""

    A: Tensor
    D: Tensor

    @classmethod
    def of(cls, part: _Part) -> _Written:
        """Write out what a part records, one coordinate of all final states after the other."""
        graph, n = part.recorded(), part.n
        d = graph.outputs.numel() // n
        D = part.Z.new_empty(n, d, part.Z[0].numel())
        unit = part.Z.new_zeros(1, n, d)
        for j in range(d):
            unit.zero_()[..., j] = 1
            D[:, j] = graph.pull(unit.flatten(1)).reshape(n, -1)
        return cls(part.A, D)

    @property
    def n(self) -> int:
        """How many windows."""
        return len(self.A)

    def pull(self, u: Tensor) -> Tensor:
        """(k, n, d) -> (k, o, f)."""
        A = self.A.flatten(0, 1)
        moved = u.transpose(0, 1) @ self.D  # (n, k, t * o)
        moved = moved.unflatten(2, (self.A.shape[1], -1)).permute(1, 3, 0, 2)
        return moved.flatten(2) @ A

    def push(self, v: Tensor) -> Tensor:
        """(k, o, f) -> (k, n, d)."""
        moved = (self.A.flatten(0, 1) @ v.flatten(0, 1).T).unflatten(1, (len(v), -1))
        moved = moved.unflatten(0, (self.n, -1)).permute(0, 1, 3, 2).flatten(1, 2)  # (n, t * o, k)
        return (self.D @ moved).permute(2, 0, 1)


class _Tail:
    """The model from one layer's linear map on."""

    def __init__(self, parts: Parts, index: int, module: str):
        self.parts, self.index = parts, index
        self.linear = linear_map(parts, index, module)
        self.layers = parts.layers[index:]
        mixing = _attention(self.layers[-1])
        self._inside = mixing is not None and any(m is self.linear for m in mixing.modules())
        self.short = mixing is not None
        """Whether the last layer is run at its last position only."""

    def part(self, windows: RightPadded) -> _Part:
        """Run the model on some windows and keep what the tail starts from."""
        seen = trace(self.parts, windows, {"the linear map": self.linear})
        A, Z = seen.watched["the linear map"]
        if A is None or A.shape[:2] != windows.input_ids.shape:
            raise ValueError(
                "module must act on every position of every window; this one takes inputs of shape "
                f"{None if A is None else tuple(A.shape)} for windows {tuple(windows.input_ids.shape)}"
            )
        weight, bias = self.linear.weight, self.linear.bias
        plain = A @ (weight.T if isinstance(self.linear, nn.Linear) else weight)
        plain = plain if bias is None else plain + bias
        if (plain - Z).abs().max() > 1e-3 * Z.abs().max():
            raise ValueError(
                "module's output is not its weight times its input (is there a hook on it?); the "
                "kernel of its weight cannot be had"
            )
        if self.short and len(self.layers) == 1 and not self._inside:
            A, Z = windows.at_last(A)[:, None], windows.at_last(Z)[:, None]
        calls, after = seen.calls[self.index :], seen.after
        hidden, calls = calls[0].hidden, [(call.args, call.kwargs) for call in calls]
        ready = _Part(A, Z, lambda live: self(live, hidden, windows.last, calls, after))
        try:
            with torch.no_grad():
                apart = (ready.forward(Z) - seen.final).abs().max()
        except (AttributeError, RuntimeError, TypeError):
            if not self.short:
                raise
            apart = torch.inf  # the attention does more with its cache than hand keys over
        if apart <= 1e-3 * seen.final.abs().max():
            return ready
        if self.short:  # a layer of an unusual build: run it whole
            self.short = False
            return self.part(windows)
        raise ValueError(
            f"the layers of {type(self.parts.model).__name__} after layer {self.index}, run again, "
            f"give another final state (off by {apart:.2g}); the model does more than apply them "
            "one after the other, which this kernel does not know"
        )

    def __call__(
        self, Z: Tensor, hidden: Tensor, last: Tensor, calls: list[tuple], after: list
    ) -> Tensor:
        """Final states (n, d) as a function of the linear map's outputs."""
        # A copy in the shape of the map's own outputs, as a layer may go on in the same memory.
        hook = self.linear.register_forward_hook(lambda _, __, out: Z.clone().reshape(out.shape))
        try:
            for i, (layer, (args, kwargs)) in enumerate(zip(self.layers, calls, strict=True)):
                if self.short and i == len(calls) - 1 and (i > 0 or not self._inside):
                    hidden = _run_at(last, layer, hidden, args, kwargs)
                else:
                    hidden = _run(layer, hidden, args, kwargs)
                if i == 0:
                    hook.remove()
        finally:
            hook.remove()
        if hidden.shape[1] > 1:
            hidden = _at(last, hidden, len(hidden), hidden.shape[1])
        for module in after:
            hidden = module(hidden)
        return hidden[:, 0]


def _run(layer: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    return first(layer(hidden, *args, **kwargs))


def _run_at(
    last: Tensor, layer: nn.Module, hidden: Tensor, args: tuple, kwargs: dict[str, Any]
) -> Tensor:
    """A layer's output at each window's last place, (n, 1, d).

    All else in a layer acts on each position alone, so the others are needed as keys and values
    only. They are taken where the attention hands them to its cache, and handed back there.
    """
    keys = _Keys()

    def use_keys(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Give the attention our keys in the place of its cache."""
        return args, kwargs | {"past_key_values": keys}

    hook = _attention(layer).register_forward_pre_hook(use_keys, with_kwargs=True)
    try:
        return _run(layer, hidden, args, kwargs)  # attention without a cache: the whole layer
    except _KeysTaken:
        return _run(layer, *(_at(last, v, *hidden.shape[:2]) for v in (hidden, args, kwargs)))
    finally:
        hook.remove()


class _KeysTaken(Exception):
    """Ends the first pass of `_run_at`."""


class _Keys:
    """Stands in for a cache: takes keys and values of all positions, then gives them back."""

    def __init__(self):
        self._taken: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any):
        """What attention calls."""
        if self._taken is None:
            self._taken = keys, values
            raise _KeysTaken
        return self._taken


def _attention(layer: nn.Module) -> nn.Module | None:
    """The one module of a layer that mixes positions; transformers numbers those that cache."""
    found = [m for m in layer.modules() if m is not layer and hasattr(m, "layer_idx")]
    return found[0] if len(found) == 1 else None


def _at(last: Tensor, value: Any, n: int, length: int) -> Any:
    """What a layer works on (states, rotary angles, masks) at each window's last place alone."""
    if isinstance(value, tuple | list):
        return tuple(_at(last, v, n, length) for v in value)
    if isinstance(value, dict):
        return {key: _at(last, v, n, length) for key, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    rows = torch.arange(n, device=value.device)
    if value.dim() == 4 and value.shape[2] == length:  # a mask, (n or 1, heads or 1, query, key)
        return value.expand(n, -1, -1, -1)[rows, :, last][:, :, None]
    if value.dim() in (2, 3) and value.shape[1] == length:
        return value.expand(n, *value.shape[1:])[rows, last][:, None]
    return value


def _record(
    tail: _Tail, windows: RightPadded, budget: int, written_out: bool
) -> tuple[list[_Part] | list[_Written], bool]:
    """All windows ready for products, and whether what they need is kept between products."""
    n, length = windows.input_ids.shape
    some = windows[: min(2, n)]
    trial = tail.part(some)
    with SavedBytes([trial.A, trial.Z, *tail.parts.model.parameters()]) as held:
        graph = trial.recorded()
    graph.check()
    record = max(1, -(-held.total // len(some)))
    width = tail.parts.model.config.get_text_config().hidden_size
    per_window = (trial.A.numel() + trial.Z.numel()) // len(some) + length * width
    cached = per_window * trial.A.element_size()
    if written_out:
        jacobian = trial.Z[0].nbytes * width
        step = min(n, 64, (budget - n * (cached + jacobian)) // (2 * record))
        if step < 1:
            raise ValueError(
                f"memory={budget:,} bytes is too small: written out, {n} windows take "
                f"{n * (cached + jacobian):,} bytes and the work on one {2 * record:,}; pass "
                f"{n * (cached + jacobian) + 2 * record:,} or more, or written_out=False"
            )
        return [_Written.of(tail.part(windows[i : i + step])) for i in range(0, n, step)], True
    kept = n * (cached + record) + record <= budget
    room = (budget - n * cached) // (2 * record)
    if not kept and room < 1:
        raise ValueError(
            f"memory={budget:,} bytes is too small: the activations of {n} windows take "
            f"{n * cached:,} bytes and the work on one window {2 * record:,}; pass "
            f"{n * cached + 2 * record:,} or more, or fewer windows"
        )
    step = min(n, 64) if kept else min(n, 64, room)
    ready = [tail.part(windows[i : i + step]) for i in range(0, n, step)]
    if kept:
        ready = [replace(w, graph=w.recorded()) for w in ready]
    return ready, kept


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd saves of the tensors made within; `known` ones are left out."""

    def __init__(self, known: Iterable[Tensor]):
        self.total = 0
        # By the storage's own object: on the meta device, storages have no address.
        self._alive = {t.untyped_storage()._cdata: t for t in known}
        super().__init__(self._pack, lambda saved: saved)

    def __enter__(self) -> SavedBytes:
        super().__enter__()
        return self

    def _pack(self, saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive[storage._cdata] = saved.detach()  # kept, else its place is given away
            self.total += storage.nbytes()
        return saved.detach()  # itself, an output would keep its own record alive for ever


def _stamp(model: nn.Module) -> list[tuple[int, int]]:
    """Changes with every change in place of a weight, and where one is replaced."""
    return [(p.data_ptr(), p._version) for p in model.parameters()]


def _samples(model: nn.Module) -> list[list[float]]:
    """A few entries of each weight, by which processes tell that they hold the same model."""
    if not several():
        return []
    return [p.detach().flatten()[:: p.numel() // 16 + 1].tolist() for p in model.parameters()]


def _shares(windows: RightPadded, about: tuple) -> list[range]:
    """Which windows each process differentiates; all must have been given the same things."""
    n = len(windows)
    if not several():
        return [range(n)]
    count = dist.get_world_size()
    given: list = [None] * count
    dist.all_gather_object(given, (windows.input_ids.tolist(), windows.last.tolist(), *about))
    names = ("input_ids", "attention_mask", "layer", "module", "model")
    for name, *values in zip(names, *given, strict=True):
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{name} differs between processes; give each of them the same, with all windows"
            )
    if n < count:  # after the exchange, lest a process with other windows waits for ever
        raise ValueError(f"input_ids has {n} windows for {count} processes; start at most {n}")
    cuts = [n * i // count for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]
