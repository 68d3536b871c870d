"""The rules by which every contender is timed. Only the standard library: workers import it too."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ENOUGH_SECONDS = 10.0  # after that much of its time, a contender is not run again
_STATUS = Path("/proc/self/status")


class Timed(NamedTuple):
    """Wall-clock and CPU seconds of each run, the peak beyond what was held, the last answer."""

    runs: tuple[float, ...]
    cpu: tuple[float, ...]
    peak_mb: float
    answer: Any


def timed(solve: Callable[[], Any], repeats: int) -> Timed:
    """Run it up to so many times, in this process."""
    held = _start_of_peak()
    runs: list[float] = []
    cpu: list[float] = []
    while len(runs) < repeats and sum(runs) < ENOUGH_SECONDS:
        answer = None  # the answer of the run before does not count
        start, cpu_start = time.perf_counter(), time.process_time()
        answer = solve()
        runs.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return Timed(tuple(runs), tuple(cpu), max(_peak() - held, 0.0) / 1e6, answer)


def _start_of_peak() -> float:
    """Bytes held now; where the system allows it, the peak is counted from here."""
    if not _STATUS.exists():
        return _peak()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what was freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    """Bytes held at the peak. On Linux not `ru_maxrss`, which a child inherits."""
    if _STATUS.exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _status(name: str) -> float:
    (line,) = (s for s in _STATUS.read_text().splitlines() if s.startswith(f"{name}:"))
    return float(line.split()[1]) * 1024
