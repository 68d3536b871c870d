"""The Transformer of modular addition, p = 29: kernels of its nine tensors, and its training.

Kernels are those of the untrained network on all p^2 pairs, in float64; training is in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, vmap

from entk_helpers import empirical_ntk
from entk_helpers.testbeds import modular

from .measure import Contender, Measure
from .mlp import Problem, kernels, rows
from .report import Section, Target

KEY = "d"
TOLERANCE, LOSS_TOLERANCE = 1e-10, 1e-4  # kernels in float64, losses in float32; both relative
AIMS = {"summed-output": 5, "class-averaged": 30}  # seconds
_SMALL = {"p": 5, "d_model": 8, "n_heads": 2, "d_mlp": 16}


def problem(seed: int = 0, **size: int) -> Problem:
    """The untrained network in float64, and all pairs."""
    settings = modular.TransformerSettings(**size)
    model = modular.ModularTransformer(settings.start(seed)[0], settings.n_heads).double()
    return Problem(model, modular.tokens(settings.p))


def structured(at: Problem, reduce: str) -> dict[str, Tensor]:
    return empirical_ntk(at.model, at.x, reduce=reduce, by="tensor")


def jacobians(at: Problem) -> dict[str, Tensor]:
    """The usual recipe for the mean output: Jacobians (11 GB, so 29 at a time), then their mean."""
    params, outputs = _network(at)

    def one(point: Tensor) -> dict[str, Tensor]:
        return {name: j.mean(0).flatten() for name, j in jacrev(outputs)(params, point).items()}

    return {name: g @ g.T for name, g in vmap(one, chunk_size=29)(at.x).items()}


def gradients(at: Problem, reduce: str) -> dict[str, Tensor]:
    """One gradient a point, of the mean output; or of each output in turn, to hold no more."""
    params, outputs = _network(at)
    eye = torch.eye(at.model.W_U.shape[1], dtype=torch.float64)
    K = {name: eye.new_zeros(len(at.x), len(at.x)) for name in params}
    for row in eye.mean(0, keepdim=True) if reduce == "pseudo" else eye / len(eye) ** 0.5:
        one = grad(lambda params, point, row=row: outputs(params, point) @ row)
        for name, g in vmap(one, (None, 0))(params, at.x).items():
            K[name].addmm_(g.flatten(1), g.flatten(1).T)
    return K


def _network(at: Problem) -> tuple[dict[str, Tensor], Callable]:
    params = {name: value.detach() for name, value in at.model.named_parameters()}
    return params, lambda params, point: functional_call(at.model, params, (point[None],))[0]


def one_by_one(at: dict) -> list[modular.ModularRun]:
    return [run for seed in at["seeds"] for run in side_by_side(at | {"seeds": [seed]})]


def side_by_side(at: dict) -> list[modular.ModularRun]:
    return modular.train_transformer_seeds(**at)


def losses(_: dict, runs: list[modular.ModularRun]) -> dict[str, np.ndarray]:
    return {name: np.array([r.history[name] for r in runs]) for name in ("train loss", "test loss")}


def contenders(smoke: bool = False) -> dict[str, list[Contender]]:
    """For each kernel and for training, the reference first."""
    size, small = {"seeds": range(10), "epochs": 20}, {"seeds": range(2), "epochs": 1}
    kernel = problem, kernels, _SMALL if smoke else {}, _SMALL
    training = dict, losses, small if smoke else size, small
    ways = {
        "summed-output": (kernel, {
            "vmap(jacrev), all outputs": jacobians,
            "vmap(grad) of the mean output": partial(gradients, reduce="pseudo"),
            'empirical_ntk(reduce="pseudo")': partial(structured, reduce="pseudo"),
        }),
        "class-averaged": (kernel, {
            "vmap(grad), output by output": partial(gradients, reduce="class_averaged"),
            "empirical_ntk": partial(structured, reduce="class_averaged"),
        }),
        "training": (training, {"one by one": one_by_one, "side by side": side_by_side}),
    }  # fmt: skip
    return {
        what: [Contender(name, prepare, way, facts, *sizes) for name, way in field.items()]
        for what, ((prepare, facts, *sizes), field) in ways.items()
    }


def run(measure: Measure, threads: int, *, smoke: bool = False, **_: bool) -> Iterator[Section]:
    """Measure all contenders and compare their answers with the reference's."""
    for what, field in contenders(smoke).items():
        outcomes, limit = [measure(contender) for contender in field], AIMS.get(what)
        table = rows([c.name for c in field], outcomes, TOLERANCE if limit else LOSS_TOLERANCE)
        if limit:
            n, took = len(outcomes[0].facts["W_E"]), table[-1].seconds
            title = f"{what} kernel of each tensor, one-layer Transformer on {n} pairs"
            aims = [Target(f"{limit} s or less", f"{took:.2f} s", None if smoke else took <= limit)]
        else:
            (seeds, epochs), paper = field[0].size.values(), modular.TransformerSettings()
            steps, n = epochs * math.ceil(paper.n_train / paper.batch_size), len(seeds)
            title, aims = f"{steps} steps of training, {n} seeds of the Transformer", []
            each = 1e3 / steps / n
            table = [replace(r, note=f"{r.seconds * each:.2f} ms a step and seed") for r in table]
        yield Section(KEY, title, threads, table, aims)
