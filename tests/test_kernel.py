"""Kernels of every kind of model against one backward pass for each point and output."""

import pytest
import torch
from zoo import ZOO, build, plain_jacobian, plain_kernel, reduced

from entk_helpers.kernel import empirical_ntk, flatten_kernel

REDUCTIONS = ("full", "per_class", "class_averaged", "pseudo")


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
@pytest.mark.parametrize("name", ZOO)
def test_every_reduction_and_split_of_every_model_matches_plain_autograd(name):
    model, x = build(name)
    _, x2 = build(name, n=4, seed=1)
    J, J2 = plain_jacobian(model, x), plain_jacobian(model, x2)
    for points, other, right in ((x, None, J), (x, x2, J2)):
        expected = plain_kernel(J, right)
        for reduce in REDUCTIONS:
            by_tensor = empirical_ntk(model, points, other, reduce=reduce, by="tensor")
            assert list(by_tensor) == list(expected)
            for key, K in by_tensor.items():
                close(K, reduced(expected[key], reduce), f"{reduce} {key}")
            whole = empirical_ntk(model, points, other, reduce=reduce)
            close(whole, reduced(sum(expected.values()), reduce), reduce)
            by_module = empirical_ntk(model, points, other, reduce=reduce, by="module")
            close(sum(by_module.values()), whole, "sum over modules")


def close(got, expected, what):
    scale = expected.abs().max().clamp(min=1e-12)
    assert got.shape == expected.shape, what
    assert (got - expected).abs().max() <= 1e-12 * scale, what
