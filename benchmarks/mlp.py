"""The 2p-H-p network of modular addition at its initialisation, and its kernels tensor by tensor.

f(x) = W2 (W1 x / sqrt(2p))^2 / H on all N = p^2 one-hot pairs, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from entk_helpers import empirical_ntk, quadratic_ntk
from entk_helpers.testbeds.modular import ModularMLP, pairs

from .measure import ROOT, Contender, Measure, Outcome, Worker, difference
from .report import Row, Section, Target

TOLERANCE = 1e-5  # of a float32 kernel, relative to its largest entry
KEY = "a"
SIZE = {"p": 29, "width": 512}
SMOKE = {"p": 5, "width": 16}
_SMALL = {"p": 3, "width": 8}
JAX = ROOT / ".venv-jax"  # made by `make bench`, with versions that work together


@dataclass(frozen=True)
class Problem:
    """A network and its points."""

    model: nn.Module
    x: Tensor


def problem(p: int, width: int, seed: int = 0) -> Problem:
    """The network with standard normal weights, and all pairs (a, b), row a * p + b."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (width, 2 * p), (p, width)
    W1, W2 = (torch.randn(shape, generator=generator) for shape in shapes)
    return Problem(ModularMLP(W1, W2), pairs(p))


def structured(at: Problem) -> dict[str, Tensor]:
    """What this package does: outer products, never written out."""
    return empirical_ntk(at.model, at.x, by="tensor")


def jacrev_einsum(at: Problem) -> dict[str, Tensor]:
    """The usual recipe: the Jacobian of every point, written out, then contracted."""

    def one(params: dict[str, Tensor], point: Tensor) -> Tensor:
        return functional_call(at.model, params, (point[None],))[0]

    params = {name: value.detach() for name, value in at.model.named_parameters()}
    J = vmap(jacrev(one), (None, 0))(params, at.x)
    flat = {name: j.flatten(2) for name, j in J.items()}
    return {name: torch.einsum("ncp,mcp->nm", j, j) / j.shape[1] for name, j in flat.items()}


def closed_form(at: Problem) -> dict[str, Tensor]:
    """The formula of this one network."""
    return quadratic_ntk(at.model.W1, at.model.W2, at.x)


def kernels(at: Problem, answer: dict[str, Tensor]) -> dict:
    """The answer, ready to be compared."""
    return {name: K.detach().numpy() for name, K in answer.items()}


def contenders(smoke: bool = False) -> list[Contender]:
    """Reference first."""
    ways = {
        "vmap(jacrev) + einsum": jacrev_einsum,
        'empirical_ntk(by="tensor")': structured,
        "quadratic_ntk (closed form)": closed_form,
    }
    size = SMOKE if smoke else SIZE
    return [Contender(name, problem, way, kernels, size, _SMALL) for name, way in ways.items()]


def neural_tangents(smoke: bool = False) -> Worker | None:
    """The same by neural-tangents, which needs an old jax; None without its environment."""
    return jax_worker(problem(**(SMOKE if smoke else SIZE))) if has_jax() else None


def has_jax() -> bool:
    """Whether there is an environment with neural-tangents; one line says so where there is none."""
    if there := (JAX / ".ready").exists():
        return there
    reason = f"no {JAX.name}; `make bench` makes it, and {JAX.name}/log says why it could not"
    print(f"  left out: neural-tangents ({reason})", file=sys.stderr)
    return False


def jax_worker(at: Problem, network: str = "quadratic", name: str = "neural-tangents") -> Worker:
    """The kernel of a problem by neural-tangents; the worker knows the network by its name."""
    inputs = dict(at.model.named_parameters()) | {"x": at.x}
    arrays = {name: value.detach().numpy() for name, value in inputs.items()}
    arrays |= {"network": np.array(network)}
    return Worker(name, JAX / "bin" / "python", "benchmarks._neural_tangents", arrays)


def run(measure: Measure, threads: int, *, smoke: bool = False, **_: bool) -> list[Section]:
    """Measure all contenders and compare their kernels with the reference's."""
    field: list[Contender | Worker] = [*contenders(smoke)]
    if worker := neural_tangents(smoke):
        field.append(worker)
    outcomes = [measure(contender) for contender in field]
    table = rows([contender.name for contender in field], outcomes, TOLERANCE)
    p, width = (SMOKE if smoke else SIZE).values()
    title = f"class-averaged kernel of each tensor, {2 * p}-{width}-{p} MLP on {p * p} points"
    versions = {name: v for out in outcomes for name, v in out.versions.items()}
    return [Section(KEY, title, threads, table, targets(*table[1:3], smoke), versions)]


def rows(names: Sequence[str], outcomes: Sequence[Outcome], tolerance: float) -> list[Row]:
    """How long each contender took and how far off it is, beside the first of them."""
    reference = outcomes[0]
    return [
        Row(
            _name(name, out.versions),
            out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb,
            reference.seconds / out.seconds,
            float(np.max([difference(out.facts[n], K) for n, K in reference.facts.items()])),
            tolerance,
        )
        for name, out in zip(names, outcomes, strict=True)
    ]  # fmt: skip


def _name(name: str, versions: dict[str, str]) -> str:
    """As "neural-tangents X (jax Y)": its own version first, then what it runs on."""
    if not versions:
        return name
    own, *others = versions.items()
    return f"{name} {own[1]} ({', '.join(' '.join(other) for other in others)})"


def targets(ours: Row, closed: Row, smoke: bool) -> list[Target]:
    """How our kernel does beside the dense route and beside the closed form."""
    fast, small = ours.speed_up >= 50, ours.peak_mb < 600
    ratio, cpu_ratio = ours.seconds / closed.seconds, ours.cpu_seconds / closed.cpu_seconds
    beside = f"{ratio:.1f}x ({cpu_ratio:.1f}x the CPU time)"
    aims = [
        ("50x faster", f"{ours.speed_up:.1f}x", fast),
        ("under 600 MB", f"{ours.peak_mb:.0f} MB", small),
        ("structured within 5x of the closed form", beside, ratio <= 5),
    ]
    return [Target(text, measured, None if smoke else met) for text, measured, met in aims]
