"""Trained networks in small files: safetensors, written whole or not at all.

A checkpoint may be kept in fewer bits than it was trained in: float16, or int8 with one
scale for each row of a matrix, which changes no entry by more than half a step of its row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..storage import read_tensors, reading, write_tensors


@dataclass(frozen=True)
class StoredRun:
    """What a file holds of a run: as in `Run`, and `about`, whatever was noted beside it."""

    checkpoints: dict[int, dict[str, Tensor]]
    history: dict[str, list]
    about: dict[str, str]


def write_run(
    path: Path | str,
    checkpoints: Mapping[int, Mapping[str, Tensor]],
    history: Mapping[str, list],
    dtypes: Mapping[int, torch.dtype],
    about: Mapping[str, str],
) -> None:
    """Write the checkpoints that `dtypes` names, each in its dtype, and the history.

    Raises ValueError for a step that has no checkpoint, and for a dtype that cannot hold one:
    weights that overflow in float16, integers other than int8.
    """
    if missing := sorted(set(dtypes) - set(checkpoints)):
        raise ValueError(f"dtypes names step {missing[0]}; there are {sorted(checkpoints)}")
    tensors = {}
    for step, dtype in dtypes.items():
        if not (dtype.is_floating_point or dtype is torch.int8):
            raise ValueError(f"dtypes names {dtype} for step {step}; give int8 or a float type")
        for name, weight in checkpoints[step].items():
            if dtype is torch.int8:
                scale = (weight.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
                tensors[f"scale {step} {name}"] = scale.float()
                tensors[f"{step} {name}"] = (weight / scale).round().to(dtype)
            else:
                tensors[f"{step} {name}"] = weight.to(dtype)
            stored = tensors.get(f"scale {step} {name}", tensors[f"{step} {name}"])
            if not stored.float().isfinite().all():
                raise ValueError(
                    f"{name} of step {step} does not fit into {dtype}, or holds NaN or Inf"
                )
    for name, values in history.items():
        exact = torch.int32 if all(isinstance(v, int) for v in values) else torch.float32
        tensors[f"history {name}"] = torch.tensor(values, dtype=exact)
    write_tensors(path, tensors, {"history": json.dumps(list(history)), **about})


def read_run(path: Path | str) -> StoredRun:
    """Read what `write_run` wrote; weights come back in float32.

    Raises ValueError for a file that is cut off, damaged or of another kind.
    """
    tensors, about = read_tensors(path)
    if "history" not in about:
        raise ValueError(f"{path} holds no run: its header has no history")
    checkpoints: dict[int, dict[str, Tensor]] = {}
    with reading(path, "run"):
        names = json.loads(about.pop("history"))
        history = {name: tensors.pop(f"history {name}").tolist() for name in names}
        scales = {key: tensors.pop(key) for key in list(tensors) if key.startswith("scale ")}
        for key in tensors:
            step, name = key.split(" ", 1)
            weight = tensors[key].float() * scales.get(f"scale {key}", 1)
            checkpoints.setdefault(int(step), {})[name] = weight
    return StoredRun(dict(sorted(checkpoints.items())), history, about)
