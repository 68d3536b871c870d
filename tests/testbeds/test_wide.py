"""Wide networks against autograd, torch's own SGD, and the scaling that their names promise."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.func import functional_call
from torch.testing import assert_close

from entk_helpers.testbeds import wide

pytestmark = pytest.mark.trained

SIZES = (3, 8, 6, 2)


def points(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


def targets(n=5):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_forward_is_the_formula():
    x = points()
    net = wide.network(SIZES, 0).double()
    W1, W2, W3 = (W.detach() for W in net.weights)
    hidden = (x @ W1.T / 3**0.5).clamp(min=0)
    hidden = (hidden @ W2.T * (2 / 8) ** 0.5).clamp(min=0)
    assert_close(net(x).detach(), hidden @ W3.T * (2 / 6) ** 0.5)


@pytest.mark.parametrize("activation", wide.ACTIVATIONS)
def test_gain_is_one_over_the_size_of_the_activation(activation):
    s = wide.ACTIVATIONS[activation]

    def density(z):
        value = s.function(torch.tensor(z, dtype=torch.float64)).item()
        return value**2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    assert s.gain == pytest.approx(quad(density, -12, 12, points=[0])[0] ** -0.5, rel=1e-6)


@pytest.mark.parametrize("activation", wide.ACTIVATIONS)
def test_variance_passes_through_the_layers(activation):
    x = torch.full((1, 4), 1.0)  # |x|^2 / d = 1
    outputs = torch.cat(
        [wide.network((4, 300, 300, 500), s, activation=activation)(x) for s in range(20)]
    )
    assert outputs.square().mean().item() == pytest.approx(1, abs=0.1)


def test_centred_networks_start_at_zero_and_scale_multiplies():
    x = points().float()
    assert wide.network(SIZES, 0, centred=True)(x).abs().max() == 0
    assert_close(wide.network(SIZES, 0, scale=3.0)(x), 3 * wide.network(SIZES, 0)(x))


@pytest.mark.parametrize("activation", wide.ACTIVATIONS)
@pytest.mark.parametrize(("scale", "centred"), [(1.0, False), (0.5, True)])
def test_training_is_torchs_own_gradient_descent(activation, scale, centred):
    x, y = points(), targets()
    settings = {"scale": scale, "centred": centred, "activation": activation}
    run = wide.train_seeds(SIZES, x, y, [4, 7], steps=6, rate=0.02, **settings)[1]
    net = wide.network(SIZES, 7, **settings).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    for _ in range(6):
        optimizer.zero_grad()
        ((net(x) - y).square().sum() / (2 * scale**2)).backward()
        optimizer.step()
    start = wide.network(SIZES, 7).double()
    for trained, same, before in zip(run.model.weights, net.weights, start.weights, strict=True):
        assert_close(trained, same)
        assert (trained - before).norm() > 1e-3  # it moved


def test_seeds_in_a_batch_are_seeds_alone():
    x, y = points(), targets()
    both = wide.train_seeds(SIZES, x, y, [0, 1], steps=5, rate=0.02)
    alone = wide.train_seeds(SIZES, x, y, [1], steps=5, rate=0.02)[0]
    assert_close(both[1].model(x), alone.model(x))


def test_history_and_checkpoints_are_those_asked_for():
    x, y, watch = points(), targets(), points(4, seed=2)
    runs = wide.train_seeds(
        SIZES, x, y, [0, 3], steps=9, rate=0.02, watch=watch, record_at=(3, 5), scale=0.5,
        centred=True, activation="tanh",
    )  # fmt: skip
    for run in runs:
        assert torch.equal(run.inputs, x) and torch.equal(run.targets, y)
        assert run.history["step"] == [0, 3, 5, 9] == sorted(run.checkpoints)
        for step, loss, seen in zip(*run.history.values(), strict=True):
            model = run.at(step)
            assert_close(model(watch).detach(), seen)
            assert loss == pytest.approx(((model(x) - y).square().sum(1).mean() / 2).item())
        assert_close(run.at(9)(x), run.model(x))
    assert not torch.equal(runs[0].history["outputs"][-1], runs[1].history["outputs"][-1])


def test_stop_loss_ends_training_early():
    x, y = points(), targets()
    run = wide.train_seeds((3, 200, 2), x, y, [0, 1], steps=5000, rate=0.05, stop_loss=0.1)[0]
    assert run.history["step"][-1] < 5000
    assert run.history["loss"][-1] <= 0.1


def test_training_goes_on_until_every_seed_is_done():
    x, y = points(), targets()
    runs = wide.train_seeds((3, 200, 2), x, y, range(5), steps=5000, rate=0.05, stop_loss=0.1)
    losses = [run.history["loss"][-1] for run in runs]
    assert max(losses) <= 0.1 < 0.11 < max(run.history["loss"][0] for run in runs)
    assert min(losses) < 0.95 * max(losses)  # the others went further


def test_a_large_rate_may_throw_the_loss_up_before_it_falls():
    x, y = torch.ones(1, 1), torch.zeros(1, 1)
    run = wide.train_seeds((1, 1000, 1), x, y, [11], steps=400, rate=1.1, record_at=range(400))[0]
    assert max(run.history["loss"]) > 100 * run.history["loss"][0]
    assert run.history["loss"][-1] < 0.1 * run.history["loss"][0]


def test_a_network_that_dies_is_not_called_trained():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(179))
    with pytest.raises(ValueError, match="training diverged"):
        wide.train_seeds((3, 4, 1), x, 3 * torch.ones(2, 1), [179], steps=50, rate=10.0)


def test_random_state_is_left_alone_and_models_take_new_weights():
    before = torch.get_rng_state()
    net = wide.network(SIZES, 0)
    assert torch.equal(before, torch.get_rng_state())
    doubled = {name: 2 * W for name, W in net.named_parameters()}
    x = points().float()
    assert_close(functional_call(net, doubled, x), 8 * net(x))  # homogeneous of degree 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sizes": (3,)}, "sizes is"),
        ({"sizes": (4, 8, 2)}, "x has shape"),
        ({"sizes": (3, 8, 1)}, "targets has shape"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "give each seed once"),
        ({"steps": 0}, "steps is 0"),
        ({"rate": 0.0}, "rate is 0"),
        ({"scale": -1.0}, "scale is -1"),
        ({"activation": "gelu"}, "give one of relu, tanh"),
        ({"rate": 1e9, "steps": 50}, "training diverged"),
        ({"sizes": (3, 0, 2)}, "give at least 1 in every place"),
        ({"x": points() * torch.nan}, "x holds NaN"),
        ({"targets": targets().long()}, "give floating-point numbers"),
        ({"watch": torch.zeros(4, 2)}, r"watch has shape \(4, 2\)"),
        ({"targets": targets(4)}, "x has 5 points and targets has 4"),
        ({"record_at": (3,)}, "give steps from 0 to 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    settings = {"sizes": SIZES, "x": points(), "targets": targets(), "seeds": [0], "steps": 2}
    with pytest.raises(ValueError, match=message):
        wide.train_seeds(**({"rate": 0.1} | settings | wrong))


def test_seeds_may_have_targets_of_their_own():
    x, y = torch.randn(6, 3), torch.randn(2, 6, 2)
    settings = dict(steps=5, rate=0.02)
    for seed, own, run in zip(
        (4, 7), y, wide.train_seeds((3, 8, 2), x, y, [4, 7], **settings), strict=True
    ):
        (alone,) = wide.train_seeds((3, 8, 2), x, own, [seed], **settings)
        assert torch.equal(run.targets, own)
        torch.testing.assert_close(run.model(x), alone.model(x))
        torch.testing.assert_close(run.history["loss"], alone.history["loss"])
    with pytest.raises(ValueError, match="targets holds NaN"):
        wide.train_seeds((3, 8, 2), x, y * torch.nan, [4, 7], **settings)
