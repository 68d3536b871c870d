"""Work shared by processes, in one and in two of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from entk_helpers.language.processes import on_first, process_group

ROOT = Path(__file__).resolve().parents[2]

WORKER = """
import os
from entk_helpers import NotConverged
from entk_helpers.language.processes import on_first, process_group

def said(work):
    try:
        return work()
    except (ValueError, NotConverged) as error:
        return f"{type(error).__name__}: {error}"[:30]

with process_group() as first:
    rank = int(os.environ["RANK"])
    assert first == (rank == 0)
    work = []
    found = [on_first(lambda: work.append(rank) or rank)]
    found.append(said(lambda: on_first(lambda: int("seven"))))
    print(f"rank {rank}: {len(work)} {found}\\n", end="", flush=True)
"""


def test_one_process_does_its_own_work():
    with process_group() as first:
        assert first
        assert on_first(lambda: 7) == 7
        with pytest.raises(KeyError):
            on_first(lambda: {}["no"])


def test_two_processes_share_results_and_errors(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    common = f"[0, {'ValueError: invalid literal fo'!r}]"
    assert lines == [f"rank 0: 1 {common}", f"rank 1: 0 {common}"]
