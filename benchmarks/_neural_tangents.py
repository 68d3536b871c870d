"""Kernels by neural-tangents, run by the interpreter of `.venv-jax`: no torch here.

    python -m benchmarks._neural_tangents IN.npz OUT.npz THREADS REPEATS

IN holds the name of a network, its parameters as PyTorch stores them, and the points x. OUT gets
class-averaged kernels: of each tensor of the network of (a), of all together for those of (f). What
they took and the versions are printed as JSON. Without arguments it prints the versions only.

Of the three implementations of neural-tangents, structured derivatives are the fastest for the
network of (a), by far: Jacobian contraction takes half a minute, and NTK-vector products crash, most
likely for want of memory. Structured derivatives fail from jax 0.4.26 on, hence the pinned versions.
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType
from typing import Any

from .clock import timed

Weights = dict[str, Any]  # a linear map as its transpose: what follows is x @ W


def quadratic(weights: Weights, x: Any) -> Any:
    """The network of (a)."""
    inputs, width = weights["W1"].shape
    return (x @ weights["W1"] / inputs**0.5) ** 2 @ weights["W2"] / width


def mlp(weights: Weights, x: Any) -> Any:
    """`growth.mlp`."""
    from jax.numpy import tanh

    for layer in "024":
        x = tanh(x) if layer > "0" else x
        x = x @ weights[f"{layer}.weight"] + weights[f"{layer}.bias"]
    return x


def block(weights: Weights, x: Any) -> Any:
    """`growth.Block`."""
    from jax.nn import softmax
    from jax.numpy import tanh

    W = {name.removesuffix(".weight"): value for name, value in weights.items()}
    q, k, v = x @ W["query"], x @ W["key"], x @ W["value"]
    x = x + softmax(q @ k.swapaxes(-1, -2) / k.shape[-1] ** 0.5) @ v @ W["out"]
    x = x + tanh(x @ W["up"]) @ W["down"]
    return x.mean(-2) @ W["read"]


NETWORKS = {f.__name__: f for f in (quadratic, mlp, block)}


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
        stored = dict(np.load(inputs))
        x, network = jax.numpy.asarray(stored.pop("x")), str(stored.pop("network"))
        # Each layer as x @ W: a transpose between W and its product hides the structure, and the
        # structured derivatives of W1 in (a) then take a hundred times as long.
        weights = {name: jax.numpy.asarray(value.T) for name, value in stored.items()}
        parts = {name: [name] for name in weights} if network == "quadratic" else {"K": weights}

        def kernel(weights: Weights, x: jax.Array, names: list[str]) -> jax.Array:
            # The trace over classes is divided by their number: the class-averaged kernel.
            ntk = nt.empirical_ntk_fn(
                lambda some, x: NETWORKS[network](weights | some, x),
                trace_axes=(-1,), vmap_axes=0,
                implementation=nt.NtkImplementation.STRUCTURED_DERIVATIVES,
            )  # fmt: skip
            return ntk(x, None, {name: weights[name] for name in names})

        kernels = jax.jit(lambda w, x: {key: kernel(w, x, names) for key, names in parts.items()})
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
