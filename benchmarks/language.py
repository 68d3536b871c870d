"""Language models: a product with a logit kernel at full size, eigenpairs of a small Gemma.

Weights are random; the kernel is that of one layer's `mlp.down_proj`, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from entk_helpers import top_eigenpairs
from entk_helpers.language.kernel import LogitKernel
from entk_helpers.language.models import gemma_3_270m_config

from . import lanczos
from .clock import timed
from .measure import Contender, Measure
from .mlp import rows
from .report import Section, Target

KEY = "e"
TOLERANCE = 1e-5  # of a product in float32
TOL = 1e-3  # residual of each pair relative to its eigenvalue
FASTER, SECONDS = 20, 15  # what is aimed at, in layer 16 and in each layer of the small Gemma
LAYERS = {False: (16,), True: (8, 12, 16, 17)}  # of 18; True: --full
WINDOWS = {"windows": 8, "length": 64}  # few: either way takes time in proportion
SMALL = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "initializer_range": 0.0625,
    "windows": 256, "length": 32,
}  # fmt: skip
TINY = SMALL | {"hidden_size": 16, "intermediate_size": 24, "windows": 6, "length": 8}


class Outputs(nn.Module):
    """S^(1/2) h at the last position, (N, T) -> (N, d), through the whole model."""

    def __init__(self, model: nn.Module):
        super().__init__()
        U = model.get_output_embeddings().weight
        values, vectors = torch.linalg.eigh((U.T @ U).double())
        self.decoder, self.root = model.get_decoder(), ((vectors * values.sqrt()) @ vectors.T).to(U)

    def forward(self, ids: Tensor) -> Tensor:
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1] @ self.root


class WholeModel:
    """K~ by the public code's route: a product is one vjp and one jvp through the whole model."""

    def __init__(self, model: nn.Module, ids: Tensor, layer: int):
        self.outputs, self.ids = Outputs(model), ids
        self.name = f"decoder.layers.{layer}.mlp.down_proj.weight"
        self.weight = self.outputs.get_parameter(self.name)
        self.shape = (len(ids) * len(self.outputs.root),) * 2

    def __matmul__(self, v: Tensor) -> Tensor:
        out, pull = vjp(self._forward, self.weight)
        return jvp(self._forward, (self.weight,), pull(v.view_as(out)))[1].flatten()

    def _forward(self, weight: Tensor) -> Tensor:
        return functional_call(self.outputs, {self.name: weight}, (self.ids,))


class GaussNewton:
    """J^T S J by curvlinops, P x P for P weights: the nonzero eigenvalues of K~."""

    def __init__(self, model: nn.Module, ids: Tensor, layer: int):
        from curvlinops import GGNLinearOperator

        whole = WholeModel(model, ids, layer)
        data = [(ids, torch.zeros(len(ids), len(whole.outputs.root)))]
        loss, params = nn.MSELoss(reduction="sum"), [whole.weight.requires_grad_()]
        self._twice = GGNLinearOperator(whole.outputs, loss, params, data)  # as (x^2)'' is 2
        self.shape, self.matvecs = self._twice.shape, 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.matvecs += v.numel() // len(v)
        return (self._twice @ v) / 2


def problem(
    kind: Callable, layer: int, windows: int, length: int, k: int = 0, seed: int = 0, **config: Any
) -> SimpleNamespace:
    """A kernel of a Gemma with random weights on random tokens, and how many pairs to find."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    settings = Gemma3TextConfig(**gemma_3_270m_config().to_dict() | config)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    ids = torch.randint(settings.vocab_size, (windows, length))
    setup = timed(lambda: kind(model.requires_grad_(False), ids, layer=layer), 1)
    return SimpleNamespace(operator=setup.answer, setup=setup, k=k)


def multiply(at: SimpleNamespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return at.operator @ torch.randn(at.operator.shape[0], generator=generator)


def product(at: SimpleNamespace, answer: Tensor) -> dict[str, Any]:
    setup = f"after {at.setup.runs[0]:.1f} s and {at.setup.peak_mb:,.0f} MB to set it up"
    return {"product": answer.numpy(), "note": setup}


def ours(at: SimpleNamespace) -> lanczos.Pairs:
    pairs = top_eigenpairs(at.operator, at.k, tol=TOL, block=1)
    return pairs.values, pairs.vectors


def contenders(smoke: bool = False, full: bool = False) -> dict[tuple[str, int], list[Contender]]:
    """For each task and layer, the reference first."""
    arpack = partial(lanczos.arpack, tol=TOL)
    kinds = {"vjp + jvp, whole model": WholeModel, "LogitKernel": LogitKernel}
    products = [(name, kind, multiply) for name, kind in kinds.items()]
    solvers = [
        ("scipy eigsh (ARPACK)", LogitKernel, arpack),
        ("top_eigenpairs", LogitKernel, ours),
        (f"Lanczos, fixed {lanczos.STEPS} steps", LogitKernel, lanczos.fixed_steps),
        ("scipy eigsh, curvlinops' J^T S J", GaussNewton, arpack),
    ][: None if full or smoke else -1]
    tasks = [("product", layer, products, product, WINDOWS) for layer in LAYERS[full]]
    layers = range(2, 3) if smoke else range(4)
    tasks += [("pairs", layer, solvers, lanczos.facts, SMALL | {"k": 25}) for layer in layers]
    fields = {}
    for task, layer, ways, facts, size in tasks:
        small = TINY | {"layer": layer % 4, "k": 2}
        sizes = (small if smoke else size | {"layer": layer}), small
        prepared = [(name, partial(problem, kind), way) for name, kind, way in ways]
        fields[task, layer] = [Contender(*first, facts, *sizes) for first in prepared]
    return fields


def run(
    measure: Measure, threads: int, *, smoke: bool = False, full: bool = False, **_: bool
) -> Iterator[Section]:
    """Measure all contenders and compare their answers with the reference's."""
    for (task, layer), field in contenders(smoke, full).items():
        outcomes, at = [measure(contender) for contender in field], field[0].size
        if task == "product":
            notes = [out.facts.pop("note") for out in outcomes]
            table = rows([c.name for c in field], outcomes, TOLERANCE)
            table = [replace(row, note=note) for row, note in zip(table, notes, strict=True)]
            what, model, faster = "a product with", "Gemma 3 270M", table[1].speed_up
            aims = [(f"{FASTER}x faster", f"{faster:.1f}x", faster >= FASTER)] * (layer == 16)
        else:
            table, worst = lanczos.rows(field, outcomes, 2 * TOL), outcomes[1].facts["worst"]
            what, model, took = f"top {at['k']} eigenpairs of", "small Gemma", table[1].seconds
            measured = f"{took:.1f} s ({table[1].cpu_seconds:.1f} s of CPU time)"
            aims = [
                (f"under {SECONDS} s", measured, took < SECONDS),
                (f"every residual below {TOL:.0e} of its eigenvalue", f"{worst:.1e}", worst <= TOL),
            ]
        title = (
            f"{what} the logit kernel of layer {layer}, {'tiny Gemma' if smoke else model}, "
            f"random weights, {at['windows']} windows of {at['length']} tokens"
        )
        targets = [Target(*words, None if smoke else met) for *words, met in aims]
        yield Section(KEY, title, threads, table, targets)
