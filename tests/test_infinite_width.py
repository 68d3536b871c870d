"""The arc-cosine recursion against quadrature, values known in closed form, and wide networks."""

import inspect
import math

import pytest
import torch
from scipy.integrate import dblquad
from torch.testing import assert_close

from entk_helpers import empirical_ntk, kernel_regression, relu_ntk
from entk_helpers.testbeds import wide


def points(n=5, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("angle", [0.3, 1.2, 2.5])
def test_one_hidden_layer_is_the_gaussian_integral(angle):
    x = math.sqrt(2) * torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]]).double()

    def expectation(f):
        """E f(u, v) for u, v standard normal with correlation cos(angle)."""

        def density(r, phi):
            u, v = r * math.cos(phi), r * math.cos(phi - angle)
            return f(u, v) * r * math.exp(-r * r / 2) / (2 * math.pi)

        # Both gates are open between these angles, and the integrand is zero elsewhere.
        return dblquad(density, angle - math.pi / 2, math.pi / 2, 0, 12)[0]

    found = relu_ntk(x)
    nngp = 2 * expectation(lambda u, v: u * v)
    both_open = 2 * expectation(lambda u, v: 1.0)
    assert found.nngp[0, 1].item() == pytest.approx(nngp, rel=1e-7)
    assert found.ntk[0, 1].item() == pytest.approx(nngp + math.cos(angle) * both_open, rel=1e-7)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_diagonal_grows_by_one_share_a_layer(depth):
    x = points()
    size = x.square().sum(1) / 3
    found = relu_ntk(x, depth=depth)
    assert_close(found.nngp.diagonal(), size)
    assert_close(found.ntk.diagonal(), (depth + 1) * size, rtol=1e-7, atol=0)


def test_opposite_points_share_no_gate_in_the_first_layer():
    x = points(1)
    found = relu_ntk(x, -x)
    assert_close(found.nngp, torch.zeros(1, 1).double(), atol=1e-12, rtol=0)
    assert_close(found.ntk, torch.zeros(1, 1).double(), atol=1e-7, rtol=0)


def test_kernels_are_homogeneous_and_second_points_are_columns():
    x, x2 = points(), points(4, seed=1)
    whole = relu_ntk(torch.cat([x, x2]), depth=3)
    part = relu_ntk(2 * x, 5 * x2, depth=3)
    assert_close(part.ntk, 10 * whole.ntk[:5, 5:])
    assert_close(part.nngp, 10 * whole.nngp[:5, 5:])


@pytest.mark.parametrize("t", [1e-3, 1e-6, 1e-9])
def test_small_angles_are_not_lost(t):
    x = torch.tensor([[1.0, 0.0], [math.cos(t), math.sin(t)]], dtype=torch.float64)
    found = relu_ntk(x).ntk
    # To first order in the angle, 2 * (1/2) (|x| |x'|) loses the share t / pi of one layer.
    assert (1.0 - found[0, 1]).item() == pytest.approx(t / (2 * math.pi), rel=1e-2)


@pytest.mark.parametrize("depth", [1, 2, 5, 50])
def test_parallel_points_give_a_kernel_of_the_rank_that_they_have(depth):
    x = torch.linspace(0.1, 2, 20, dtype=torch.float64)[:, None]
    kernel = relu_ntk(x, depth=depth).ntk
    assert_close(kernel, (depth + 1) * x @ x.T, rtol=1e-12, atol=0)
    assert torch.equal(kernel, kernel.T)
    assert_close(kernel_regression(kernel, 3 * x), 3 * x)


def test_single_precision_is_raised_to_double():
    x = points()
    assert_close(relu_ntk(x.float()).ntk, relu_ntk(x.float().double()).ntk, rtol=1e-14, atol=0)


@pytest.mark.parametrize("depth", [1, 2])
def test_wide_networks_approach_the_limit(depth):
    x = points(6)
    limit = relu_ntk(x, depth=depth)
    networks = [wide.network((3, *[1500] * depth, 2), seed) for seed in range(6)]
    kernels = [empirical_ntk(net, x.float(), reduce="full").double() for net in networks]
    mean = torch.stack(kernels).mean(0)
    # The spread of one network is about 4 % here, and 2 % for the mean of six.
    error = (mean.diagonal(dim1=2, dim2=3).mean(2) - limit.ntk).norm() / limit.ntk.norm()
    assert error < 0.05
    assert mean[:, :, 0, 1].norm() / limit.ntk.norm() < 0.05  # outputs decouple


def test_output_covariance_is_the_nngp():
    x = points(3)
    outputs = torch.cat([wide.network((3, 400, 400), seed)(x.float()) for seed in range(20)], 1)
    outputs = outputs.detach().double()  # 8000 draws of the function
    found = outputs @ outputs.T / outputs.shape[1]
    nngp = relu_ntk(x).nngp
    assert (found - nngp).norm() / nngp.norm() < 0.08


def test_what_has_no_kernel_is_refused():
    x = points()
    with pytest.raises(ValueError, match=r"must be \(N, d\) and \(M, d\)"):
        inspect.unwrap(relu_ntk)(x, x[:, :2])
    with pytest.raises(ValueError, match="depth is -1"):
        relu_ntk(x, depth=-1)
    with pytest.raises(ValueError, match="point of norm zero"):
        relu_ntk(0 * x)
    with pytest.raises(ValueError, match="x2 holds 15 NaN"):
        relu_ntk(x, x * torch.nan)
    with pytest.raises(ValueError, match="product of the norms"):
        relu_ntk(1e200 * x)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="x holds 1 NaN"):
        relu_ntk(x)
