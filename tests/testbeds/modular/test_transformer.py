"""The modular Transformer, against loops, autograd, torch's own AdamW, and closed forms."""

import math
import random

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from entk_helpers import empirical_ntk, jacobian
from entk_helpers.testbeds import Run, modular
from entk_helpers.testbeds.modular import transformer

pytestmark = pytest.mark.trained

# 24 pairs to learn from, in batches of 10, 10 and 4
SMALL = {"p": 7, "d_model": 16, "n_heads": 4, "d_mlp": 32, "epochs": 24, "batch_size": 10}
NAMES = ["W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U"]
TEXT = modular.tokens(7)


def untrained(seed=0, **settings) -> modular.ModularTransformer:
    """In float64, with weights large enough for attention to be far from uniform."""
    chosen = modular.TransformerSettings(**SMALL | settings)
    weights, _, _ = chosen.start(seed)
    return modular.ModularTransformer({n: 2 * w.double() for n, w in weights.items()}, 4)


def equal(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def run() -> modular.ModularRun:
    return modular.train_transformer(3, checkpoints=[5, 12], **SMALL)


# ---------------------------------------------------------------------------- the network


def by_hand(model, a: int, b: int, n_heads: int) -> tuple[list[list[float]], list[float]]:
    """Attention and logits of 'a b =', number by number."""
    W = {name: value.tolist() for name, value in model.named_parameters()}
    d = len(W["W_Q"])
    x = [[W["W_E"][t][i] + W["W_pos"][s][i] for i in range(d)] for s, t in enumerate((a, b, 7))]

    def times(matrix, vector):  # the entries of W_Q, W_K, W_V and W_O are [to][from]
        return [sum(row[i] * vector[i] for i in range(d)) for row in matrix]

    query = times(W["W_Q"], x[2])
    keys, values = ([times(W[name], x[s]) for s in range(3)] for name in ("W_K", "W_V"))
    read, pattern, size = [], [], d // n_heads
    for head in range(n_heads):
        own = range(head * size, (head + 1) * size)
        scores = [sum(query[i] * keys[s][i] for i in own) / math.sqrt(size) for s in range(3)]
        shares = [math.exp(score) for score in scores]
        pattern.append([share / sum(shares) for share in shares])
        read += [sum(pattern[-1][s] * values[s][i] for s in range(3)) for i in own]
    r = [before + added for before, added in zip(x[2], times(W["W_O"], read), strict=True)]
    m = len(W["W_out"])  # and those of W_in, W_out and W_U are [from][to]
    neurons = [max(0.0, sum(r[i] * W["W_in"][i][k] for i in range(d))) for k in range(m)]
    r = [r[i] + sum(neurons[k] * W["W_out"][k][i] for k in range(m)) for i in range(d)]
    return pattern, [sum(r[i] * W["W_U"][i][c] for i in range(d)) for c in range(8)]


def test_forward_is_attention_and_an_mlp_number_by_number():
    model = untrained()
    logits, pattern = model(TEXT), model.activations(TEXT)["pattern"]
    assert pattern.std() > 0.05
    for a, b in ((0, 0), (2, 5), (6, 1)):
        shares, outputs = by_hand(model, a, b, n_heads=4)
        assert logits[7 * a + b].tolist() == pytest.approx(outputs, rel=1e-12, abs=1e-14)
        expected = torch.tensor(shares, dtype=torch.float64)
        torch.testing.assert_close(pattern[7 * a + b], expected, rtol=1e-12, atol=0)


def test_activations_are_what_the_logits_are_computed_from():
    model = untrained()
    seen = model.activations(TEXT)
    shapes = {name: tuple(value.shape) for name, value in seen.items()}
    assert shapes == {
        "pattern": (49, 4, 3), "heads": (49, 16), "middle": (49, 16), "neurons": (49, 32),
        "final": (49, 16), "logits": (49, 8),
    }  # fmt: skip
    torch.testing.assert_close(seen["pattern"].sum(2), torch.ones(49, 4).double())
    start = model.W_E[7] + model.W_pos[2]
    torch.testing.assert_close(seen["middle"], start + seen["heads"] @ model.W_O.T)
    torch.testing.assert_close(seen["neurons"], (seen["middle"] @ model.W_in).relu())
    torch.testing.assert_close(seen["final"], seen["middle"] + seen["neurons"] @ model.W_out)
    assert torch.equal(seen["final"] @ model.W_U, seen["logits"])
    assert torch.equal(model(TEXT), seen["logits"])


def test_parameters_have_the_documented_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in untrained().named_parameters()}
    assert list(shapes) == NAMES
    assert shapes == dict.fromkeys(NAMES, (16, 16)) | {
        "W_E": (8, 16), "W_pos": (3, 16), "W_in": (16, 32), "W_out": (32, 16), "W_U": (16, 8),
    }  # fmt: skip


