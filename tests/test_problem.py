"""Which parameters a name means, and which points go together."""

import pytest
import torch
from torch import nn

from entk_helpers.problem import Problem, select


def test_unknown_names_bring_the_closest():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"params: '0.wieght' matches no parameter; closest: '0.weight'"
    ):
        select(model, "0.wieght")
    with pytest.raises(
        ValueError, match=r"params: 'zzz' matches no parameter; closest: '0.weight', '0.bias'"
    ):
        select(model, ["0.bias", "zzz"])
    assert select(model, ["*.bias", "0.w*"]) == ["0.weight", "0.bias"]


def test_a_name_that_looks_like_a_glob_is_a_name():
    model = nn.ParameterDict({"w[ab]": torch.ones(1), "wa": torch.ones(1)})
    assert select(model, "w[ab]") == ["w[ab]"]
    assert select(model, "w*") == ["w[ab]", "wa"]


def test_a_cross_set_needs_the_same_outputs():
    class Wide(nn.Linear):
        def forward(self, x):
            return super().forward(x[:, :5])[:, : x.shape[1] - 3]

    problem = Problem.check(Wide(5, 4), torch.ones(2, 5))
    with pytest.raises(ValueError, match="x2 gives 3 outputs a point and x gives 2"):
        problem.with_points(torch.ones(2, 6))
