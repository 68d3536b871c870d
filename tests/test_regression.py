"""Kernel regression and gradient flow against scikit-learn, scipy's exponential and descent itself."""

import pytest
import torch
from scipy.linalg import expm
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from entk_helpers import (
    empirical_ntk,
    flatten_kernel,
    gradient_flow,
    jacobian,
    kernel_regression,
    linearised,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernels(n=7, m=4, rank=30, seed=0):
    F = random(n + m, rank, seed=seed)
    K = F @ F.T
    return K[:n, :n], K[n:, :n]


def coupled(n=5, m=3, c=2, p=40):
    J = random(n + m, c, p)
    K = torch.einsum("icp,jdp->ijcd", J, J)
    return J, K[:n, :n], K[n:, :n]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


# kernel_regression


@pytest.mark.parametrize("ridge", [1e-3, 0.7])
def test_ridge_is_that_of_scikit_learn(ridge):
    (K, K_test), Y = kernels(), random(7, 3, seed=1)
    peer = KernelRidge(alpha=ridge, kernel="precomputed").fit(K.numpy(), Y.numpy())
    found = kernel_regression(K, Y, K_test, ridge=ridge)
    assert_close(found, torch.as_tensor(peer.predict(K_test.numpy())))


def test_without_ridge_training_points_are_met_exactly():
    (K, _), Y = kernels(), random(7, 3, seed=1)
    assert_close(kernel_regression(K, Y), Y)


def test_a_kernel_of_low_rank_gives_the_shortest_least_squares_fit():
    F, F_test, Y = random(9, 4), random(5, 4, seed=1), random(9, 2, seed=2)
    expected = F_test @ torch.linalg.pinv(F) @ Y
    assert_close(kernel_regression(F @ F.T, Y, F_test @ F.T), expected)
    single = kernel_regression((F @ F.T).float(), Y.float(), (F_test @ F.T).float())
    assert_close(single, expected, rtol=1e-3, atol=1e-3)


def test_one_kernel_an_output_is_one_regression_an_output():
    Y = random(7, 3, seed=9)
    pairs = [kernels(seed=s) for s in range(3)]
    K, K_test = (torch.stack(side) for side in zip(*pairs, strict=True))
    for ridge in (0.0, 0.1):
        alone = [kernel_regression(K[c], Y[:, [c]], K_test[c], ridge=ridge) for c in range(3)]
        assert_close(kernel_regression(K, Y, K_test, ridge=ridge), torch.cat(alone, 1))


def test_coupled_outputs_are_least_squares_in_the_tangent_features():
    J, K, K_test = coupled()
    Y = random(5, 2, seed=3)
    shortest = torch.linalg.lstsq(J[:5].reshape(10, -1), Y.reshape(-1)).solution
    assert_close(kernel_regression(K, Y, K_test), J[5:] @ shortest)


def test_outputs_that_do_not_couple_agree_in_all_three_shapes():
    (K, K_test), Y = kernels(), random(7, 2, seed=1)
    eye = torch.eye(2, dtype=torch.float64)
    shared = kernel_regression(K, Y, K_test)
    per_class = kernel_regression(K.expand(2, 7, 7), Y, K_test.expand(2, 4, 7))
    full = kernel_regression(
        torch.einsum("ij,cd->ijcd", K, eye), Y, torch.einsum("ij,cd->ijcd", K_test, eye)
    )
    assert_close(shared, per_class)
    assert_close(shared, full)


# gradient_flow


@pytest.mark.parametrize("t", [0.0, 0.03, 1.0])
def test_flow_is_the_matrix_exponential(t):
    (K, K_test), Y = kernels(), random(7, 2, seed=1)
    decay = torch.as_tensor(expm(-t * K.numpy()))
    expected = K_test @ torch.linalg.solve(K, Y - decay @ Y)
    assert_close(gradient_flow(K, Y, [t], K_test)[0], expected)


def test_flow_ends_at_kernel_regression():
    (K, K_test), Y = kernels(), random(7, 2, seed=1)
    assert_close(gradient_flow(K, Y, [1e6], K_test)[0], kernel_regression(K, Y, K_test))


def test_flow_of_coupled_outputs_is_that_of_the_flattened_kernel():
    _, K, K_test = coupled()
    Y = random(5, 2, seed=3)
    flat = gradient_flow(flatten_kernel(K), Y.reshape(-1, 1), [0.01, 0.1], flatten_kernel(K_test))
    assert_close(gradient_flow(K, Y, [0.01, 0.1], K_test), flat.reshape(2, 3, 2))


def test_directions_that_the_kernel_lacks_do_not_move():
    F, Y = random(6, 2), random(6, 1, seed=1)
    moved = gradient_flow(F @ F.T, Y, [0.1, 10.0, 1e5])
    outside = torch.eye(6, dtype=torch.float64) - F @ torch.linalg.pinv(F)
    assert_close(outside @ moved, torch.zeros(3, 6, 1).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("step", [0.01, 0.05])
def test_with_a_step_it_is_gradient_descent_step_by_step(step):
    F, F_test, Y = random(6, 3), random(4, 3, seed=1), random(6, 2, seed=2)
    step = step * 30 / torch.linalg.eigvalsh(F @ F.T)[-1].item()  # up to 1.5 of at most 2
    w, seen = torch.zeros(3, 2).double(), []
    for _ in range(8):
        seen.append(F_test @ w)
        w -= step * F.T @ (F @ w - Y)
    found = gradient_flow(F @ F.T, Y, [step * s for s in range(8)], F_test @ F.T, step=step)
    assert_close(found, torch.stack(seen))


# linearised


def test_linearised_is_the_tangent():
    model, x = network(), random(4, 3, seed=1)
    delta = 1e-3 * random(sum(p.numel() for p in model.parameters()), seed=2)
    J = jacrev(lambda v: functional_call(model, unflatten(model, v), x))(flat(model))
    assert_close(linearised(model, x, delta), model(x).detach() + J @ delta)
    moved = functional_call(model, unflatten(model, flat(model) + delta), x).detach()
    small = (moved - linearised(model, x, delta)).norm() / (moved - model(x)).norm()
    assert small < 1e-2


def test_linearised_fit_is_kernel_regression_of_the_full_kernel():
    model, x, x2 = network(), random(4, 3, seed=1), random(3, 3, seed=2)
    Y = random(4, 2, seed=3)
    J = jacobian(model, x).reshape(8, -1)
    step = torch.linalg.pinv(J) @ (Y - model(x).detach()).reshape(-1)
    K, K_test = (empirical_ntk(model, a, x, reduce="full") for a in (x, x2))
    expected = model(x2).detach() + kernel_regression(K, Y - model(x).detach(), K_test)
    assert_close(linearised(model, x2, step), expected)


def test_linearised_takes_some_of_the_parameters():
    model, x = network(), random(4, 3, seed=1)
    change = random(12, seed=2)
    whole = torch.cat([torch.zeros(24).double(), change, torch.zeros(2).double()])
    assert_close(linearised(model, x, change, params="2.weight"), linearised(model, x, whole))


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def unflatten(model, v):
    parts = v.split([p.numel() for p in model.parameters()])
    named = model.named_parameters()
    return {name: part.reshape(p.shape) for (name, p), part in zip(named, parts, strict=True)}


# errors


@pytest.mark.parametrize("shape", [(7, 6), (2, 7, 7), (7, 7, 2, 3), (7,)])
def test_kernels_that_do_not_fit_the_targets_are_refused(shape):
    with pytest.raises(ValueError, match=r"K has shape .* need \(7, 7\), \(3, 7, 7\) or"):
        kernel_regression(random(*shape), random(7, 3))


@pytest.mark.parametrize("shape", [(4, 6), (4,), (3, 4, 7)])
def test_test_kernels_have_the_new_points_first(shape):
    K, _ = kernels()
    with pytest.raises(ValueError, match=r"needs \(M, 7\): the M new points first"):
        kernel_regression(K, random(7, 3), random(*shape))


def test_what_is_not_a_kernel_is_refused():
    (K, _), Y = kernels(), random(7, 1)
    skew = K.clone()
    skew[0, 1] += 0.1
    with pytest.raises(ValueError, match="K is not symmetric"):
        kernel_regression(skew, Y)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        kernel_regression(K - 20 * torch.eye(7), Y)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        kernel_regression(K - 20 * torch.eye(7), Y, ridge=0.1)
    with pytest.raises(ValueError, match="ridge is -1"):
        kernel_regression(K, Y, ridge=-1.0)
    Y[0] = torch.nan
    with pytest.raises(ValueError, match="targets holds 1 NaN"):
        kernel_regression(K, Y)


def test_times_and_steps_that_mean_nothing_are_refused():
    (K, _), Y = kernels(), random(7, 1)
    with pytest.raises(ValueError, match="times must be"):
        gradient_flow(K, Y, [])
    with pytest.raises(ValueError, match="times must be"):
        gradient_flow(K, Y, [-1.0])
    with pytest.raises(ValueError, match="step is 100"):
        gradient_flow(K, Y, [1.0], step=100.0)
