"""The parts of a Hugging Face causal language model, and what it computes at the last token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..inputs import require_dense, require_finite, whole
from ..mode import own_mode
from ..problem import unwrapped

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Parts:
    """Where a model keeps what a kernel needs: its decoder, the decoder's layers, the unembedding."""

    model: PreTrainedModel
    decoder: nn.Module
    layers: nn.ModuleList
    unembedding: nn.Module

    @classmethod
    def of(cls, model: PreTrainedModel) -> Parts:
        """Find the parts by what they are, not by their names.

        Raises ValueError for a model that is no decoder with an unembedding, for one in train mode
        with dropout, and for half precision, in which eigenpairs cannot converge.
        """
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None or not hasattr(model, "get_decoder"):
            raise ValueError(
                f"model, a {type(model).__name__}, is no causal language model with an unembedding; "
                "load it with transformers.AutoModelForCausalLM"
            )
        if any(p.is_inference() for p in model.parameters()):
            raise ValueError(
                "model was made in torch.inference_mode, so that nothing can be differentiated; load it "
                "outside, or give copy.deepcopy(model)"
            )
        if any(map(_drops, model.modules())):
            raise ValueError("model is in train mode and has dropout; call model.eval() first")
        if model.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"model is in {model.dtype}, too coarse for eigenpairs; convert it with model.float()"
            )
        decoder = model.get_decoder()
        if decoder is model:
            raise ValueError(
                f"model, a {type(model).__name__}, does not keep its decoder apart from its unembedding"
            )
        count = model.config.get_text_config().num_hidden_layers
        found = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        if not found:
            raise ValueError(
                f"model, a {type(model).__name__}, has no list of its {count} decoder layers"
            )
        return cls(model, decoder, found[0], head)

    def layer(self, index: int) -> nn.Module:
        """A layer by its number, from 0; negative numbers count from the end."""
        count = len(self.layers)
        if not -count <= whole(index, "layer") < count:
            raise ValueError(f"layer={index} does not exist; the model has layers 0 to {count - 1}")
        return self.layers[index]


def _drops(module: nn.Module) -> bool:
    """Whether a module drops activations at random, by its kind or by a rate that it keeps."""
    rates = (
        [module.p]
        if isinstance(module, nn.Dropout)
        else [v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)]
    )
    return module.training and any(rate > 0 for rate in rates)


@contextmanager
def differentiable(model: PreTrainedModel) -> Iterator[None]:
    """Hold a model's weights fixed and its attention differentiable twice, then put all back.

    The fused kernels of attention have no second derivative; "eager" is plain matrix products. In
    train mode, layers may be made to run a second time for their gradient (checkpointing).
    """
    training = [m for m in model.modules() if m.training]
    trainable = [p for p in model.parameters() if p.requires_grad]
    attention = model.config._attn_implementation
    try:
        for p in trainable:
            p.requires_grad_(False)
        for m in training:
            m.training = False
        model.set_attn_implementation("eager")
        with own_mode():
            yield
    finally:
        model.set_attn_implementation(attention)
        for p in trainable:
            p.requires_grad_()
        for m in training:
            m.training = True


