"""Time and peak memory of one contender, in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch

from .clock import timed

ROOT = Path(__file__).parents[1]
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Contender:
    """One way to an answer. Its functions are at the top of a module, so that they pickle.

    `prepare(**size)` makes the inputs, `solve(inputs)` is what is timed, and
    `facts(inputs, answer)` says afterwards what there is to compare. It warms up on `small`. With
    `device` "cuda" in `size`, the memory is the GPU's, and the answer must lie on the CPU.
    """

    name: str
    prepare: Callable[..., Any]
    solve: Callable[[Any], Any]
    facts: Callable[[Any, Any], dict[str, Any]]
    size: dict[str, Any]
    small: dict[str, Any]


@dataclass(frozen=True)
class Worker:
    """A contender in another environment: `python -m module IN.npz OUT.npz THREADS REPEATS`.

    IN holds `inputs`, OUT gets arrays to compare; `runs`, `cpu`, `peak_mb` and `versions` are
    printed as JSON.
    """

    name: str
    python: Path
    module: str
    inputs: dict[str, np.ndarray]


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
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.cpu)


class Measure(Protocol):
    """Measures a contender in another process.

    `again`: in the one that measured the contender before it, which spares the start.
    """

    def __call__(self, contender: Contender | Worker, *, again: bool = False) -> Outcome: ...


@contextmanager
def measuring(threads: int, repeats: int, *, fresh: bool = True) -> Iterator[Measure]:
    """Give a function that measures a contender in another process with so many threads.

    `fresh`: a new process for each contender. Without it one process serves all, which is
    quicker, but its peaks of memory hide each other.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))  # read by BLAS at import
    process: ProcessPoolExecutor | None = None

    def measure(contender: Contender | Worker, *, again: bool = False) -> Outcome:
        nonlocal process
        print(f"  measuring: {contender.name} ...", file=sys.stderr, flush=True)
        if isinstance(contender, Worker):
            return _measure_worker(contender, threads, repeats)
        if process is not None and fresh and not again:
            process.shutdown()
            process = None
        process = process or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return process.submit(_measure, contender, threads, repeats).result()
        except BrokenProcessPool:
            raise SystemExit(f"{contender.name}: killed, most likely for want of memory") from None

    try:
        yield measure
    finally:
        if process is not None:
            process.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def difference(values: Any, reference: Any) -> float:
    """Largest difference, relative to the largest entry of the reference."""
    values, reference = np.asarray(values, float), np.asarray(reference, float)
    if values.shape != reference.shape:
        return float("inf")
    return float(abs(values - reference).max() / abs(reference).max())


def _measure(contender: Contender, threads: int, repeats: int) -> Outcome:
    torch.set_num_threads(threads)
    contender.solve(contender.prepare(**contender.small))
    inputs = contender.prepare(**contender.size)
    on_gpu = contender.size.get("device") == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    took = timed(lambda: contender.solve(inputs), repeats)
    peak_mb = (torch.cuda.max_memory_allocated() - held) / 1e6 if on_gpu else took.peak_mb
    return Outcome(took.runs, took.cpu, peak_mb, contender.facts(inputs, took.answer))


def _measure_worker(worker: Worker, threads: int, repeats: int) -> Outcome:
    with TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(inputs, **worker.inputs)
        command = [worker.python, "-E", "-m", worker.module, inputs, outputs, threads, repeats]
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise SystemExit(f"{worker.name}: {last}")
        report = json.loads(done.stdout)
        with np.load(outputs) as facts:
            report["facts"] = dict(facts)
    return Outcome(**report)
