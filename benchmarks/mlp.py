"""The 2p-H-p network of modular addition at its initialisation, and its kernels tensor by tensor.

f(x) = W2 (W1 x / sqrt(2p))^2 / H on all N = p^2 one-hot pairs, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from entk_helpers import empirical_ntk

from .measure import Contender, Measure, difference
from .report import Row, Section, Target

TOLERANCE = 1e-5  # of a float32 kernel, relative to its largest entry
KEY = "a"
SIZE = {"p": 29, "width": 512}
SMOKE = {"p": 5, "width": 16}
_SMALL = {"p": 3, "width": 8}


class QuadraticMLP(nn.Module):
    """f(x) = W2 (W1 x / sqrt(2p))^2 / H, with standard normal weights."""

    def __init__(self, p: int, width: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W1 = nn.Parameter(torch.randn(width, 2 * p, generator=generator))
        self.W2 = nn.Parameter(torch.randn(p, width, generator=generator))

    def hidden(self, x: Tensor) -> Tensor:
        """W1 x / sqrt(2p)."""
        return x @ self.W1.T / self.W1.shape[1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x) ** 2 @ self.W2.T / self.W1.shape[0]


@dataclass(frozen=True)
class Problem:
    """A network and its points."""

    model: QuadraticMLP
    x: Tensor


def problem(p: int, width: int, seed: int = 0) -> Problem:
    """The network and all pairs (a, b), row a * p + b."""
    one = torch.eye(p)
    x = torch.cat([one.repeat_interleave(p, 0), one.repeat(p, 1)], dim=1)
    return Problem(QuadraticMLP(p, width, seed), x)


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


@torch.no_grad()
def closed_form(at: Problem) -> dict[str, Tensor]:
    """The formula of this one network, in float64: K1 and K2 with u = W1 x / sqrt(2p).

    K2 = (u^2 . u'^2) / H^2 and K1 = (x . x' / 2p) (4 / H^2) sum_h u_h u'_h mean_c W2_ch^2.
    """
    x, u, W2 = at.x.double(), at.model.hidden(at.x).double(), at.model.W2.double()
    width, inputs = at.model.W1.shape
    first = (x @ x.T / inputs) * ((u * (W2**2).mean(0)) @ u.T) * 4 / width**2
    return {"W1": first, "W2": u**2 @ (u**2).T / width**2}


def kernels(at: Problem, answer: dict[str, Tensor]) -> dict:
    """The answer, ready to be compared."""
    return {name: K.detach().numpy() for name, K in answer.items()}


def contenders(smoke: bool = False) -> list[Contender]:
    """Reference first."""
    ways = {
        "vmap(jacrev) + einsum": jacrev_einsum,
        'empirical_ntk(by="tensor")': structured,
        "closed form (float64)": closed_form,
    }
    size = SMOKE if smoke else SIZE
    return [Contender(name, problem, way, kernels, size, _SMALL) for name, way in ways.items()]


def run(measure: Measure, threads: int, *, smoke: bool = False, **_: bool) -> list[Section]:
    """Measure all contenders and compare their kernels with the reference's."""
    field = contenders(smoke)
    outcomes = [measure(contender) for contender in field]
    reference = outcomes[0]
    rows = [
        Row(
            contender.name, out.seconds, len(out.runs), out.cpu_seconds, out.peak_mb,
            reference.seconds / out.seconds,
            max(difference(out.facts[name], K) for name, K in reference.facts.items()),
            TOLERANCE,
        )
        for contender, out in zip(field, outcomes, strict=True)
    ]  # fmt: skip
    p, width = (SMOKE if smoke else SIZE).values()
    title = f"class-averaged kernel of each tensor, {2 * p}-{width}-{p} MLP on {p * p} points"
    return [Section(KEY, title, threads, rows, _targets(rows[1], smoke))]


def _targets(ours: Row, smoke: bool) -> list[Target]:
    fast, small = ours.speed_up >= 50, ours.peak_mb < 600
    return [
        Target("50x faster", f"{ours.speed_up:.1f}x", None if smoke else fast),
        Target("under 600 MB", f"{ours.peak_mb:.0f} MB", None if smoke else small),
    ]
