"""`memory=` bounds what a process holds beside the result, as the system counts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 16  # MB
WORK = ["kernel with structure", "kernel of all outputs", "kernel without structure", "jacobian",
        "product", "eigenpairs", "product with logits"]  # fmt: skip


@pytest.fixture(scope="module")
def peaks():
    """What `memory_peaks.py` saw, in MB."""
    # Memory that is freed goes back to the system at once: glibc keeps up to 64 MB of it otherwise.
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}
    command = [sys.executable, ROOT / "tests" / "memory_peaks.py", f"{BUDGET}MB", "4GiB"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak cannot be set back")
@pytest.mark.parametrize("work", WORK)
def test_no_more_is_held_than_the_result_and_the_budget(peaks, work):
    seen = peaks[work]
    # Points, parameters, vectors and masks come on top: 4 MB at most, where this was written.
    assert seen["little"] <= seen["result"] + BUDGET + 8
    assert seen["plenty"] > seen["result"] + 2 * BUDGET  # else the budget bounds nothing
