"""Wide networks against autograd, torch's own SGD, and the scaling that their names promise."""

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close

from entk_helpers.testbeds import wide

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
    run = wide.train_seeds(
        SIZES, x, y, [0], steps=9, rate=0.02, watch=watch, record_at=(3, 5), centred=True
    )[0]
    assert run.history["step"] == [0, 3, 5, 9] == sorted(run.checkpoints)
    for step, loss, seen in zip(*run.history.values(), strict=True):
        model = run.at(step)
        assert_close(model(watch).detach(), seen)
        assert loss == pytest.approx(((model(x) - y).square().sum(1).mean() / 2).item())
    assert_close(run.at(9)(x), run.model(x))


def test_stop_loss_ends_training_early():
    x, y = points(), targets()
    run = wide.train_seeds((3, 200, 2), x, y, [0, 1], steps=5000, rate=0.05, stop_loss=0.1)[0]
    assert run.history["step"][-1] < 5000
    assert run.history["loss"][-1] <= 0.1


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
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    settings = {"sizes": SIZES, "x": points(), "targets": targets(), "seeds": [0], "steps": 2}
    with pytest.raises(ValueError, match=message):
        wide.train_seeds(**({"rate": 0.1} | settings | wrong))
