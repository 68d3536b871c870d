"""What the eigenpairs of a logit kernel cost in bytes and multiplications, from a model's config.

The layers are run once on PyTorch's meta device, where tensors have shapes and no numbers. So no
weights are needed, and a model of any architecture is counted by what its own code does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..inputs import parse_bytes
from ..operator import Graph
from .kernel import SavedBytes, _attention, _run, _run_at
from .models import Parts, RightPadded, linear_map, trace

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SAMPLE = 2
"""Windows that are run on the meta device, as many as `LogitKernel` tries itself on."""


@dataclass(frozen=True)
class LayerPlan:
    """The cost of one layer's kernel.

    cached_bytes: what is kept of all windows in any case, the linear map's inputs and outputs first.
    graph_bytes: autograd's record of all that comes after the map, for all windows.
    least_bytes: the smallest `memory` that a `LogitKernel` accepts.
    flops_per_product: multiplications and additions of one product with one vector, in this mode.
    products: until all pairs have converged, as on this book's models; a flat spectrum takes more.
    mode: "kept" where the record fits in memory, "recomputed" where it is made anew in each
        product, "too large" where `memory` is less than `least_bytes`.
    """

    layer: int
    cached_bytes: int
    graph_bytes: int
    least_bytes: int
    flops_per_product: int
    products: int
    mode: str

    @property
    def flops(self) -> int:
        """Of all products together."""
        return self.flops_per_product * self.products


def plan(
    config: PretrainedConfig,
    *,
    windows: int,
    length: int,
    layers: Iterable[int] | None = None,
    module: str = "mlp.down_proj",
    pairs: int = 25,
    memory: str | int = "1GiB",
    dtype: torch.dtype = torch.float32,
) -> list[LayerPlan]:
    """Return the cost of each layer's kernel (default: all layers) on `windows` of `length` tokens.

    Matrix products are what is counted: with M tokens, 4 M times the weight of the linear map itself
    (J^T u and J v), and two passes through what comes after it, five where the record is not kept.
    The rest of a layer takes time, but few multiplications.

    Raises ValueError for a layer or module that is not there.
    """
    parts = Parts.of(skeleton(config, dtype))
    budget, size, found = parse_bytes(memory), dtype.itemsize, []
    width = config.get_text_config().hidden_size
    wanted = range(len(parts.layers)) if layers is None else layers
    for n, A, Z, tail in _tails(parts, wanted, module, length):
        cached = (A.numel() + Z.numel()) // SAMPLE * size + length * width * size
        record = -(-tail.bytes // SAMPLE)
        least = windows * cached + 2 * record
        kept = windows * (cached + record) + record <= budget
        passes = tail.pull + tail.push if kept else 2 * tail.record + tail.push
        by_map = 4 * A.shape[1] * A.shape[-1] * Z.shape[-1]
        metric = 4 * width * width  # S^(1/2) before and after
        found.append(
            LayerPlan(
                layer=n,
                cached_bytes=windows * cached,
                graph_bytes=windows * record,
                least_bytes=least,
                flops_per_product=windows * (passes // SAMPLE + by_map + metric),
                products=expected_products(pairs),
                mode="kept" if kept else "recomputed" if least <= budget else "too large",
            )
        )
    return found


def _tails(
    parts: Parts, layers: Iterable[int], module: str, length: int
) -> list[tuple[int, Tensor, Tensor, _Cost]]:
    """Each layer's number, what its linear map takes and gives, and what the tail after it costs."""
    last = len(parts.layers) - 1
    wanted = list(layers)
    for n in wanted:
        parts.layer(n)  # raises for one that is not there
    wanted = [n % (last + 1) for n in wanted]
    with torch.device("meta"):
        ids = torch.zeros(SAMPLE, length, dtype=torch.long)
    sample = RightPadded(ids, ids[:, 0])
    maps = {str(n): linear_map(parts, n, module) for n in wanted}
    # Without a mask, transformers reads positions for packed texts, and there are no numbers here.
    mask = {"attention_mask": torch.ones_like(ids)}
    parts.decoder.register_forward_pre_hook(lambda _, a, k: (a, k | mask), with_kwargs=True)
    seen = trace(parts, sample, maps)
    # One module that mixes positions: then all else of the last layer runs at one position only.
    short = _attention(parts.layers[last]) is not None

    def whole(n: int, hidden: Tensor, at_last: bool) -> Tensor:
        """A layer, at all positions or at the last one."""
        call = seen.calls[n]
        if at_last:
            return _run_at(sample.last, parts.layers[n], hidden, call.args, call.kwargs)
        return _run(parts.layers[n], hidden, call.args, call.kwargs)

    def after_map(n: int, Z: Tensor, at_last: bool) -> Tensor:
        """A layer as a function of its linear map's outputs."""
        hook = maps[str(n)].register_forward_hook(lambda _, __, out: Z.clone().reshape(out.shape))
        try:
            return whole(n, seen.calls[n].hidden, at_last)
        finally:
            hook.remove()

    def norm(hidden: Tensor) -> Tensor:
        """What the decoder applies after its last layer."""
        for module in seen.after:
            hidden = module(hidden)
        return hidden

    known = list(parts.model.parameters())
    costs = {
        n: _Cost.of(lambda x, n=n: whole(n, x, short and n == last), seen.calls[n].hidden, known)
        for n in range(min(wanted) + 1, last + 1)
    }
    costs[last + 1] = _Cost.of(norm, seen.final[:, None], known)
    found = []
    for n in wanted:
        A, Z = seen.watched[str(n)]
        mixing = _attention(parts.layers[n])
        at_last = short and n == last and all(m is not maps[str(n)] for m in mixing.modules())
        if at_last:
            A, Z = A[:, -1:], Z[:, -1:]
        own = _Cost.of(lambda z, n=n, at=at_last: after_map(n, z, at), Z, [Z, *known])
        found.append((n, A, Z, sum((costs[m] for m in range(n + 1, last + 2)), own)))
    return found


