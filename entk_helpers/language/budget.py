"""What a study would take on this machine: bytes, seconds, and whether its kernels fit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..device import default_device
from ..inputs import parse_bytes
from .plan import LayerPlan, matmul_rate, plan, solver_bytes, weight_bytes
from .processes import local_rank
from .settings import Settings, parse_layers
from .sources import PUBLIC_CONFIGS, load_config, quiet, require_packages

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def the_device(settings: Settings) -> torch.device:
    """The device that was asked for, or the default; one GPU a process under torchrun."""
    if settings.device is None:
        device = default_device()
        return torch.device("cuda", local_rank()) if device == torch.device("cuda", 0) else device
    try:
        return torch.zeros(0, device=settings.device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {settings.device} cannot be used here ({reason})") from error


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, for each of the processes that share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines}["MemAvailable:"]
    except (OSError, KeyError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Budget:
    """A plan, and the memory that it is made for; all in bytes, for one process."""

    layers: list[LayerPlan]
    free: int
    weights: int
    solver: int
    memory: int

    @classmethod
    def of(cls, settings: Settings, config: PretrainedConfig, device: torch.device) -> Budget:
        """Plan for the layers that were asked for.

        Raises ValueError where weights and eigenvectors, or a layer's kernel, do not fit.
        """
        dtype, shape = settings.torch_dtype, config.get_text_config()
        layers = parse_layers(settings.layers, shape.num_hidden_layers)
        weights = weight_bytes(config, dtype)
        solver = solver_bytes(settings.windows * shape.hidden_size, settings.pairs, dtype)
        free = free_bytes(device)
        rest = int(0.8 * free) - weights - solver
        if rest <= 0:
            raise ValueError(
                f"memory: weights ({size(weights)}) and eigenvectors ({size(solver)}) do not fit "
                f"into the {size(free)} that are free on {device}; use a larger machine or fewer "
                "--windows"
            )
        memory = rest if settings.memory is None else parse_bytes(settings.memory)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        plans = plan(
            config,
            windows=-(-settings.windows // processes),
            length=settings.length,
            layers=layers,
            module=settings.module,
            pairs=settings.pairs,
            memory=memory,
            dtype=dtype,
        )
        if large := [p for p in plans if p.mode == "too large"]:
            need = max(large, key=lambda p: p.least_bytes)
            raise ValueError(
                f"--memory {settings.memory or size(memory)} is too small: the kernel of layer "
                f"{need.layer} needs {size(need.least_bytes)}; give more, fewer --windows, or more "
                "processes"
            )
        return cls(plans, free, weights, solver, memory)


def size(count: int | float) -> str:
    """Bytes as text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"


def duration(seconds: int | float) -> str:
    """Seconds as text."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"


def show_plan(settings: Settings) -> None:
    """Print what each layer's kernel would take here, without weights, text or network."""
    require_packages(["transformers"])
    quiet()
    known = settings.model in PUBLIC_CONFIGS and not Path(settings.model).is_dir()
    config = PUBLIC_CONFIGS[settings.model]() if known else load_config(settings.model)
    device = the_device(settings)
    budget = Budget.of(settings, config, device)
    rate = matmul_rate(device, settings.torch_dtype)
    print(
        f"{settings.model}: {settings.windows} windows of {settings.length} tokens, "
        f"{settings.pairs} pairs, {settings.dtype}\n"
        f"{device}: {rate / 1e9:,.0f} GFLOP/s in matrix products, {size(budget.free)} free: weights "
        f"{size(budget.weights)}, eigenvectors {size(budget.solver)}, a kernel up to "
        f"{size(budget.memory)}\n"
        f"layer  cached      record      mode        GFLOP/product  products  at least"
    )
    for p in budget.layers:
        print(
            f"{p.layer:5}  {size(p.cached_bytes):10}  {size(p.graph_bytes):10}  {p.mode:10}  "
            f"{p.flops_per_product / 1e9:13,.1f}  {p.products:8}  {duration(p.flops / rate)}"
        )
    print(f"all: at least {duration(sum(p.flops for p in budget.layers) / rate)}")
