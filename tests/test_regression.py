"""Kernel regression and gradient flow against scikit-learn, scipy's exponential and descent itself."""

import inspect

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
    kernel_logistic_regression,
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


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_kernels_in_single_precision_keep_what_they_know(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), activation(), nn.Linear(64, 1))
    x, new, Y = torch.randn(150, 10), torch.randn(20, 10), torch.randn(150, 1)

    def fit(model, x, new):
        return kernel_regression(empirical_ntk(model, x), Y, empirical_ntk(model, new, x))

    single = fit(model, x, new)
    double = fit(model.double(), x.double(), new.double())
    assert (single - double).norm() < 0.01 * double.norm()


@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-6])
def test_what_rounding_left_of_duplicated_points_is_dropped(ridge):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 1))
    x, Y = torch.randn(25, 5).repeat(2, 1), torch.randn(50, 1)
    found = kernel_regression(empirical_ntk(model, x), Y, ridge=ridge)
    mean = (Y[:25] + Y[25:]).double() / 2  # the best that equal points can have
    assert_close(found, mean.repeat(2, 1), rtol=1e-2, atol=1e-2)


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


def test_flow_of_one_kernel_an_output_is_one_flow_an_output():
    Y = random(7, 3, seed=9)
    pairs = [kernels(seed=s) for s in range(3)]
    K, K_test = (torch.stack(side) for side in zip(*pairs, strict=True))
    times = [0.01, 0.1, 1.0]
    alone = [gradient_flow(K[c], Y[:, [c]], times, K_test[c]) for c in range(3)]
    assert_close(gradient_flow(K, Y, times, K_test), torch.cat(alone, 2))


def test_flow_stays_where_it_arrived_however_long():
    F, Y = random(30, 4), random(30, 1, seed=1)
    late = gradient_flow((F @ F.T).float(), Y, [1e4, 1e9], F @ F.T)
    expected = kernel_regression(F @ F.T, Y)
    assert_close(late, expected.expand(2, -1, -1), rtol=1e-4, atol=1e-4)


def test_steps_are_accurate_for_small_eigenvalues():
    values = torch.tensor([1.0, 1e-6, 1e-12], dtype=torch.float64)
    found = gradient_flow(values.diag(), torch.ones(3, 1).double(), [1.0], step=0.5)[0, :, 0]
    # 1 - (1 - l / 2)^2 = l - l^2 / 4
    assert_close(found, values - values**2 / 4, rtol=1e-12, atol=0)


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


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(3, 2)

    def forward(self, a, b):
        return self.map(a) * b


def test_linearised_takes_tuples_and_dicts():
    torch.manual_seed(0)
    model, a, b = Pair().double(), random(4, 3), random(4, 1, seed=1)
    delta = random(8, seed=2)
    # Linear in its parameters, so the tangent is the function itself.
    whole = functional_call(model, unflatten(model, flat(model) + delta), (a, b)).detach()
    assert_close(linearised(model, (a, b), delta), whole)
    assert_close(linearised(model, {"a": a, "b": b}, delta), whole)


@pytest.mark.parametrize("shape", [(38, 2), (37,), (1, 38)])
def test_linearised_wants_one_number_a_parameter(shape):
    with pytest.raises(ValueError, match=r"displacement must have shape \(38,\)"):
        inspect.unwrap(linearised)(network(), random(4, 3), random(*shape))


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
    with pytest.raises(ValueError, match="not positive semi-definite"):
        kernel_regression(torch.diag(torch.tensor([2.0, 1.0, -0.5])), torch.ones(3, 1), ridge=1.0)
    crossed = torch.zeros(2, 2, 2, 2)
    crossed[0, 1, 0, 1] = 1
    with pytest.raises(ValueError, match="K is not symmetric"):
        kernel_regression(crossed, torch.ones(2, 2))
    for ridge in (-1.0, float("inf")):
        with pytest.raises(ValueError, match=f"ridge is {ridge}"):
            kernel_regression(K, Y, ridge=ridge)
    for dtype in (torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match="compute kernels in float32 or float64"):
            inspect.unwrap(kernel_regression)(K.to(dtype), Y)
    with pytest.raises(ValueError, match="targets is empty"):
        kernel_regression(torch.zeros(0, 0), torch.zeros(0, 1))
    with pytest.raises(ValueError, match="K_test holds 49 NaN"):
        kernel_regression(K, Y, K * torch.nan)
    Y[0] = torch.nan
    with pytest.raises(ValueError, match="targets holds 1 NaN"):
        kernel_regression(K, Y)


