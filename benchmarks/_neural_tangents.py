"""The kernels of (a) by neural-tangents, run by the interpreter of `.venv-jax`: no torch here.

    python -m benchmarks._neural_tangents IN.npz OUT.npz THREADS REPEATS

IN holds W1, W2 and x, OUT gets the class-averaged kernels; what they took and the versions are
printed as JSON. Without arguments it prints the versions only.

Of the three implementations of neural-tangents, structured derivatives are the fastest for this
network, by far: Jacobian contraction takes half a minute, and NTK-vector products crash, most
likely for want of memory. Structured derivatives fail from jax 0.4.26 on, hence the pinned versions.
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

from .clock import timed


def main(inputs: str = "", outputs: str = "", threads: str = "1", repeats: str = "1") -> None:
    """Compute, time, and write the answer. jax reads its settings when it is imported."""
    _use(int(threads))
    # neural-tangents imports its TensorFlow wrappers, unused here and 2 GB to install.
    sys.modules["neural_tangents.experimental"] = ModuleType("left out")
    import jax
    import neural_tangents as nt
    import numpy as np

    report = {"versions": {"neural-tangents": nt.__version__, "jax": jax.__version__}}
    if inputs:
        stored = np.load(inputs)
        # Each layer as x @ W: a transpose between W and its product hides the structure, and the
        # structured derivatives of W1 then take a hundred times as long.
        weights = {name: jax.numpy.asarray(stored[name].T) for name in ("W1", "W2")}
        x = jax.numpy.asarray(stored["x"])

        def f(weights: dict, x: jax.Array) -> jax.Array:
            inputs, width = weights["W1"].shape
            return (x @ weights["W1"] / inputs**0.5) ** 2 @ weights["W2"] / width

        def kernel(weights: dict, x: jax.Array, name: str) -> jax.Array:
            # The trace over classes is divided by their number: the class-averaged kernel.
            ntk = nt.empirical_ntk_fn(
                lambda W, x: f(weights | {name: W}, x),
                trace_axes=(-1,), vmap_axes=0,
                implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
            )  # fmt: skip
            return ntk(x, None, weights[name])

        kernels = jax.jit(lambda weights, x: {name: kernel(weights, x, name) for name in weights})
        jax.block_until_ready(kernels(weights, x))  # compiles
        took = timed(lambda: jax.block_until_ready(kernels(weights, x)), int(repeats))
        np.savez(outputs, **{name: np.asarray(K) for name, K in took.answer.items()})
        report |= {"runs": took.runs, "cpu": took.cpu, "peak_mb": took.peak_mb}
    print(json.dumps(report))


def _use(threads: int) -> None:
    """Keep to so many cores. XLA's flags alone do not: Jacobian contraction still used two."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = flags
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    main(*sys.argv[1:])
