"""The modular-addition MLP, against autograd, torch's own AdamW, and closed forms."""

import math

import pytest
import torch
from torch import nn

from entk_helpers import empirical_ntk
from entk_helpers.testbeds import Run, modular
from entk_helpers.testbeds.modular import mlp

pytestmark = pytest.mark.trained

SMALL = {"p": 7, "width": 16, "epochs": 40}


def untrained(p: int, width: int, seed: int = 0) -> modular.ModularMLP:
    generator = torch.Generator().manual_seed(seed)
    W1, W2 = (torch.randn(shape, generator=generator) for shape in ((width, 2 * p), (p, width)))
    return modular.ModularMLP(W1.double(), W2.double())


@pytest.fixture(scope="module")
def run() -> modular.ModularRun:
    return modular.train_mlp(3, checkpoints=[5, 20], **SMALL)


def test_forward_is_the_formula_entry_by_entry():
    model = modular.ModularMLP(
        torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -2.0, 0.0, 6.0]]),
        torch.tensor([[1.0, 0.0], [1.0, -1.0]]),
    )
    # p = 2, H = 2, x = (a = 1, b = 1): z^2 = (2 + 4)^2 / 4 = 9 and (-2 + 6)^2 / 4 = 4
    assert model(torch.tensor([[0.0, 1.0, 0.0, 1.0]])).tolist() == [[9 / 2, 5 / 2]]