@pytest.mark.parametrize("n_heads", [1, 4, 16])
def test_logits_of_training_are_the_models_without_the_last(n_heads):
    settings = modular.TransformerSettings(**SMALL | {"n_heads": n_heads})
    training = transformer._Training(settings, [4, 9], set(), torch.device("cpu"))
    training.weights = {n: w.detach().double() * 2 for n, w in training.weights.items()}
    rows = torch.tensor([[0, 8, 8, 48, 13], [45, 3, 20, 0, 1]])
    logits = training._logits(rows)
    for s, chosen in enumerate(rows):
        own = {name: weight[s] for name, weight in training.weights.items()}
        expected = modular.ModularTransformer(own, n_heads)(TEXT[chosen])[:, :7]
        torch.testing.assert_close(logits[s], expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("shuffle_labels", [False, True])
def test_training_is_a_plain_loop_with_the_same_batches(shuffle_labels):
    settings = SMALL | {"shuffle_labels": shuffle_labels, "lr": 3e-3, "weight_decay": 0.7}
    run = modular.train_transformer(6, **settings)
    model, rows = run.at(0), run.train.nonzero().flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.7)
    _, labels, generator = modular.TransformerSettings(**settings).start(6)
    assert torch.equal(labels, run.targets)
    order = modular.TransformerSettings(**settings).split()
    assert torch.equal(order.sort().values, rows)
    expected = {name: [] for name in run.history if name != "step"}
    for epoch in range(25):
        if epoch % 10 == 0 or epoch == 24:
            with torch.no_grad():
                logits = model(run.inputs)[:, :7]
            for part, mask in {"train": run.train, "test": ~run.train}.items():
                loss = F.cross_entropy(logits[mask], labels[mask]).item()
                right = (logits[mask].argmax(1) == labels[mask]).double().mean().item()
                expected[f"{part} loss"].append(loss)
                expected[f"{part} accuracy"].append(right)
        if epoch == 24:
            break
        shuffled = order[torch.randperm(24, generator=generator)]
        for batch in (shuffled[:10], shuffled[10:20], shuffled[20:]):
            optimizer.zero_grad()
            F.cross_entropy(model(run.inputs[batch])[:, :7], labels[batch]).backward()
            optimizer.step()
    assert run.history["step"] == [0, 10, 20, 24]
    for name, values in expected.items():
        assert run.history[name] == pytest.approx(values, rel=1e-4), name
    for name, weight in model.named_parameters():
        torch.testing.assert_close(run.checkpoints[24][name], weight.detach(), rtol=1e-3, atol=1e-5)


def test_training_learns_the_pairs_it_sees():
    run = modular.train_transformer(0, **SMALL | {"epochs": 100, "lr": 1e-2, "weight_decay": 0.0})
    assert run.history["train accuracy"][-1] == 1 > run.history["test accuracy"][-1] + 0.5


def test_several_seeds_are_the_same_as_one_at_a_time():
    chosen = SMALL | {"checkpoints": [7], "shuffle_labels": True}
    together = modular.train_transformer_seeds([5, 3, 9], **chosen)
    for seed, one in zip([5, 3, 9], together, strict=True):
        alone = modular.train_transformer(seed, **chosen)
        assert equal(one.checkpoints[0], alone.checkpoints[0])
        assert torch.equal(one.targets, alone.targets) and torch.equal(one.train, alone.train)
        # Products of several matrices at once may be rounded in another order.
        for step in (7, 24):
            for name, weight in alone.checkpoints[step].items():
                found = one.checkpoints[step][name]
                torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-6)
        for name in alone.history:
            assert one.history[name] == pytest.approx(alone.history[name], rel=1e-5), name


