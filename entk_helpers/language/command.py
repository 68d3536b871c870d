"""What `python -m entk_helpers.language` does, from its settings to the folder of results."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..device import default_device
from ..inputs import parse_bytes
from ..progress import progress_bar
from .plan import LayerPlan, matmul_rate, plan, solver_bytes, weight_bytes
from .processes import local_rank, on_first, process_group
from .sources import (
    GEMMA,
    PUBLIC_CONFIGS,
    Text,
    file_digest,
    fingerprint,
    load_config,
    load_model,
    require_packages,
)
from .study import (
    CEILING,
    CHOSEN,
    KERNEL,
    baselines,
    figures,
    finished_layers,
    label_families,
    layer_file,
    layer_modes,
    load_study,
    read_baselines,
    read_json,
    read_layer,
    read_windows,
    tabulate,
    write_baselines,
    write_json,
    write_layer,
    write_windows,
)
from .text import UD_TAGS, select_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Settings:
    """The command's options; the defaults are the paper's. See `__main__` for what each means."""

    model: str = GEMMA
    layers: str = "all"
    module: str = "mlp.down_proj"
    windows: int = 1024
    length: int = 64
    pairs: int = 25
    tol: float = 1e-3
    text: Path | None = None
    conllu: Path | None = None
    stories: int = 2048
    tagger: str | None = None
    download: bool = False
    min_support: int = 30
    min_words: int = 12
    splits: int = 20
    seed: int = 0
    dtype: str = "float32"
    device: str | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        least = {"windows": 2 * len(UD_TAGS), "length": 2, "pairs": 1, "stories": 1, "splits": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"--{name} {getattr(self, name)} must be at least {low}")
        if self.windows % len(UD_TAGS):
            raise ValueError(
                f"--windows {self.windows} must be a multiple of {len(UD_TAGS)}, the number of "
                f"tags; {self.windows // len(UD_TAGS) * len(UD_TAGS)} would do"
            )
        if not 0 < self.tol < 1:
            raise ValueError(f"--tol {self.tol} must be between 0 and 1")
        if self.pairs >= self.windows:
            raise ValueError(f"--pairs {self.pairs} must be fewer than the windows, {self.windows}")
        if self.tagger not in (None, "stanza", "table"):
            raise ValueError(f"--tagger {self.tagger} must be stanza or table")
        if self.memory is not None:
            parse_bytes(self.memory)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype by its name."""
        return getattr(torch, self.dtype)

    @property
    def which_tagger(self) -> str:
        """Annotated text can tag by itself; other text needs Stanza."""
        return self.tagger or ("table" if self.conllu else "stanza")

    def packages(self) -> list[str]:
        """What must be installed beyond the package's own needs."""
        needed = ["transformers", "matplotlib", "seaborn", "IPython"]
        if self.which_tagger == "stanza" or not self.conllu:
            needed.append("stanza")
        if not (self.conllu or self.text):
            needed.append("datasets")
        return needed


def parse_layers(wanted: str, count: int) -> list[int]:
    """Read "all" or "0,3,8-11,-1" as layer numbers, ascending.

    Raises ValueError for what is no list of numbers, and for layers that the model lacks.
    """
    if wanted.strip() == "all":
        return list(range(count))
    found: set[int] = set()
    for part in wanted.split(","):
        first, dash, last = part.strip().rpartition("-")
        try:
            one = [int(part)] if not (dash and first) else range(int(first), int(last) + 1)
        except ValueError:
            one = []
        if not one:
            raise ValueError(
                f'--layers {wanted!r} must be "all" or numbers and ranges: 0,3,8-11,-1'
            )
        if bad := [n for n in one if not -count <= n < count]:
            raise ValueError(
                f"--layers {wanted}: there is no layer {bad[0]}, only 0 to {count - 1}"
            )
        found |= {n % count for n in one}
    return sorted(found)


# ---------------------------------------------------------------------------- plan


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
    _quiet()
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


# ---------------------------------------------------------------------------- the study


def run(settings: Settings, folder: Path | str) -> None:
    """Do what is missing of a study in `folder`; see the module `study` for its files.

    Under torchrun all processes compute, and the first writes and prints; the folder must be one
    that all of them see.
    """
    folder = Path(folder)
    with process_group() as first:
        say = print if first else _silent
        texts: list[Text] = []
        start = on_first(lambda: _Start.of(settings, folder, the_device(settings), texts))
        if start.missing is not None:
            say(f"{settings.model}: loading", flush=True)
            model, tokenizer = load_model(
                settings.model, settings.torch_dtype, the_device(settings)
            )
            on_first(lambda: _select(settings, folder, start.identity, model, tokenizer, texts))
            on_first(lambda: _compare(settings, folder, model))
            windows = on_first(lambda: read_windows(folder))
            with progress_bar(len(start.missing), "layers", show=first) as bar:
                for layer in start.missing:
                    partial = layer_file(folder, layer, ".partial.safetensors")
                    result = layer_modes(
                        model,
                        windows,
                        layer,
                        module=settings.module,
                        pairs=settings.pairs,
                        tol=settings.tol,
                        memory=start.memory,
                        seed=settings.seed,
                        resume=partial,
                        progress=first,
                    )
                    on_first(lambda result=result: write_layer(folder, result))
                    bar.update()
                    say(
                        f"layer {layer}: {settings.pairs} pairs, {result.about['products']} "
                        f"products, {duration(result.about['seconds'])}",
                        flush=True,
                    )
        on_first(lambda: _conclude(settings, folder))


