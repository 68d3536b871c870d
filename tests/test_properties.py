"""What must hold for every model: symmetries, sums, reorderings, budgets, against plain autograd.

Models are drawn; `tests/conftest.py` says how to draw more of them.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import plain_jacobian, reduced

from entk_helpers import NTKOperator, empirical_ntk, flatten_kernel, jacobian, linearised

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
REDUCTIONS = ("full", "per_class", "class_averaged", "pseudo")
ACTIVATIONS = {"tanh": nn.Tanh, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Tokens(nn.Module):
    """An embedding, one head of attention whose weights are drawn raw, a tied or free read-out."""

    def __init__(self, vocabulary: int, width: int, outputs: int, tied: bool):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.qkv = nn.Parameter(torch.randn(3, width, width))
        self.norm = nn.LayerNorm(width)
        self.read = None if tied else nn.Linear(width, outputs)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (self.norm(x) @ w for w in self.qkv)
        x = (x + (q @ k.mT).softmax(-1) @ v).mean(1)
        return x @ self.embed.weight.T if self.read is None else self.read(x)


@dataclass
class Drawn:
    """A model, points and more points for it, and what to ask about them."""

    model: nn.Module
    x: Tensor
    x2: Tensor
    params: str | list[str] | None
    class_weight: Tensor | None

    @property
    def options(self):
        return {"params": self.params, "class_weight": self.class_weight}

    def jacobian(self, points: Tensor | None = None) -> Tensor:
        """(N, C, P) by a backward pass for each point and output, weighted."""
        J = plain_jacobian(self.model, self.x if points is None else points)
        names = [n for n in J if self.params is None or n in self.params]
        J = torch.cat([J[n] for n in names], dim=2)
        return J if self.class_weight is None else J * self.class_weight[:, None]

    def kernel(self, **options):
        return empirical_ntk(self.model, self.x, **self.options | options)


@st.composite
def problems(draw) -> Drawn:
    size = st.integers(1, 4)
    n, m, inputs, width, outputs = (draw(size) for _ in range(5))
    act, bias = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))], draw(st.booleans())
    kind = draw(st.sampled_from(["linear", "conv", "tokens"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 2**20)))
        if kind == "linear":
            layers = [nn.Linear(inputs, width, bias), act(), nn.Linear(width, width, bias), act()]
            model = nn.Sequential(
                *layers[: draw(st.sampled_from([2, 4]))], nn.Linear(width, outputs)
            )
            points = torch.randn(n + m, inputs)
        elif kind == "conv":
            groups = draw(st.sampled_from([1, 2]))
            stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
            model = nn.Sequential(
                nn.Conv1d(2, 2 * width, 2, stride, 1, dilation, groups, bias), act(),
                nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, outputs, bias),
            )  # fmt: skip
            points = torch.randn(n + m, 2, 5)
        else:
            model = Tokens(5, width, outputs, draw(st.booleans()))
            points = torch.randint(0, 5, (n + m, 3))
        model = model.double().eval()
        outputs = model(points if kind == "tokens" else points.double()).shape[1]
        weight = torch.randn(outputs, dtype=torch.float64) if draw(st.booleans()) else None
    points = points if kind == "tokens" else points.double()
    names = [name for name, _ in model.named_parameters()]
    chosen = st.lists(st.sampled_from(names), min_size=1, unique=True)
    params = draw(st.none() | chosen)
    for p in draw(st.just(model).map(lambda m: list(m.parameters()))):
        p.requires_grad_(draw(st.booleans()))
    return Drawn(model, points[:n], points[n:], params, weight)


def close(got, expected, tolerance=1e-10):
    assert got.shape == expected.shape and got.isfinite().all()
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


def plainly(J, J2):
    return torch.einsum("ncp,mdp->nmcd", J, J2)


def unfrozen(problem):
    """The oracle differentiates by what requires a gradient; the package by all that it is told."""
    for p in problem.model.parameters():
        p.requires_grad_()
    return problem


@given(problems(), st.sampled_from(REDUCTIONS))
def test_every_reduction_is_its_contraction_of_plain_gradients(problem, reduce):
    K = problem.kernel(reduce=reduce)
    cross = problem.kernel(reduce=reduce, x2=problem.x2)
    J, J2 = (unfrozen(problem).jacobian(points) for points in (problem.x, problem.x2))
    close(K, reduced(plainly(J, J), reduce))
    close(cross, reduced(plainly(J, J2), reduce))


@given(problems())
def test_the_jacobian_is_that_of_plain_autograd(problem):
    J = jacobian(problem.model, problem.x, params=problem.params)
    pieces = jacobian(problem.model, problem.x, params=problem.params, by="tensor")
    problem.class_weight = None
    close(J, unfrozen(problem).jacobian())
    close(torch.cat(list(pieces.values()), dim=2), J, 0)


@given(problems(), st.sampled_from(REDUCTIONS), st.sampled_from(["tensor", "module"]))
def test_kernels_of_groups_of_parameters_add_up_to_the_whole(problem, reduce, by):
    parts = problem.kernel(reduce=reduce, by=by)
    close(sum(parts.values()), problem.kernel(reduce=reduce))


@given(problems())
def test_the_flattened_kernel_is_symmetric_and_has_no_negative_eigenvalue(problem):
    K = flatten_kernel(problem.kernel(reduce="full"))
    close(K, K.T, 1e-14)
    values = torch.linalg.eigvalsh(K)
    assert values[0] >= -1e-12 * values[-1].clamp(min=1e-12)


@given(problems())
def test_a_cross_kernel_is_the_other_one_transposed(problem):
    there = problem.kernel(reduce="full", x2=problem.x2)
    problem.x, problem.x2 = problem.x2, problem.x
    close(there, problem.kernel(reduce="full", x2=problem.x2).permute(1, 0, 3, 2))


@given(problems())
def test_the_kernel_of_joined_points_has_the_kernels_of_both_as_blocks(problem):
    n, reduce = len(problem.x), "class_averaged"
    joined = torch.cat([problem.x, problem.x2])
    whole = empirical_ntk(problem.model, joined, reduce=reduce, **problem.options)
    close(whole[:n, :n], problem.kernel(reduce=reduce))
    close(whole[:n, n:], problem.kernel(reduce=reduce, x2=problem.x2))


@given(problems(), st.randoms(use_true_random=False))
def test_reordered_points_give_the_reordered_kernel(problem, random):
    order = random.sample(range(len(problem.x)), len(problem.x))
    K = problem.kernel(reduce="per_class")
    problem.x = problem.x[order]
    close(problem.kernel(reduce="per_class"), K[:, order][:, :, order])


class Then(nn.Module):
    """A model, then a fixed linear map of its outputs."""

    def __init__(self, model: nn.Module, change: Tensor):
        super().__init__()
        self.model = model
        self.register_buffer("change", change)

    def forward(self, x):
        return self.model(x) @ self.change


@given(problems(), st.randoms(use_true_random=False), st.sampled_from([-3.0, 0.5, 1e4]))
def test_outputs_that_are_reordered_and_scaled_do_the_same_to_the_kernel(problem, random, scale):
    """f -> s f P: K -> s^2 P^T K P, in both pairs of indices."""
    problem.class_weight, problem.params = None, None
    K = problem.kernel(reduce="full")
    order = random.sample(range(K.shape[2]), K.shape[2])
    problem.model = Then(problem.model, scale * torch.eye(K.shape[2]).double()[:, order])
    close(problem.kernel(reduce="full"), scale**2 * K[..., order, :][..., order])


@given(problems(), st.sampled_from([-2.0, 1e-3]))
def test_class_weights_multiply_rows(problem, scale):
    c = problem.model(problem.x).shape[1]
    weight = scale * torch.arange(1, c + 1).double()
    K = empirical_ntk(problem.model, problem.x, reduce="full", params=problem.params)
    weighted = problem.kernel(reduce="full", class_weight=weight)
    close(weighted, K * weight[:, None] * weight)


@given(problems(), st.sampled_from(REDUCTIONS), st.integers(1, 3))
def test_the_least_budget_that_is_accepted_gives_the_same_kernel(problem, reduce, factor):
    try:
        problem.kernel(reduce=reduce, memory=1)
    except ValueError as refusal:
        need = int(str(refusal).split("needs about ")[1].split()[0].replace(",", ""))
    close(problem.kernel(reduce=reduce, memory=factor * need), problem.kernel(reduce=reduce))


@given(problems(), st.integers(1, 3))
def test_the_operator_multiplies_as_the_flattened_kernel(problem, columns):
    operator = NTKOperator(problem.model, problem.x, **problem.options)
    J = unfrozen(problem).jacobian().flatten(0, 1)
    u, v = torch.ones(len(J), columns).double(), torch.ones(J.shape[1], columns).double()
    u[::2], v[::3] = -2, 0.5
    close(operator @ u, J @ (J.T @ u))
    close(operator.jvp(v), J @ v)
    close(operator.vjp(u), J.T @ u)


@given(problems())
def test_a_displacement_of_zero_changes_no_output_and_two_add_up(problem):
    problem.class_weight = None
    size = sum(p.numel() for p in problem.model.parameters())
    a, b = torch.ones(size).double(), torch.arange(size).double()
    f, fa, fb, fab = (linearised(problem.model, problem.x, d) for d in (0 * a, a, b, a + b))
    close(f, problem.model(problem.x).detach(), 1e-14)
    close(fab - f, (fa - f) + (fb - f))
