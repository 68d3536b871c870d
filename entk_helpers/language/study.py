"""A study of a model's grammar: kernels and baselines on its windows, and the folder that keeps them.

`python -m entk_helpers.language` makes a folder, which `load_study` reads. It holds

- settings.json: all that the results depend on; results of other settings are refused;
- windows.json, windows.safetensors: the windows, with the tags and features of their next words;
- baselines.safetensors: the scores of directions that no kernel gave, and the last token's states;
- layer_NN.safetensors, layer_NN.json: eigenvalues, residuals and scores of a layer's kernel;
- tables.json, and figures as PNG and SVG.

Files are written whole or not at all; what is there is not computed again. Layers are numbered
from 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..inputs import require_finite, whole
from ..spectrum import top_eigenpairs
from ..storage import read_tensors, reading, write_tensors, write_text
from .kernel import LogitKernel
from .models import last_token_states
from .scores import pca_scores, random_scores, window_scores
from .tables import FINAL, KERNEL, LOGITS, MLP, RANDOM, RESIDUAL, Scores
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerResult:
    """The leading eigenpairs of one layer's kernel, each eigenvector as one score per window.

    values, residuals: (k,), as in `Eigenpairs`. about: products, seconds, device and the like.
    """

    layer: int
    values: Float[Tensor, " k"]
    residuals: Float[Tensor, " k"]
    scores: Float[Tensor, "N k"]
    about: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a folder holds; `tables` is as `tabulate` returns it."""

    settings: dict[str, Any]
    windows: Windows
    layers: dict[int, LayerResult]
    scores: Scores
    residual: dict[int, Float[Tensor, "N d"]]
    tables: dict[str, Any]


# ---------------------------------------------------------------------------- one model


def layer_modes(
    model: PreTrainedModel,
    windows: Windows,
    layer: int,
    *,
    module: str = "mlp.down_proj",
    pairs: int = 25,
    tol: float = 1e-3,
    memory: str | int = "1GiB",
    seed: int = 0,
    resume: Path | str | None = None,
    progress: bool = False,
) -> LayerResult:
    """Return the top eigenpairs of one layer's logit kernel, as scores of the windows.

    In a process group all processes call this, and get the same result.
    """
    start = time.monotonic()
    kernel = LogitKernel(
        model,
        windows.input_ids,
        attention_mask=windows.attention_mask,
        layer=layer,
        module=module,
        memory=memory,
    )
    found = top_eigenpairs(
        kernel, pairs, tol=tol, block=1, seed=seed, resume=resume, progress=progress
    )
    about = {
        "products": found.matvecs,
        "seconds": round(time.monotonic() - start, 2),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "record kept": kernel.kept,
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    scores = window_scores(found, len(windows))
    return LayerResult(kernel.layer, found.values.cpu(), found.residuals.cpu(), scores, about)


def baselines(
    model: PreTrainedModel,
    windows: Windows,
    layers: Sequence[int],
    *,
    module: str = "mlp.down_proj",
    k: int = 25,
    seed: int = 0,
) -> tuple[Scores, dict[int, Float[Tensor, "N d"]]]:
    """Return the scores of k directions by each other method, and the residual stream by layer.

    All at the last token: principal directions of the residual stream after the layer (the
    paper's baseline), of the linear map's inputs, of the final state and of the logits; and random
    directions of the residual stream.
    """
    states = last_token_states(model, windows.input_ids, windows.attention_mask, module=module)
    scores: Scores = {
        RESIDUAL: {n: pca_scores(states.residual[n], k) for n in layers},
        MLP: {n: pca_scores(states.mlp[n], k) for n in layers},
        RANDOM: {n: random_scores(states.residual[n], k, seed + n) for n in layers},
        FINAL: {None: pca_scores(states.final, k)},
        LOGITS: {None: pca_scores(_same_distances(states.logits), k)},
    }
    return scores, {n: states.residual[n] for n in layers}


def _same_distances(X: Float[Tensor, "N D"]) -> Float[Tensor, "N m"]:
    """Rows with the same principal scores, in N coordinates where D is larger (a vocabulary)."""
    if X.shape[1] <= len(X):
        return X
    centred = require_finite(X, "X") - X.double().mean(0).to(X)
    gram = sum(part @ part.T for part in (c.double() for c in centred.split(16384, dim=1)))
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


# ---------------------------------------------------------------------------- a folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON under another name, then give it its own."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ValueError names the file that holds something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}); remove it and start again"
        ) from error