def test_a_batch_may_be_larger_than_the_data_and_a_run_shorter_than_a_record():
    large, whole = (
        modular.train_transformer(0, **SMALL | {"batch_size": size, "epochs": 4})
        for size in (1000, 24)
    )
    assert equal(large.checkpoints[4], whole.checkpoints[4])
    assert large.history["step"] == [0, 4]


def test_the_smallest_task_has_two_numbers():
    run = modular.train_transformer(0, **SMALL | {"p": 2, "n_heads": 16})
    assert run.inputs.tolist() == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    assert run.train.sum() == 2 and run.model(run.inputs).shape == (4, 3)


# ---------------------------------------------------------------------------- what a seed fixes


def test_weights_start_with_their_variances_and_independent():
    settings = modular.TransformerSettings()
    weights, _, _ = settings.start(0)
    assert list(weights) == NAMES
    variances = dict.fromkeys(NAMES, 1 / 64) | {"W_in": 1 / 256, "W_U": 1 / 30}
    for name, W in weights.items():
        slack = 5 * (2 / W.numel()) ** 0.5  # five standard deviations of a variance
        assert W.dtype == torch.float32
        assert W.var().item() == pytest.approx(variances[name], rel=slack), name
        assert W.mean().item() == pytest.approx(0, abs=5 * (variances[name] / W.numel()) ** 0.5)
    correlations = torch.corrcoef(torch.stack([weights[f"W_{x}"].flatten() for x in "QKVO"]))
    assert (correlations - torch.eye(4)).abs().max() < 5 / 64


def test_a_seed_determines_weights_and_batches_but_not_the_split():
    one, two, again = (modular.train_transformer(seed, **SMALL) for seed in (0, 1, 0))
    assert equal(one.checkpoints[24], again.checkpoints[24])
    assert torch.equal(one.train, two.train) and torch.equal(one.targets, two.targets)
    for name in NAMES:
        assert not torch.equal(one.checkpoints[0][name], two.checkpoints[0][name])


@pytest.mark.parametrize("split_seed", [0, 5])
def test_split_is_the_beginning_of_pythons_shuffle(split_seed):
    order = list(range(29**2))
    random.Random(split_seed).shuffle(order)
    settings = modular.TransformerSettings(split_seed=split_seed)
    assert settings.n_train == 420 and settings.split().tolist() == order[:420]
    run = modular.train_transformer(0, **SMALL | {"train_fraction": 0.3, "split_seed": split_seed})
    order = list(range(49))
    random.Random(split_seed).shuffle(order)
    assert run.train.nonzero().flatten().tolist() == sorted(order[:14])  # 0.3 * 49 = 14.7


def test_start_and_split_do_not_depend_on_how_long_or_how_it_is_trained(run):
    for change in ({"epochs": 1}, {"shuffle_labels": True}, {"lr": 0.1}, {"batch_size": 3}):
        other = modular.train_transformer(3, **SMALL | change)
        assert equal(other.checkpoints[0], run.checkpoints[0])
        assert torch.equal(other.train, run.train)


def test_shuffled_labels_are_a_permutation_of_each_seeds_own():
    settings = modular.TransformerSettings(shuffle_labels=True)
    one, two, again = (settings.start(seed)[1] for seed in (0, 1, 0))
    assert one.bincount().tolist() == two.bincount().tolist() == [29] * 29
    assert torch.equal(one, again)
    # Agreement by chance: 841 / 29 = 29 pairs, with a standard deviation of 5.3
    for other in (modular.sums(29), two):
        assert (one == other).sum() < 29 + 5 * 5.3


