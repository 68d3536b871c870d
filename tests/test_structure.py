"""Gradients come out as outer products, or written out, and are right both ways."""

import pytest
import torch
from zoo import build, plain_jacobian, relative

from entk_helpers.problem import Problem
from entk_helpers.structure import Outer, gradients, read_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


@pytest.mark.parametrize("name", ["convolutions", "tied transformer", "used twice, transposed"])
def test_gradients_written_out_are_those_of_autograd(name):
    model, x = build(name)
    problem = Problem.check(model, x)
    plan = read_plan(problem)
    assert plan.sites
    rows = torch.randn(2, problem.n_outputs, dtype=torch.float64)
    J = plain_jacobian(model, x)
    for key, gradient in gradients(problem, plan, x, rows).items():
        dense = gradient if isinstance(gradient, torch.Tensor) else gradient.dense()
        assert relative(dense, rows @ J[key]) < 1e-12, key


@pytest.mark.parametrize(
    ("name", "structured"),
    {
        "raw parameters": {"W1", "W2"},
        "used twice, transposed": {"W"},
        "reused layer": {"map.weight", "out.weight"},
        "norms of weights": {"V"},
        "untied transformer": {
            "Q", "O", "down.weight", "embed.weight", "place", "read.weight", "up.weight",
        },
    }.items(),
)  # fmt: skip
def test_products_with_a_parameter_are_recognised_whatever_module_they_are_in(name, structured):
    model, x = build(name)
    plan = read_plan(Problem.check(model, x))
    assert set(plan.names()) == structured
    assert not structured & set(plan.dense)


def test_a_reused_parameter_has_more_positions_and_a_transposed_one_is_written_out():
    for name, parameter, kind in (
        ("reused layer", "map.weight", Outer),
        ("used twice, transposed", "W", torch.Tensor),
    ):
        model, x = build(name)
        problem = Problem.check(model, x)
        rows = torch.eye(problem.n_outputs, dtype=torch.float64)
        found = gradients(problem, read_plan(problem), x, rows)[parameter]
        assert isinstance(found, kind)
        written = found.dense() if isinstance(found, Outer) else found
        assert torch.allclose(written, plain_jacobian(model, x)[parameter], atol=1e-12)
