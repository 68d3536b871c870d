"""The formula of a network of squares, against autograd in float64."""

import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from entk_helpers import empirical_ntk, quadratic_class_pairs, quadratic_ntk
from entk_helpers.testbeds.modular import ModularMLP, pairs


def network(p=5, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W1 = torch.randn(width, 2 * p, generator=generator, dtype=torch.float64)
    W2 = torch.randn(p, width, generator=generator, dtype=torch.float64)
    return ModularMLP(W1, W2)


def jacobians(model, x):
    params = {name: value.detach() for name, value in model.named_parameters()}
    J = vmap(jacrev(lambda w, row: functional_call(model, w, (row[None],))[0]), (None, 0))(
        params, x
    )
    return {name: j.flatten(2) for name, j in J.items()}


@pytest.mark.parametrize("kind", ["one-hot", "any inputs"])
def test_class_averaged_kernels_are_those_of_autograd(kind):
    model = network()
    x = pairs(5).double() if kind == "one-hot" else torch.randn(9, 10, dtype=torch.float64)
    ours = quadratic_ntk(model.W1, model.W2, x)
    for name, J in jacobians(model, x).items():
        torch.testing.assert_close(
            ours[name], torch.einsum("ncp,mcp->nm", J, J) / 5, rtol=1e-12, atol=1e-15
        )
        torch.testing.assert_close(ours[name], empirical_ntk(model, x, params=name))


def test_kernels_of_all_class_pairs_are_those_of_autograd():
    """With Q the identity nothing is compressed: these are the kernels K_cd themselves."""
    model, x = network(seed=1), pairs(5).double()
    eye = torch.eye(25, dtype=torch.float64)
    ours = quadratic_class_pairs(model.W1, model.W2, x, eye)
    J = torch.cat(list(jacobians(model, x).values()), dim=2)
    expected = torch.einsum("ncp,mdp->cdnm", J, J)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)
    Q = torch.linalg.qr(torch.randn(25, 3, dtype=torch.float64)).Q
    compressed = quadratic_class_pairs(model.W1, model.W2, x, Q)
    torch.testing.assert_close(compressed, Q.T @ expected @ Q)


def test_wide_limit_counts_shared_digits_squared():
    """Over Gaussian weights E[z z'] = x.x'/D, so the first layer tends to 4/(D^2 H) (x.x')^2."""
    p, width = 3, 200_000
    model, x = network(p, width), pairs(p).double()
    limit = 4 / (4 * p**2 * width) * (x @ x.T).square()
    apart = quadratic_ntk(model.W1, model.W2, x)["W1"] - limit
    assert apart.norm() < 0.01 * limit.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W2": torch.zeros(5, 11)}, r"W2 of shape \(C, 12\)"),
        ({"x": torch.zeros(4, 9)}, r"x of shape \(N, 10\)"),
        ({"W1": torch.full((12, 10), float("nan"))}, "W1"),
    ],
)
def test_errors_name_what_would_fit(change, message):
    model = network()
    call = {"W1": model.W1, "W2": model.W2, "x": pairs(5)} | change
    with pytest.raises(ValueError, match=message):
        quadratic_ntk(**call)


def test_a_basis_of_other_points_is_refused():
    model = network()
    with pytest.raises(ValueError, match=r"Q must have shape \(25, q\)"):
        quadratic_class_pairs(model.W1, model.W2, pairs(5), torch.zeros(24, 2))
