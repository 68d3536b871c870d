"""The logit kernel over several processes that meet in a file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from language_zoo import build, windows
from torch.testing import assert_close

from entk_helpers.language.kernel import LogitKernel
from entk_helpers.spectrum import top_eigenpairs
from entk_helpers.storage import read_tensors

SCRIPT = Path(__file__).parent / "ranks.py"


def ranks(folder, count):
    """What each of several processes found."""
    started = [
        subprocess.Popen([sys.executable, SCRIPT, folder, str(rank), str(count)], stderr=subprocess.PIPE)
        for rank in range(count)
    ]  # fmt: skip
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [read_tensors(folder / str(rank)) for rank in range(count)]


@pytest.mark.parametrize(("count", "shares"), [(2, [2, 3]), (4, [1, 1, 1, 2])])
def test_several_processes_find_what_one_finds(count, shares, tmp_path):
    ids, mask, _ = windows((7, 3, 5, 6, 2))
    K = LogitKernel(build("gemma 3").float(), ids, attention_mask=mask, layer=1)
    v = torch.randn(K.shape[0], 2, generator=torch.Generator().manual_seed(1))
    w = torch.randn(K.n_parameters, generator=torch.Generator().manual_seed(2))
    pairs = top_eigenpairs(K, 6, tol=1e-4)
    expected = dict(v=K @ v, pulled=K.vjp(v[:, 0]), pushed=K.jvp(w))
    expected |= dict(values=pairs.values, vectors=pairs.vectors)
    found = ranks(tmp_path, count)
    assert [int(tensors["mine"]) for tensors, _ in found] == shares
    for tensors, _ in found:
        assert bool(tensors["kept"])
        for name, value in expected.items():
            # In float32, whose rounding depends on the share.
            assert_close(tensors[name], value, rtol=0, atol=1e-3 * value.abs().max().item())
        assert torch.equal(tensors["matvecs"], found[0][0]["matvecs"])
    assert not (tmp_path / "state").exists()
    if count == 2:
        for _, about in found:
            other, number, few, layers, weights = about["messages"].split("\n")
            assert "input_ids differs between processes" in other
            assert "input_ids differs between processes" in number
            assert "input_ids has 1 windows for 2 processes; start at most 1" in few
            assert "layer differs between processes" in layers
            assert "model differs between processes" in weights
