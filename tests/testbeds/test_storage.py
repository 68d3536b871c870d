"""Trained networks in small files, entry by entry."""

import json

import pytest
import torch
from safetensors.torch import save_file

from entk_helpers.storage import read_tensors
from entk_helpers.testbeds.storage import read_run, write_run

HISTORY = {"step": [0, 10, 13], "train loss": [2.5, 0.1, float("nan")]}


def weights(seed=0) -> dict[str, torch.Tensor]:
    """Rows of very different sizes, one of them zero; a vector, and a single number."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([1e-4, 1.0, 0.0, 300.0, 1e-12])[:, None]
    return {
        "W": torch.randn(5, 40, generator=generator) * sizes,
        "heads": torch.randn(2, 3, 8, generator=generator),
        "bias": torch.randn(7, generator=generator),
        "gain": torch.tensor(-1.7),
    }


@pytest.fixture
def file(tmp_path):
    write_run(tmp_path / "run", {0: weights(), 13: weights(1)}, HISTORY, {13: torch.float32}, {})
    return tmp_path / "run"


def test_what_is_written_comes_back(tmp_path):
    states, about = {s: weights(s) for s in (0, 9, 10, 13)}, {"seed": "4", "stamp": "å b"}
    kept = dict.fromkeys((13, 0, 9), torch.float32)
    write_run(tmp_path / "deep" / "run", states, HISTORY, kept, about)
    back = read_run(tmp_path / "deep" / "run")
    assert back.about == about
    assert list(back.checkpoints) == [0, 9, 13]
    for step, state in back.checkpoints.items():
        assert sorted(state) == sorted(states[step])
        assert all(torch.equal(state[name], states[step][name]) for name in state)
    assert back.history["step"] == [0, 10, 13]
    assert all(isinstance(step, int) for step in back.history["step"])
    assert back.history["train loss"] == pytest.approx([2.5, 0.1, float("nan")], nan_ok=True)
    assert list(back.history) == ["step", "train loss"]


def test_eight_bits_are_off_by_half_a_step_of_their_row_at_most(tmp_path):
    exact = weights()
    write_run(tmp_path / "run", {3: exact}, HISTORY, {3: torch.int8}, {})
    stored, _ = read_tensors(tmp_path / "run")
    assert stored["3 W"].dtype == torch.int8 and stored["scale 3 W"].shape == (5, 1)
    assert stored["scale 3 heads"].shape == (2, 3, 1)
    assert torch.equal(stored["3 W"].abs().amax(1), torch.tensor([127, 127, 0, 127, 127]))
    assert stored["scale 3 W"].min() > 0
    back = read_run(tmp_path / "run").checkpoints[3]
    for name, W in exact.items():
        step = W.abs().amax(-1, keepdim=True) / 127
        assert back[name].dtype == torch.float32 and back[name].shape == W.shape
        assert ((back[name] - W).abs() <= 0.5 * step + 1e-6 * W.abs()).all()
        peak = W.abs() == W.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(back[name][peak], W[peak], rtol=1e-6, atol=0)
    assert not back["W"][2].any()


def test_half_precision_is_off_by_its_rounding(tmp_path):
    exact = {"W": torch.linspace(-3, 3, 60).reshape(6, 10)}
    dtypes = {1: torch.float16, 2: torch.bfloat16}
    write_run(tmp_path / "run", {1: exact, 2: exact}, HISTORY, dtypes, {})
    back = read_run(tmp_path / "run").checkpoints
    for step, eps in ((1, 2**-11), (2, 2**-8)):
        assert back[step]["W"].dtype == torch.float32
        off = (back[step]["W"] - exact["W"]).abs()
        assert off.max() > 0 and (off <= eps * exact["W"].abs()).all()


def test_fewer_bits_make_smaller_files(tmp_path):
    state = {"W": torch.randn(64, 256, generator=torch.Generator().manual_seed(0))}
    sizes = []
    for dtype in (torch.float32, torch.float16, torch.int8):
        write_run(tmp_path / "run", {1: state}, HISTORY, {1: dtype}, {})
        sizes.append((tmp_path / "run").stat().st_size)
    assert sizes == pytest.approx([65536, 32768, 16384 + 256], abs=600)


def test_weights_may_need_gradients_and_be_views(tmp_path):
    W = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    state = {"W": W, "turned": W.T, "every other": W[:, ::2]}
    write_run(tmp_path / "run", {1: state}, HISTORY, {1: torch.float16}, {})
    back = read_run(tmp_path / "run").checkpoints[1]
    assert not back["W"].requires_grad and list(back) == ["W", "every other", "turned"]
    assert torch.equal(back["turned"], W.detach().T)
    assert torch.equal(back["every other"], W.detach()[:, ::2])


def test_a_step_that_has_no_checkpoint_is_refused(tmp_path):
    dtypes = dict.fromkeys((10, 7, 5), torch.int8)
    with pytest.raises(ValueError, match=r"dtypes names step 5; there are \[0, 10\]"):
        write_run(tmp_path / "run", {0: weights(), 10: weights()}, HISTORY, dtypes, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, torch.float16, r"W of step 3 does not fit into torch.float16"),
        (float("nan"), torch.int8, "W of step 3 .* or holds NaN or Inf"),
        (float("inf"), torch.float32, "W of step 3 .* or holds NaN or Inf"),
        (0.5, torch.int16, r"torch.int16 for step 3; give int8 or a float type"),
        (0.5, torch.uint8, r"torch.uint8 for step 3"),
    ],
)
def test_a_dtype_that_cannot_hold_the_weights_is_refused(tmp_path, value, dtype, message):
    W = torch.ones(3, 4)
    W[1, 2] = value
    with pytest.raises(ValueError, match=message):
        write_run(tmp_path / "run", {3: {"W": W}}, HISTORY, {3: dtype}, {})
    assert not list(tmp_path.iterdir())


def test_two_names_may_share_a_tensor(tmp_path):
    W = torch.ones(2, 3)
    states = {1: {"W": W, "tied": W}, 2: {"W": W, "tied": W}}
    write_run(tmp_path / "run", states, HISTORY, dict.fromkeys((1, 2), torch.float32), {})
    assert torch.equal(read_run(tmp_path / "run").checkpoints[2]["tied"], W)


@pytest.mark.parametrize("size", [0, 4, 8, 200, -1])
def test_a_cut_run_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="run is not a whole safetensors file"):
        read_run(file)


def test_a_safetensors_file_without_a_history_is_no_run(tmp_path):
    save_file({"W": torch.ones(2)}, tmp_path / "other")
    assert read_tensors(tmp_path / "other")[1] == {}
    with pytest.raises(ValueError, match="other holds no run: its header has no history"):
        read_run(tmp_path / "other")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_run(tmp_path / "none")


def test_the_header_names_the_history_in_order(file):
    _, about = read_tensors(file)
    assert json.loads(about["history"]) == ["step", "train loss"]