def test_times_and_steps_that_mean_nothing_are_refused():
    (K, _), Y = kernels(), random(7, 1)
    with pytest.raises(ValueError, match="times must be"):
        gradient_flow(K, Y, [])
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="times must be"):
            gradient_flow(K, Y, [0.0, bad])
    for step in (-0.1, 2.1 / torch.linalg.eigvalsh(K)[-1].item()):
        with pytest.raises(ValueError, match="gradient descent needs a step"):
            gradient_flow(K, Y, [1.0], step=step)
    with pytest.raises(ValueError, match="step is 100"):
        gradient_flow(K, Y, [1.0], step=100.0)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_logistic_regression_is_the_minimum_over_functions_of_the_kernel(n_classes):
    K, K_test = kernels(n=20, m=6, rank=8)
    labels = torch.arange(20) % n_classes
    logits = kernel_logistic_regression(K, labels, K_test, penalty=0.3)
    inside = kernel_logistic_regression(K, labels, penalty=0.3)
    # f = K a: |f_c|_K^2 = a_c^T K a_c. At the minimum the gradient for the function vanishes.
    a = torch.linalg.pinv(K, rtol=1e-12) @ inside
    slope = (inside.softmax(1) - torch.nn.functional.one_hot(labels, n_classes)) + 0.3 * a
    assert (K @ slope).abs().max() < 1e-6 * (K @ (0.3 * a)).abs().max()
    assert_close(K_test @ a, logits, rtol=1e-6, atol=1e-8)


def test_logistic_regression_on_a_linear_kernel_is_that_on_the_features():
    X, labels = random(30, 4), torch.arange(30) % 3
    weights = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(X @ weights.T, labels, reduction="sum")
        value = value + 0.5 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    got = kernel_logistic_regression(X @ X.T, labels, penalty=1.0)
    assert_close(got, (X @ weights.T).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e6])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_regression_does_not_depend_on_the_unit_of_the_kernel(scale, n_classes):
    (K, K_test), labels = kernels(n=20, m=6, rank=8), torch.arange(20) % n_classes
    logits = kernel_logistic_regression(K, labels, K_test, penalty=0.3)
    found = kernel_logistic_regression(scale * K, labels, scale * K_test, penalty=scale * 0.3)
    assert_close(found, logits, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_of_separable_labels_goes_as_far_as_the_penalty_lets_it(
    n_classes, penalty
):
    X = random(40, 3)
    K, labels = X @ X.T, X[:, :n_classes].argmax(1)
    logits = kernel_logistic_regression(K, labels, penalty=penalty)
    # At the minimum f = K a with a = (one_hot - softmax) / penalty.
    a = (torch.nn.functional.one_hot(labels, n_classes) - logits.softmax(1)) / penalty
    assert_close(K @ a, logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_logistic_regression_of_a_float32_kernel_of_low_rank_is_that_in_float64():
    X, new, labels = random(60, 5), random(9, 5, seed=1), torch.arange(60, dtype=torch.int32) % 3
    exact = kernel_logistic_regression(X @ X.T, labels, new @ X.T, penalty=0.1)
    single = kernel_logistic_regression((X @ X.T).float(), labels, (new @ X.T).float(), penalty=0.1)
    assert single.dtype == torch.float64
    assert_close(single, exact, rtol=1e-4, atol=1e-4)


def test_logistic_regression_with_nothing_to_go_by_is_even():
    labels = torch.arange(6) % 3
    assert not kernel_logistic_regression(torch.zeros(6, 6), labels, penalty=1.0).any()
    # The same point under every label.
    assert kernel_logistic_regression(torch.ones(6, 6), labels, penalty=1e-6).abs().max() < 1e-6


def test_logistic_regression_that_does_not_converge_says_so():
    X = random(40, 2)
    with pytest.raises(RuntimeError, match="penalty 1e-30 did not converge; give more"):
        kernel_logistic_regression(X @ X.T, (X[:, 0] > 0).long(), penalty=1e-30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 0, 2, 2, 0, 2, 0])}, r"each of 0 .. C-1.*got \[0, 2\]"),
        ({"labels": torch.zeros(7, dtype=torch.long)}, "two or more"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"K": torch.eye(7)[None]}, r"one kernel for all outputs, got \(1, 7, 7\)"),
        ({"labels": torch.arange(6) % 2}, r"K has shape \(7, 7\)"),
    ],
)
def test_logistic_regression_names_what_is_wrong(change, message):
    good = {"K": torch.eye(7), "labels": torch.arange(7) % 2, "penalty": 1.0}
    with pytest.raises(ValueError, match=message):
        kernel_logistic_regression(**(good | change))