def write_windows(folder: Path, windows: Windows) -> None:
    """Write windows.safetensors, then windows.json, which says that both are there."""
    parts = dict(vars(windows))
    tensors = {name: parts.pop(name) for name in ("input_ids", "attention_mask")}
    write_tensors(folder / "windows.safetensors", tensors, {})
    write_json(folder / "windows.json", parts)


def read_windows(folder: Path) -> Windows:
    """Read what `write_windows` wrote."""
    tensors, _ = read_tensors(folder / "windows.safetensors")
    parts = read_json(folder / "windows.json")
    with reading(folder / "windows.json", "windows"):
        return Windows(**tensors, **parts)


def write_baselines(folder: Path, scores: Scores, residual: Mapping[int, Tensor]) -> None:
    """Write baselines.safetensors, a tensor a method and layer."""
    tensors = {
        f"{method}|{'' if layer is None else layer}": values.float()
        for method, by_layer in scores.items()
        for layer, values in by_layer.items()
    }
    tensors |= {f"residual|{layer}": values.float() for layer, values in residual.items()}
    write_tensors(folder / "baselines.safetensors", tensors, {})


def read_baselines(folder: Path) -> tuple[Scores, dict[int, Tensor]]:
    """Read what `write_baselines` wrote; layers ascending."""
    tensors, _ = read_tensors(folder / "baselines.safetensors")
    found: dict[str, dict[int | None, Tensor]] = {}
    with reading(folder / "baselines.safetensors", "baselines"):
        keys = {key: key.rsplit("|", 1) for key in tensors}
        for key, (method, layer) in sorted(keys.items(), key=lambda item: int(item[1][1] or -1)):
            found.setdefault(method, {})[int(layer) if layer else None] = tensors[key]
        return found, found.pop("residual")


def layer_file(folder: Path, layer: int, suffix: str = ".safetensors") -> Path:
    """The name of a layer's file."""
    return folder / f"layer_{layer:02d}{suffix}"


def write_layer(folder: Path, result: LayerResult) -> None:
    """Write a layer's tensors, then its JSON, which says that both are there."""
    tensors = {name: getattr(result, name) for name in ("values", "residuals", "scores")}
    write_tensors(layer_file(folder, result.layer), tensors, {})
    write_json(layer_file(folder, result.layer, ".json"), result.about)


def read_layer(folder: Path, layer: int) -> LayerResult:
    """Read what `write_layer` wrote."""
    file = layer_file(folder, layer)
    tensors, _ = read_tensors(file)
    about = read_json(layer_file(folder, layer, ".json"))
    with reading(file, "layer"):
        return LayerResult(layer, **tensors, about=about)


def finished_layers(folder: Path) -> list[int]:
    """The layers whose files are both there, ascending."""
    numbers = (file.stem.removeprefix("layer_") for file in folder.glob("layer_*.json"))
    return sorted(int(n) for n in numbers if n.isdecimal() and layer_file(folder, int(n)).exists())


def load_study(folder: Path | str) -> Study:
    """Return what a folder holds.

    Raises ValueError for a folder that is no study, or not a finished one.
    """
    folder = Path(folder)
    needed = ("settings.json", "windows.json", "baselines.safetensors", "tables.json")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds no finished study (it has no {missing[0]}); make one with: "
            "python -m entk_helpers.language --out DIR"
        )
    tables = read_json(folder / "tables.json")
    with reading(folder / "tables.json", "tables"):
        numbers = [whole(n, "layer", 0) for n in tables["layers"]]
    layers = {n: read_layer(folder, n) for n in numbers}
    others, residual = read_baselines(folder)
    scores: Scores = {KERNEL: {n: result.scores for n, result in layers.items()}}
    settings = read_json(folder / "settings.json")
    return Study(settings, read_windows(folder), layers, scores | others, residual, tables)