def test_random_state_of_the_caller_is_neither_used_nor_changed():
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state()
    first = modular.train_transformer(**SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    random.seed(6)
    assert equal(modular.train_transformer(**SMALL).checkpoints[24], first.checkpoints[24])


# ---------------------------------------------------------------------------- what comes out


def test_run_keeps_its_promises(run):
    assert isinstance(run, Run)
    assert torch.equal(run.inputs, TEXT) and torch.equal(run.targets, modular.sums(7))
    assert run.train.dtype == torch.bool and run.train.sum() == 24  # 0.5 * 49 = 24.5
    assert run.model(run.inputs).shape == (49, 8)
    assert run.history["step"] == [0, 10, 20, 24]
    assert {len(values) for values in run.history.values()} == {4}
    assert sorted(run.checkpoints) == [0, 5, 12, 24]
    assert equal(dict(run.model.state_dict()), run.checkpoints[24])
    assert not torch.equal(run.at(5).W_E, run.model.W_E)
    before = run.checkpoints[24]["W_E"].clone()
    with torch.no_grad():
        run.at(24).W_E.zero_()
    assert torch.equal(run.model.W_E, before) and torch.equal(run.checkpoints[24]["W_E"], before)


def test_history_is_that_of_the_networks_kept():
    run = modular.train_transformer(2, checkpoints=[10, 20], **SMALL)
    for where, step in enumerate(run.history["step"]):
        logits = run.at(step)(run.inputs)[:, :7]
        for part, mask in {"train": run.train, "test": ~run.train}.items():
            loss = F.cross_entropy(logits[mask], run.targets[mask]).item()
            assert run.history[f"{part} loss"][where] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, [0, 1]), (10, [0, 10]), (11, [0, 10, 11]), (20, [0, 10, 20])]
)
def test_history_is_kept_every_ten_epochs_and_at_the_last(epochs, steps):
    run = modular.train_transformer(0, **SMALL | {"epochs": epochs})
    assert run.history["step"] == steps
    assert {len(values) for values in run.history.values()} == {len(steps)}
    assert sorted(run.checkpoints) == [0, epochs]


def test_checkpoints_are_the_states_that_a_shorter_run_ends_in(run):
    shorter = modular.train_transformer(3, **SMALL | {"epochs": 12})
    assert equal(shorter.checkpoints[12], run.checkpoints[12])
    assert shorter.history["test loss"][:2] == run.history["test loss"][:2]


def test_checkpoints_may_be_named_twice_or_be_the_first():
    run = modular.train_transformer(3, checkpoints=[5, 0, 5, 24], **SMALL)
    assert sorted(run.checkpoints) == [0, 5, 24]
    assert equal(run.checkpoints[0], modular.TransformerSettings(**SMALL).start(3)[0])


def test_all_pairs_may_be_trained_on():
    run = modular.train_transformer(0, **SMALL | {"train_fraction": 1.0, "epochs": 2})
    assert run.train.all()
    assert all(loss > 0 for loss in run.history["train loss"])
    assert all(math.isnan(v) for name in ("test loss", "test accuracy") for v in run.history[name])


# ---------------------------------------------------------------------------- going on


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupted_at(monkeypatch):
    """Set after how many epochs of this process training breaks off; None: never."""
    done, plain = {"limit": None}, transformer._Training.one_epoch
    monkeypatch.setattr(transformer, "SAVE_EVERY", 4)

    def one_epoch(training):
        if done["limit"] is not None:
            done["limit"] -= 1
            if done["limit"] < 0:
                raise Interrupted
        plain(training)

    monkeypatch.setattr(transformer._Training, "one_epoch", one_epoch)

    def at(limit: int | None) -> None:
        done["limit"] = limit

    return at


