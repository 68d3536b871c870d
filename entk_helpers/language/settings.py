"""The options of `python -m entk_helpers.language`, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..inputs import parse_bytes
from .sources import GEMMA
from .windows import UD_TAGS


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