@dataclass(frozen=True)
class _Cost:
    """Of a piece of a model: bytes of its record; multiplications to make it, and each way."""

    bytes: int
    record: int
    pull: int
    push: int

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(
            self.bytes + other.bytes,
            self.record + other.record,
            self.pull + other.pull,
            self.push + other.push,
        )

    @classmethod
    def of(cls, piece: Callable[[Tensor], Tensor], start: Tensor, known: list[Tensor]) -> _Cost:
        """Record a piece on the meta device, and go through it both ways."""
        live = start.detach().requires_grad_()
        with SavedBytes(known) as saved, _Flops() as record:
            graph = Graph.of(lambda: piece(live), {"start": live})
        with _Flops() as pull:
            graph.pull(torch.zeros(1, graph.outputs.numel(), device="meta", dtype=live.dtype))
        with _Flops() as push:
            graph.push(torch.zeros(1, live.numel(), device="meta", dtype=live.dtype))
        return cls(saved.total, record.total, pull.total, push.total)


class _Flops(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products.

    By PyTorch's own rules, without the modules that its FlopCounterMode follows: these hook into the
    record, which then refuses to be differentiated for its inputs alone.
    """

    def __init__(self):
        self.total = 0
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if rule := flop_registry.get(func.overloadpacket):
            self.total += rule(*args, **(kwargs or {}), out_val=out)
        return out


def expected_products(pairs: int) -> int:
    """Return about how many products `top_eigenpairs` needs for a residual of 1e-3, one at a time.

    Counted on a grammar model's kernels: 23 to 30 for 4 pairs, 44 to 51 for 10, 83 to 102 for 25.
    """
    return 17 + 10 * pairs // 3


def skeleton(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the model of a config without its weights, on the meta device."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", trust_remote_code=False
        )
    return model.eval().requires_grad_(False)


def weight_bytes(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes of a model's weights; tied ones count once."""
    return sum(p.numel() for p in skeleton(config, dtype).parameters()) * dtype.itemsize


def solver_bytes(rows: int, pairs: int, dtype: torch.dtype = torch.float32) -> int:
    """Return what `top_eigenpairs` keeps: a basis, its image, and both once more at a restart."""
    return 2 * (max(2 * pairs + 16, 60) + pairs + 4) * rows * dtype.itemsize


def matmul_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.3
) -> float:
    """Return the multiplications and additions a second of large matrix products, measured."""
    a, b = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((2048, 640), (640, 2048)))

    def wait() -> None:
        """Until the device has done what it was given."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    a @ b
    wait()
    start, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        for _ in range(4):
            a @ b
        wait()
        done += 4
    return done * 2 * a.numel() * b.shape[1] / taken