@pytest.mark.parametrize("breaks", [(3,), (4,), (14,), (6, 5, 11), (23,)])
def test_interrupted_training_goes_on_as_if_nothing_had_been(tmp_path, interrupted_at, breaks):
    chosen = SMALL | {"checkpoints": [3, 8, 13], "shuffle_labels": True}
    whole = modular.train_transformer_seeds([2, 8], **chosen)
    file = tmp_path / "kept" / "resume.safetensors"
    for limit in breaks:
        interrupted_at(limit)
        with pytest.raises(Interrupted):
            modular.train_transformer_seeds([2, 8], resume=file, **chosen)
    assert file.exists() == (breaks != (3,))
    # The last call has only what is left to do.
    interrupted_at(24 - 4 * (breaks[0] // 4) if len(breaks) == 1 else 24)
    torch.randn(3)
    again = modular.train_transformer_seeds([2, 8], resume=str(file), **chosen)
    assert not file.exists() and not list(tmp_path.rglob("*.part"))
    for one, other in zip(whole, again, strict=True):
        assert one.history == other.history
        assert sorted(one.checkpoints) == sorted(other.checkpoints) == [0, 3, 8, 13, 24]
        assert all(equal(one.checkpoints[s], other.checkpoints[s]) for s in one.checkpoints)


def test_a_file_of_finished_training_is_enough(tmp_path, interrupted_at, monkeypatch):
    whole = modular.train_transformer(2, checkpoints=[8], **SMALL)
    file = tmp_path / "resume"
    save = transformer._Training.save

    def save_and_stop(training, path):
        save(training, path)
        if training.epoch == 24:
            raise Interrupted

    monkeypatch.setattr(transformer._Training, "save", save_and_stop)
    with pytest.raises(Interrupted):
        modular.train_transformer(2, checkpoints=[8], resume=file, **SMALL)
    interrupted_at(0)
    again = modular.train_transformer(2, checkpoints=[8], resume=file, **SMALL)
    assert again.history == whole.history
    assert all(equal(again.checkpoints[s], whole.checkpoints[s]) for s in (0, 8, 24))


@pytest.fixture
def left(tmp_path, interrupted_at):
    """The file that a training of seed 2, with checkpoint 5, has left after 8 epochs."""
    file = tmp_path / "resume.safetensors"
    interrupted_at(10)
    with pytest.raises(Interrupted):
        modular.train_transformer(2, checkpoints=[5], resume=file, **SMALL)
    interrupted_at(None)
    return file


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"lr": 1e-3}, {"n_heads": 2}, {"checkpoints": [6]}, {"epochs": 30}]
)
def test_going_on_from_another_trainings_file_is_refused(left, change):
    before = left.read_bytes()
    with pytest.raises(ValueError, match=r"resume names .*another training has left; remove it"):
        modular.train_transformer(
            **{"seed": 2, "checkpoints": [5], "resume": left} | SMALL | change
        )
    assert left.read_bytes() == before


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_going_on_from_a_cut_file_is_refused(left, size):
    left.write_bytes(left.read_bytes()[:size])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        modular.train_transformer(2, checkpoints=[5], resume=left, **SMALL)
    assert left.exists()


def test_going_on_from_a_file_of_another_kind_is_refused(left):
    save_file({"x": torch.ones(2)}, left)
    with pytest.raises(ValueError, match="another training has left"):
        modular.train_transformer(2, checkpoints=[5], resume=left, **SMALL)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_a_saved_run_comes_back(tmp_path, dtype):
    chosen = SMALL | {"shuffle_labels": True, "train_fraction": 0.4, "split_seed": 3}
    run = modular.train_transformer(7, checkpoints=[5, 12], **chosen)
    file = tmp_path / "new" / "seed_7.safetensors"
    dtypes = {12: dtype, 24: dtype}
    modular.save_transformer(file, run, 7, dtypes=dtypes, stamp="abc", **chosen)
    back = modular.load_transformer(file)
    assert sorted(back.checkpoints) == [0, 12, 24]
    assert back.history == run.history
    for name in ("inputs", "targets", "train"):
        assert torch.equal(getattr(back, name), getattr(run, name))
    assert equal(back.checkpoints[0], run.checkpoints[0])
    for step in (12, 24):
        assert list(back.checkpoints[step]) == NAMES
        for name, exact in run.checkpoints[step].items():
            row = exact.abs().amax(-1, keepdim=True)
            bound = {
                torch.float32: 0 * row,
                torch.float16: exact.abs() * 2**-11 + 2**-25,
                torch.int8: row / 127 * 0.5001,
            }[dtype]
            stored = back.checkpoints[step][name]
            assert stored.dtype == torch.float32
            assert ((stored - exact).abs() <= bound).all()
            assert dtype is torch.float32 or not torch.equal(stored, exact)
    assert back.model.n_heads == 4
    assert [name for name, _ in back.model.named_parameters()] == NAMES
    assert equal(dict(back.model.state_dict()), back.checkpoints[24])
    if dtype is torch.float32:
        assert torch.equal(back.model(TEXT), run.model(TEXT))