@pytest.mark.parametrize("room", [1, 2 * 7 * 16, 2**17])  # one a at a time, two, all
def test_outputs_and_gradient_are_those_of_autograd(monkeypatch, room):
    monkeypatch.setattr(mlp, "IN_CACHE", room)
    p, model = 7, untrained(7, 16)
    train = torch.arange(p * p) % 3 > 0
    targets = nn.functional.one_hot(modular.sums(p), p).double()
    f = model(modular.pairs(p).double())
    nn.functional.mse_loss(f[train], targets[train]).backward()
    with torch.no_grad():
        network = mlp._AllPairs(model.W1, model.W2)
        torch.testing.assert_close(network.outputs(), f.T, rtol=1e-12, atol=1e-14)
        d = ((f - targets) * train[:, None] * (2 / (train.sum().item() * p))).T
        for _ in range(2):  # memory that is used again holds nothing of the first time
            da, db, dW2 = network.gradient(d).split(p)
    torch.testing.assert_close(torch.cat([da, db]).T, model.W1.grad, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(dW2, model.W2.grad, rtol=1e-12, atol=1e-16)


def test_training_matches_a_plain_autograd_loop_on_the_training_pairs_alone(run):
    model = run.at(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    seen = {"train": run.train, "test": ~run.train}
    expected = {f"{part} {score}": [] for part in seen for score in ("loss", "accuracy")}
    for _ in run.history["step"]:
        f = model(run.inputs)
        for part, mask in seen.items():
            loss = nn.functional.mse_loss(f[mask], run.targets[mask])
            right = f[mask].argmax(1) == run.targets[mask].argmax(1)
            expected[f"{part} loss"].append(loss.item())
            expected[f"{part} accuracy"].append(right.double().mean().item())
        optimizer.zero_grad()
        nn.functional.mse_loss(model(run.inputs[run.train]), run.targets[run.train]).backward()
        optimizer.step()
    for name, values in expected.items():
        assert run.history[name] == pytest.approx(values, rel=1e-4), name


def test_weight_decay_and_learning_rate_reach_the_optimizer():
    model = modular.train_mlp(lr=0.01, weight_decay=0.5, **SMALL | {"epochs": 1})
    start = model.at(0)
    nn.functional.mse_loss(start(model.inputs[model.train]), model.targets[model.train]).backward()
    # Adam's first step is lr * sign(gradient), up to its epsilon
    for name in ("W1", "W2"):
        before, after = getattr(start, name), getattr(model.model, name)
        expected = before * (1 - 0.01 * 0.5) - 0.01 * before.grad.sign()
        clear = before.grad.abs() > 1e-5
        assert clear.float().mean() > 0.8
        torch.testing.assert_close(after[clear], expected[clear], rtol=0, atol=2e-5)


def test_several_seeds_are_the_same_as_one_at_a_time():
    for seed, together in zip([7, 2], modular.train_mlp_seeds([7, 2], **SMALL), strict=True):
        alone = modular.train_mlp(seed, **SMALL)
        assert torch.equal(together.train, alone.train)
        assert torch.equal(together.model.W1, alone.model.W1)
        assert torch.equal(together.model.W2, alone.model.W2)
        assert together.history == alone.history


def test_a_seed_determines_weights_and_split():
    one, two = modular.train_mlp_seeds([0, 1], **SMALL)
    assert not torch.equal(one.at(0).W1, two.at(0).W1) and not torch.equal(one.train, two.train)


def test_weights_start_standard_normal():
    start = modular.train_mlp(p=29, width=512, epochs=1).at(0)
    for W in (start.W1.detach(), start.W2.detach()):
        assert W.mean().item() == pytest.approx(0, abs=0.03)
        assert W.std().item() == pytest.approx(1, abs=0.02)


def test_start_and_split_do_not_depend_on_how_long_or_on_what_it_is_trained(run):
    for change in ({"epochs": 1}, {"shuffle_labels": True}, {"lr": 0.01}):
        other = modular.train_mlp(3, **SMALL | change)
        assert torch.equal(other.at(0).W1, run.at(0).W1)
        assert torch.equal(other.at(0).W2, run.at(0).W2)
        assert torch.equal(other.train, run.train)


def test_shuffled_labels_are_a_permutation_that_knows_nothing_of_the_sum():
    control = modular.train_mlp(epochs=1, width=4, shuffle_labels=True)
    labels = control.targets.argmax(1)
    assert labels.bincount().tolist() == [29] * 29
    # Agreement by chance: 841 / 29 = 29 pairs, with a standard deviation of 5.3
    assert (labels == modular.sums(29)).sum().item() < 29 + 5 * 5.3


def test_random_state_of_the_caller_is_neither_used_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = modular.train_mlp(**SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(modular.train_mlp(**SMALL).model.W1, first.model.W1)


def test_run_keeps_its_promises(run):
    assert isinstance(run, Run)
    assert torch.equal(run.inputs, modular.pairs(7))
    assert run.targets.shape == (49, 7) and torch.equal(run.targets.argmax(1), modular.sums(7))
    assert run.train.dtype == torch.bool and run.train.sum() == 34  # 0.7 * 49 = 34.3
    assert run.model(run.inputs).shape == run.targets.shape
    assert run.history["step"] == list(range(41))
    assert {len(values) for values in run.history.values()} == {41}
    assert sorted(run.checkpoints) == [0, 5, 20, 40]
    assert torch.equal(run.at(40).W1, run.model.W1) and not torch.equal(run.at(5).W1, run.model.W1)
    with torch.no_grad():
        run.at(40).W1.zero_()
    assert run.model.W1.any() and run.checkpoints[40]["W1"].any()
    with pytest.raises(ValueError, match=r"step is 7.*\[0, 5, 20, 40\]"):
        run.at(7)


def test_checkpoints_are_the_states_that_a_shorter_run_ends_in(run):
    shorter = modular.train_mlp(3, **SMALL | {"epochs": 20})
    assert torch.equal(shorter.model.W1, run.at(20).W1)
    assert shorter.history["test loss"] == run.history["test loss"][:21]


def test_the_network_is_its_own_tangent_features_times_a_third_of_its_weights():
    # Euler: f is homogeneous of degree 3 in (W1, W2), so J(x) theta = 3 f(x).
    model, x = untrained(5, 8), modular.pairs(5).double()
    theta = dict(model.named_parameters())
    _, moved = torch.func.jvp(lambda t: torch.func.functional_call(model, t, x), (theta,), (theta,))
    torch.testing.assert_close(moved / 3, model(x))


def test_layer_kernels_are_the_closed_forms():
    # Paper, section 3: K1_ij = (4 / (2p H^2)) sum_n W2_in W2_jn z_n z'_n (x.x'),
    # K2_ij = delta_ij (1 / H^2) sum_n z_n^2 z'_n^2.
    p, width = 5, 8
    model, x = untrained(p, width), modular.pairs(p).double()
    K = empirical_ntk(model, x, reduce="full", by="tensor")
    W2, z = model.W2.detach(), model.W1.detach() @ x.T / (2 * p) ** 0.5
    K1 = torch.einsum("in,jn,nx,ny->xyij", W2, W2, z, z) * (x @ x.T)[:, :, None, None]
    K2 = torch.einsum("nx,ny,ij->xyij", z.square(), z.square(), torch.eye(p).double())
    torch.testing.assert_close(K["W1"], K1 * 4 / (2 * p * width**2))
    torch.testing.assert_close(K["W2"], K2 / width**2)


def test_the_network_groks_and_the_control_cannot():
    # First exploration, 8 seeds: test accuracy 50 % at epochs 80-85, 100 % at the end.
    run, control = (modular.train_mlp(epochs=300, shuffle_labels=s) for s in (False, True))
    accuracy = run.history["test accuracy"]
    assert 70 <= next(e for e, value in enumerate(accuracy) if value >= 0.5) <= 100
    assert accuracy[50] < 0.1 and accuracy[-1] > 0.98
    assert run.history["train accuracy"][-1] == control.history["train accuracy"][-1] == 1
    assert control.history["test accuracy"][-1] < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, "p is 1; give at least 2"),
        ({"width": 0}, "width is 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 2, 1]}, r"seeds is \[1, 2, 1\]; give each seed once"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; give a number >= 0"),
        ({"train_fraction": 0.0}, "train_fraction is 0.0"),
        ({"train_fraction": 1.01}, "train_fraction is 1.01; give a share of the 841 pairs"),
        ({"train_fraction": 0.0001}, "train_fraction is 0.0001"),
        ({"train_fraction": float("nan")}, "train_fraction is nan"),
        ({"checkpoints": [3, 501]}, r"checkpoints is \[3, 501\]; give epochs from 0 to 500"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular.train_mlp_seeds(**({"seeds": [0]} | arguments))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_sees_the_same_split_and_start():
    here, there = (modular.train_mlp(device=d, **SMALL) for d in ("cpu", "cuda"))
    assert there.inputs.is_cuda and there.train.is_cuda and there.model.W1.is_cuda
    assert torch.equal(here.train, there.train.cpu())
    torch.testing.assert_close(here.at(0).W1, there.at(0).W1.cpu())
    torch.testing.assert_close(here.model.W1, there.model.W1.cpu(), rtol=1e-3, atol=1e-4)


def test_all_pairs_may_be_trained_on():
    run = modular.train_mlp(0, p=5, width=8, train_fraction=1.0, epochs=2)
    assert run.train.all()
    assert all(loss > 0 for loss in run.history["train loss"])
    assert all(math.isnan(v) for name in ("test loss", "test accuracy") for v in run.history[name])


def test_the_step_at_which_a_history_reaches_a_level(run):
    values = run.history["train accuracy"]
    step = run.reaches("train accuracy", 0.5)
    assert values[step] >= 0.5 > max(values[:step])
    assert run.reaches("train accuracy", 2.0) is None
    assert run.reaches("train loss", 0.0) == 0