def _silent(*args: object, **kwargs: object) -> None:
    """Print nothing."""


@dataclass(frozen=True)
class _Start:
    """What is left to compute: layers, and perhaps windows or baselines; None where nothing is."""

    missing: list[int] | None
    memory: int
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, settings: Settings, folder: Path, device: torch.device, texts: list[Text]
    ) -> _Start:
        """Check all that can be checked without weights, cheapest first, and read the text."""
        require_packages(settings.packages())
        _quiet()
        source = _source(settings)
        config = load_config(settings.model)
        budget = Budget.of(settings, config, device)
        identity = {
            "model": Path(settings.model).name if Path(settings.model).is_dir() else settings.model,
            "weights": fingerprint(settings.model, config),
            "text": source,
            "tagger": settings.which_tagger,
            "module": settings.module,
            "windows": settings.windows,
            "length": settings.length,
            "pairs": settings.pairs,
            "tol": settings.tol,
            "dtype": settings.dtype,
            "seed": settings.seed,
        }
        _claim(folder, identity)
        there = finished_layers(folder)
        missing = [p.layer for p in budget.layers if p.layer not in there]
        if not (folder / "windows.json").exists():
            texts.append(
                Text.read(
                    settings.conllu,
                    settings.text,
                    stories=settings.stories,
                    seed=settings.seed,
                    tagger=settings.which_tagger,
                    download=settings.download,
                )
            )
        elif not missing and (folder / "baselines.safetensors").exists():
            return cls(None, budget.memory, identity)
        return cls(missing, budget.memory, identity)


def _source(settings: Settings) -> str:
    """What tells one text from another."""
    if file := settings.conllu or settings.text:
        return file_digest(file)
    return f"TinyStories, {settings.stories} stories"


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError where the folder holds something else, or a study of other settings."""
    path = folder / "settings.json"
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"--out {folder} is there already, and is no study; name another folder"
            )
        return
    there = read_json(path)
    for name in identity:
        if there.get(name) != identity[name]:
            raise ValueError(
                f"--out {folder} holds a study of other settings ({name} was {there.get(name)}, and "
                f"is {identity[name]}); name another folder, or remove that one"
            )


def _quiet() -> None:
    """Keep the libraries' own bars and remarks out of the output."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _select(
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    model: Any,
    tokenizer: Any,
    texts: list[Text],
) -> None:
    """Draw the windows, unless they are there (then no text has been read)."""
    if not texts:
        return
    documents, tagger = texts.pop().annotated()
    per_tag = settings.windows // len(UD_TAGS)
    windows = select_windows(
        model,
        tokenizer,
        documents,
        tagger,
        length=settings.length,
        per_tag=per_tag,
        seed=settings.seed,
        progress=True,
    )
    write_json(folder / "settings.json", identity)
    write_windows(folder, windows)
    print(f"windows: {len(windows)}, {per_tag} a tag, from {len(documents)} documents", flush=True)


def _compare(settings: Settings, folder: Path, model: Any) -> None:
    """Score the windows by everything that is no kernel, unless that is there."""
    if (folder / "baselines.safetensors").exists():
        return
    layers = range(model.config.get_text_config().num_hidden_layers)
    others = baselines(
        model,
        read_windows(folder),
        layers,
        module=settings.module,
        k=settings.pairs,
        seed=settings.seed,
    )
    write_baselines(folder, *others)


def _conclude(settings: Settings, folder: Path) -> None:
    """Tables and figures of all layers that are there, unless they are up to date; a summary."""
    path, layers = folder / "tables.json", finished_layers(folder)
    made_of = {
        "layers": layers,
        "splits": settings.splits,
        "min_support": settings.min_support,
        "min_words": settings.min_words,
    }
    drawn = all((folder / f"{name}.svg").exists() for name in ("grades_by_layer", "spectra"))
    there = read_json(path) if path.exists() else {}
    if drawn and made_of == {name: there.get(name) for name in made_of}:
        print(
            f"nothing to do: {folder} holds layers {', '.join(map(str, layers))} and their tables"
        )
        return
    windows = read_windows(folder)
    others, residual = read_baselines(folder)
    scores = {KERNEL: {n: read_layer(folder, n).scores for n in layers}}
    for method, by_layer in others.items():
        scores[method] = {n: v for n, v in by_layer.items() if n is None or n in layers}
    tables = tabulate(
        windows,
        scores,
        {n: residual[n] for n in layers},
        label_families(windows, min_support=settings.min_support, min_words=settings.min_words),
        splits=settings.splits,
        seed=settings.seed,
    )
    tables = made_of | tables
    write_json(path, tables)
    figures(load_study(folder), folder)
    for line in summary(tables):
        print(line)
    print(f"results: {folder}")


def summary(tables: dict[str, Any]) -> list[str]:
    """The means over labels and splits of a study's tables, by family and method, as lines.

    A method with layers has each label's own, chosen on the train half; the ceiling the last layer.
    """
    lines = [f"{'':18}{'':32}AUROC     AP"]
    last = max(tables["layers"])
    for row in tables["rows"]:
        layered = row["method"] == CEILING
        if row["layer"] in ((last,) if layered else (CHOSEN, None)):
            means = [_mean(row[name]) for name in ("macro_auroc", "macro_ap")]
            lines.append(f"{row['family']:18}{row['method']:32}{means[0]:5.3f}  {means[1]:5.3f}")
    return lines


def _mean(values: list[float | None]) -> float:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else float("nan")