def test_a_file_of_another_kind_is_not_loaded(tmp_path):
    for about in ({}, {"history": "[]"}, {"history": "[]", "settings": "{}", "seed": "x"},
                  {"history": "[]", "settings": '{"width": 3}', "seed": "0"}):  # fmt: skip
        save_file({"0 W": torch.ones(2)}, tmp_path / "other", metadata=about)
        with pytest.raises(ValueError, match=r"other (holds no run|is not a run of the modular)"):
            modular.load_transformer(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        modular.load_transformer(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"n_heads": 2}, {"epochs": 25}, {"p": 5}, {"shuffle_labels": True},
     {"split_seed": 1}, {"train_fraction": 0.4}],
)  # fmt: skip
def test_a_run_is_not_saved_as_one_of_another_seed_or_settings(tmp_path, run, change):
    given = {"seed": 3, "dtypes": {24: torch.float16, 12: torch.int8}} | SMALL | change
    with pytest.raises(ValueError, match=r"run is not one of seed . and these settings"):
        modular.save_transformer(tmp_path / "x", run, **given)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_saved_without_its_end(tmp_path, run):
    with pytest.raises(ValueError, match="dtypes must name the last epoch, 24, too"):
        modular.save_transformer(tmp_path / "x", run, 3, dtypes={12: torch.int8}, **SMALL)


def test_an_epoch_that_was_not_kept_cannot_be_saved(tmp_path, run):
    dtypes = {6: torch.float16, 24: torch.float16}
    with pytest.raises(ValueError, match=r"step 6; there are \[0, 5, 12, 24\]"):
        modular.save_transformer(tmp_path / "x", run, 3, dtypes=dtypes, **SMALL)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- kernels


@pytest.fixture(scope="module")
def model() -> modular.ModularTransformer:
    return untrained(1)


@pytest.fixture(scope="module")
def averaged(model):
    return empirical_ntk(model, TEXT, by="tensor")


@pytest.fixture(scope="module")
def pseudo(model):
    return empirical_ntk(model, TEXT, reduce="pseudo", by="tensor")


@pytest.fixture(scope="module")
def seen(model):
    return {name: value.detach() for name, value in model.activations(TEXT).items()}


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


def gradients(model, activation: str) -> torch.Tensor:
    """Of each output (49, 8) for an activation before a matrix: (49, 8, width), by autograd."""
    found = {}

    def catch(value):
        found[activation] = value
        return value

    W = {name: value.detach() for name, value in model.named_parameters()}
    x = W["W_E"][TEXT] + W["W_pos"]
    values = {
        "query": x[:, 2] @ W["W_Q"].T,
        "middle": model.activations(TEXT)["middle"].detach(),
        "neurons": (model.activations(TEXT)["middle"] @ W["W_in"]).detach(),
    }
    start = values[activation].requires_grad_()
    if activation == "query":
        k, v = ((x @ W[name].T).unflatten(2, (4, 4)) for name in ("W_K", "W_V"))
        scores = (start.unflatten(1, (4, 4))[:, None] * k).sum(3) / 2
        heads = (scores.softmax(1)[..., None] * v).sum(1).flatten(1)
        middle = x[:, 2] + heads @ W["W_O"].T
    else:
        middle = start if activation == "middle" else values["middle"]
    before = start if activation == "neurons" else middle @ W["W_in"]
    logits = (middle + before.relu() @ W["W_out"]) @ W["W_U"]
    torch.testing.assert_close(logits, model(TEXT).detach())
    each = [torch.autograd.grad(logits[:, c].sum(), start, retain_graph=True)[0] for c in range(8)]
    return torch.stack(each, dim=1)


def test_kernels_of_all_tensors_are_those_of_the_jacobian(model, averaged, pseudo):
    J = jacobian(model, TEXT, by="tensor")
    assert list(J) == list(averaged) == list(pseudo) == NAMES
    for name in NAMES:
        close(averaged[name], torch.einsum("icp,jcp->ij", J[name], J[name]) / 8)
        close(pseudo[name], torch.einsum("icp,jdp->ij", J[name], J[name]) / 64)
    close(sum(averaged.values()), empirical_ntk(model, TEXT))
    close(sum(pseudo.values()), empirical_ntk(model, TEXT, reduce="pseudo"))


def test_kernel_of_the_unembedding_is_the_gram_of_the_final_stream(averaged, pseudo, seen):
    gram = seen["final"] @ seen["final"].T
    close(averaged["W_U"], gram)
    close(pseudo["W_U"], gram / 8)