@dataclass(frozen=True)
class RightPadded:
    """Token ids (N, T) with all padding on the right, and each window's last real place (N,).

    A token sees what is before it, so padding on the right needs no mask: positions count real
    tokens, as in `generate`, and no row of an attention pattern is empty.
    """

    input_ids: Int[Tensor, "N T"]
    last: Int[Tensor, " N"]

    @classmethod
    def of(
        cls, input_ids: Tensor, attention_mask: Tensor | None, device: torch.device
    ) -> RightPadded:
        """Take windows as tokenizers give them, padded on either side where the mask is 0.

        Raises ValueError for shapes that do not fit, windows without a real token, and gaps.
        """
        require_dense(input_ids, "input_ids")
        if input_ids.dim() != 2 or input_ids.numel() == 0 or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids must be whole numbers of shape (N, T), got {input_ids.dtype} of "
                f"shape {tuple(input_ids.shape)}"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, and input_ids "
                f"{tuple(input_ids.shape)}; give one entry for each token"
            )
        real = (mask != 0).int().to(input_ids.device)
        length = real.sum(1)
        if not length.all():
            empty = (length == 0).nonzero().flatten().tolist()[:5]
            raise ValueError(f"attention_mask leaves no token in windows {empty}; leave them out")
        end = real.shape[1] - real.flip(1).argmax(1)
        if (end - real.argmax(1) != length).any():
            raise ValueError("attention_mask has padding between real tokens; remove it")
        ids = input_ids.gather(1, real.argsort(dim=1, descending=True, stable=True))
        inside = torch.arange(ids.shape[1], device=ids.device) < length[:, None]
        ids = ids.where(inside, ids[:, :1])  # any real token will do
        return cls(ids.to(device), (length - 1).to(device))

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, rows: slice) -> RightPadded:
        return RightPadded(self.input_ids[rows], self.last[rows])

    def at_last(self, states: Float[Tensor, "n T d"]) -> Float[Tensor, "n d"]:
        """What is at the last real place of each window."""
        return states[torch.arange(len(self), device=states.device), self.last]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a decoder layer, hidden states first."""

    hidden: Tensor
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """One forward pass over aligned windows, without gradients.

    calls: of each layer. after: what the decoder applies after its last layer (a norm), in order.
    watched: name -> (input, output) of the modules asked for. final: the last hidden state (n, d).
    """

    calls: list[Call]
    after: list[nn.Module]
    watched: dict[str, tuple[Tensor | None, Tensor]]
    final: Float[Tensor, "n d"]


@torch.no_grad()
def trace(parts: Parts, windows: RightPadded, watch: dict[str, nn.Module]) -> Trace:
    """Run the decoder and keep what the layers were called with."""
    calls: list[Call] = []
    after: list[nn.Module] = []
    watched: dict[str, tuple[Tensor | None, Tensor]] = {}

    def by_window(value: Tensor) -> Tensor:
        """(n, T, f), also where a model puts the tokens of all windows in one row."""
        flat = value.dim() == 2 and len(value) == windows.input_ids.numel()
        return value.unflatten(0, windows.input_ids.shape) if flat else value

    def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keep what a layer is called with."""
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        calls.append(Call(hidden, args[1:], kwargs))

    def leaving(module: nn.Module, args: tuple, output: Any) -> None:
        """Keep a module that the decoder applies after its last layer."""
        if len(calls) == len(parts.layers):
            after.append(module)

    def watching(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Keep input and output of one module, under a name."""
        if name in watched:
            raise ValueError(f"{name} is used more than once a pass; its kernel is not one term")
        # Copies: a layer may go on in the same memory.
        watched[name] = tuple(
            None if value is None else by_window(value.clone())
            for value in (args[0] if args else None, first(output))
        )

    with ExitStack() as hooks:
        for layer in parts.layers:
            hook = layer.register_forward_pre_hook(entering, with_kwargs=True)
            hooks.callback(hook.remove)
        for child in parts.decoder.children():
            if not isinstance(child, nn.ModuleList):
                hooks.callback(child.register_forward_hook(leaving).remove)
        for name, module in watch.items():
            hooks.callback(module.register_forward_hook(partial(watching, name)).remove)
        output = parts.decoder(input_ids=windows.input_ids, use_cache=False)
    if missing := sorted(watch.keys() - watched.keys()):
        raise ValueError(
            f"{missing[0]} is not called as a module, so that its inputs cannot be seen; name another"
        )
    return Trace(calls, after, watched, windows.at_last(output.last_hidden_state))


def first(output: Any) -> Tensor:
    """The hidden states among what a layer returns."""
    return output if isinstance(output, Tensor) else output[0]


@dataclass(frozen=True)
class States:
    """What a model computes at the last real token of each window.

    residual: after each layer, (L, N, d). mlp: the input of each layer's linear map `module`
    (the MLP's activations), (L, N, f). final: after the last norm, (N, d). logits: (N, V), as the
    model gives them.
    """

    residual: Float[Tensor, "L N d"]
    mlp: Float[Tensor, "L N f"]
    final: Float[Tensor, "N d"]
    logits: Float[Tensor, "N V"]


def bare(model: nn.Module) -> nn.Module:
    """The model itself, which may be compiled or wrapped for several devices."""
    model = unwrapped(model)
    return unwrapped(getattr(model, "_orig_mod", model))


@own_mode()
@torch.no_grad()
def last_token_states(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "N T"],
    attention_mask: Int[Tensor, "N T"] | None = None,
    *,
    module: str = "mlp.down_proj",
    batch: int = 64,
) -> States:
    """Return residual stream, MLP activations, final state and logits at the last real token.

    Positions are counted over real tokens, as `generate` does. On the CPU, whatever the model's
    device. Raises ValueError as `LogitKernel` does.

    Examples:
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> states = last_token_states(model, grammar.token_ids([["a", "cat"], ["the", "dog"]]))
        >>> states.residual.shape, states.mlp.shape, states.final.shape
        (torch.Size([2, 2, 16]), torch.Size([2, 2, 32]), torch.Size([2, 16]))
    """
    model = bare(model)
    parts = Parts.of(model)
    windows = RightPadded.of(input_ids, attention_mask, model.device)
    names = [str(i) for i in range(len(parts.layers))]
    watch = dict(zip(names, parts.layers, strict=True))
    watch |= {f"{name}.{module}": linear_map(parts, int(name), module) for name in names}
    readout = Readout.of(parts, windows[:1])
    residual, mlp, final, out = [], [], [], []
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        seen = trace(parts, some, watch)
        residual.append(torch.stack([some.at_last(seen.watched[n][1]) for n in names]).cpu())
        inputs = [seen.watched[f"{n}.{module}"][0] for n in names]
        mlp.append(torch.stack([some.at_last(a) for a in inputs]).cpu())
        final.append(seen.final.cpu())
        out.append(readout(seen.final).cpu())
    return States(torch.cat(residual, 1), torch.cat(mlp, 1), torch.cat(final), torch.cat(out))


@dataclass(frozen=True)
class Readout:
    """From the final state h to the logits: `scale` (U h + b), then capped smoothly at `cap`."""

    unembedding: nn.Module
    scale: float
    cap: float | None

    @classmethod
    @torch.no_grad()
    def of(cls, parts: Parts, windows: RightPadded) -> Readout:
        """Compare the model's own logits with U h + b on some windows.

        Raises ValueError where neither a constant factor nor `final_logit_softcapping` leads from
        one to the other, and for a model whose states depend on later tokens, padding among them.
        """
        inputs = {"input_ids": windows.input_ids, "use_cache": False}
        theirs = windows.at_last(parts.model(**inputs).logits)
        require_finite(theirs, "the model's logits")
        cap = getattr(parts.model.config.get_text_config(), "final_logit_softcapping", None)
        states = parts.decoder(**inputs).last_hidden_state
        plain = parts.unembedding(windows.at_last(states))
        factor = ((plain * theirs).sum() / plain.square().sum()).item()
        found = cls(parts.unembedding, factor if cap is None else 1.0, cap)
        apart = (found._after(plain) - theirs).abs().max()
        if apart > 1e-3 * theirs.abs().max():
            raise ValueError(
                f"model, a {type(parts.model).__name__}, does more to its logits than a linear map, "
                "a constant factor and a soft cap; its logit kernel is not defined here"
            )
        if windows.input_ids.shape[1] > 1:
            inputs["input_ids"] = windows.input_ids[:, :-1]
            before, states = parts.decoder(**inputs).last_hidden_state, states[:, :-1]
            if (before - states).abs().max() > 1e-3 * states.abs().max():
                raise ValueError(
                    f"model, a {type(parts.model).__name__}, sees tokens that come later; the kernel "
                    "at the last token is that of a causal model"
                )
        return found

    def __call__(self, final: Float[Tensor, "n d"]) -> Float[Tensor, "n V"]:
        """The model's logits."""
        return self._after(self.unembedding(final))

    def _after(self, plain: Tensor) -> Tensor:
        out = self.scale * plain
        return out if self.cap is None else self.cap * torch.tanh(out / self.cap)

    def metric_root(self) -> Float[Tensor, "d d"]:
        """S^(1/2) for S = scale^2 U^T U, so that |S^(1/2) dh| is the change of the (uncapped) logits."""
        U = self.unembedding.weight.detach()
        S = sum(part.T @ part for part in (p.double() for p in U.split(16384)))
        values, vectors = torch.linalg.eigh(S)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return (self.scale * root).to(U.dtype)


def linear_map(parts: Parts, index: int, module: str) -> nn.Module:
    """A layer's linear map by its name within the layer: an `nn.Linear`, or GPT-2's `Conv1D`.

    Raises ValueError for a name that is no such map, with those that are, and for a weight that is
    used elsewhere too, whose kernel would lack terms.
    """
    from transformers.pytorch_utils import Conv1D

    layer = parts.layer(index)
    maps = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    if module not in maps:
        raise ValueError(
            f"module={module!r} is no linear map of layer {index}; there are {', '.join(maps)}"
        )
    weight = maps[module].weight
    if sum(p is weight for _, p in parts.model.named_parameters(remove_duplicate=False)) > 1:
        raise ValueError(
            f"module={module!r} of layer {index} shares its weight with another module"
        )
    return maps[module]


def gemma_3_270m_config() -> PretrainedConfig:
    """The architecture of google/gemma-3-270m (268 M parameters), as its public config states it.

    Examples:
        >>> config = gemma_3_270m_config()
        >>> config.num_hidden_layers, config.hidden_size, config.intermediate_size
        (18, 640, 2048)
    """
    from transformers import Gemma3TextConfig

    layers = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)]
    return Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=layers,
        vocab_size=262144,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
