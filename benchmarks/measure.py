"""Time and peak memory of one contender, in a process of its own."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

ENOUGH_SECONDS = 10.0  # after that much of its time, a contender is not run again
_STATUS = Path("/proc/self/status")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """One way to an answer. Its functions are at the top of a module, so that they pickle.

    `prepare(**size)` makes the inputs, `solve(inputs)` is what is timed, and
    `facts(inputs, answer)` says afterwards what there is to compare. It warms up on `small`.
    """

    name: str
    prepare: Callable[..., Any]
    solve: Callable[[Any], Any]
    facts: Callable[[Any, Any], dict[str, Any]]
    size: dict[str, Any]
    small: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one contender took, and the facts about its answer.

    `runs` holds the wall-clock seconds of each run and `cpu` the CPU seconds, all threads
    together; `peak_mb` is the most memory held beyond the inputs and the libraries.
    """

    runs: tuple[float, ...]
    cpu: tuple[float, ...]
    peak_mb: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.cpu)


Measure = Callable[[Contender], Outcome]


@contextmanager
def measuring(threads: int, repeats: int, *, fresh: bool = True) -> Iterator[Measure]:
    """Give a function that measures a contender in another process with so many threads.

    `fresh`: a new process for each contender. Without it one process serves all, which is
    quicker, but its peaks of memory hide each other.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))  # read by BLAS at import
    shared = None if fresh else _process()

    def measure(contender: Contender) -> Outcome:
        print(f"  measuring: {contender.name} ...", file=sys.stderr, flush=True)
        with nullcontext(shared) if shared is not None else _process() as process:
            try:
                return process.submit(_measure, contender, threads, repeats).result()
            except BrokenProcessPool:
                raise SystemExit(
                    f"{contender.name}: killed, most likely for want of memory"
                ) from None

    try:
        yield measure
    finally:
        if shared is not None:
            shared.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def difference(values: Any, reference: Any) -> float:
    """Largest difference, relative to the largest entry of the reference."""
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    if values.shape != reference.shape:
        return float("inf")
    return float(abs(values - reference).max() / abs(reference).max())


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _measure(contender: Contender, threads: int, repeats: int) -> Outcome:
    torch.set_num_threads(threads)
    contender.solve(contender.prepare(**contender.small))
    inputs = contender.prepare(**contender.size)
    held = _start_of_peak()
    runs: list[float] = []
    cpu: list[float] = []
    while len(runs) < repeats and sum(runs) < ENOUGH_SECONDS:
        answer = None  # the answer of the run before does not count
        start, cpu_start = time.perf_counter(), time.process_time()
        answer = contender.solve(inputs)
        runs.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    peak = _peak() - held
    return Outcome(tuple(runs), tuple(cpu), max(peak, 0.0) / 1e6, contender.facts(inputs, answer))


def _start_of_peak() -> float:
    """Bytes held now; where the system allows it, the peak is counted from here."""
    if not _STATUS.exists():
        return _peak()
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