def test_kernel_of_the_mlps_output_is_the_gram_of_the_neurons(model, averaged, pseudo, seen):
    gram, W_U = seen["neurons"] @ seen["neurons"].T, model.W_U.detach()
    close(averaged["W_out"], W_U.square().sum() / 8 * gram)
    close(pseudo["W_out"], W_U.mean(1).square().sum() * gram)


@pytest.mark.parametrize(
    ("name", "read", "written"), [("W_in", "middle", "neurons"), ("W_O", "heads", "middle")]
)
def test_kernel_of_a_matrix_is_a_gram_of_inputs_times_one_of_gradients(
    model, averaged, pseudo, seen, name, read, written
):
    g, inputs = gradients(model, written), seen[read] @ seen[read].T
    close(averaged[name], inputs * torch.einsum("ico,jco->ij", g, g) / 8)
    close(pseudo[name], inputs * (g.mean(1) @ g.mean(1).T))


def test_kernel_of_the_query_is_a_gram_of_gradients_as_its_input_is_one(model, averaged, pseudo):
    g = gradients(model, "query")
    size = (model.W_E[7] + model.W_pos[2]).square().sum().item()
    close(averaged["W_Q"], size * torch.einsum("ico,jco->ij", g, g) / 8)
    close(pseudo["W_Q"], size * (g.mean(1) @ g.mean(1).T))


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p": 1}, "p is 1; give at least 2"),
        ({"d_model": 0}, "d_model is 0; give at least 1"),
        ({"n_heads": 0}, "n_heads is 0; give at least 1"),
        ({"d_mlp": 0}, "d_mlp is 0; give at least 1"),
        ({"n_heads": 5}, "d_model is 64; give a multiple of n_heads, 5"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 2, 1]}, r"seeds is \[1, 2, 1\]; give each seed once"),
        ({"epochs": 0}, "epochs is 0; give at least 1"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"lr": 0.0}, "lr is 0.0; give a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; give a number >= 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
        ({"train_fraction": 0.0}, "train_fraction is 0.0"),
        ({"train_fraction": 1.01}, "train_fraction is 1.01; give a share of the 841 pairs"),
        ({"train_fraction": 0.001}, "train_fraction is 0.001"),
        ({"train_fraction": float("nan")}, "train_fraction is nan"),
        ({"checkpoints": [3, 4001]}, r"checkpoints is \[3, 4001\]; give epochs from 0 to 4000"),
        ({"checkpoints": [-1]}, r"checkpoints is \[-1\]"),
        (SMALL | {"lr": 1e10}, "lr is 10000000000.0; training diverged, give less"),
    ],
)
def test_bad_arguments_are_named_with_a_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        modular.train_transformer_seeds(**({"seeds": [0]} | arguments))


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="width"):
        modular.train_transformer(0, width=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_sees_the_same_split_start_and_batches(tmp_path, interrupted_at):
    here = modular.train_transformer(2, checkpoints=[5], **SMALL)
    interrupted_at(10)
    chosen = {"checkpoints": [5], "resume": tmp_path / "resume", "device": "cuda"} | SMALL
    with pytest.raises(Interrupted):
        modular.train_transformer(2, **chosen)
    interrupted_at(None)
    there = modular.train_transformer(2, **chosen)
    assert there.inputs.is_cuda and there.targets.is_cuda and there.train.is_cuda
    assert torch.equal(here.train, there.train.cpu())
    for step in (0, 5, 24):
        for name, weight in here.checkpoints[step].items():
            other = there.checkpoints[step][name]
            assert other.is_cuda
            torch.testing.assert_close(weight, other.cpu(), rtol=1e-3, atol=1e-4)


def test_checkpoints_come_in_the_order_of_training_from_a_file_too(tmp_path):
    run = modular.train_transformer(1, checkpoints=[5, 3], **SMALL)
    path = tmp_path / "run.safetensors"
    dtypes = dict.fromkeys((SMALL["epochs"], 3), torch.float16)
    modular.save_transformer(path, run, 1, dtypes=dtypes, **SMALL)
    assert list(run.checkpoints) == [0, 3, 5, SMALL["epochs"]]
    assert list(modular.load_transformer(path).checkpoints) == [0, 3, SMALL["epochs"]]
