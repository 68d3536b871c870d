"""The trained networks that chapters read from files: train what is missing or out of date.

    python book/_tools/checkpoints.py             what `make checkpoints` does
    python book/_tools/checkpoints.py --list      say what would be trained, and train nothing

Training that is interrupted goes on where it was. A file carries a stamp, a SHA-256 over the code
that trains and the settings; a change to either makes the file out of date.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from chapters import ROOT, canonical

from entk_helpers.testbeds import modular
from entk_helpers.testbeds.storage import read_tensors

CODE = ("task.py", "transformer.py")
FOLDER = ROOT / "notebooks" / "data" / "06_modular_transformer"


@dataclass(frozen=True)
class Group:
    """Runs that are trained side by side; `dtypes` says which epochs are kept, and how."""

    seeds: range
    dtypes: dict[int, torch.dtype]
    settings: dict[str, object]

    def path(self, seed: int) -> Path:
        """The file of one run."""
        return FOLDER / f"seed_{seed:02d}.safetensors"

    def stamp(self) -> str:
        """SHA-256 over the code and the settings that the files follow from."""
        package = Path(modular.__file__).parent
        code = [
            repr(canonical(ast.parse((package / name).read_text(encoding="utf-8"))))
            for name in CODE
        ]
        kept = {step: str(dtype) for step, dtype in sorted(self.dtypes.items())}
        return hashlib.sha256(json.dumps([code, self.settings, kept]).encode()).hexdigest()

    def missing(self) -> list[int]:
        """Seeds whose file is not there, not whole, of another stamp or of another seed."""
        stamp = self.stamp()
        return [s for s in self.seeds if _origin(self.path(s)) != (stamp, str(s))]

    def train(self, seeds: list[int]) -> None:
        """Train these seeds and write their files."""
        which = f"{self.stamp()[:16]}_{'_'.join(map(str, seeds))}"
        runs = modular.train_transformer_seeds(
            seeds,
            checkpoints=self.dtypes,
            resume=ROOT / "_build" / "checkpoints" / f"{which}.safetensors",
            progress=True,
            **self.settings,
        )
        for seed, run in zip(seeds, runs, strict=True):
            modular.save_transformer(
                self.path(seed), run, seed, dtypes=self.dtypes, stamp=self.stamp(), **self.settings
            )


# Twice as long as the paper's 4000 epochs, which not all seeds need to grok. The way there is kept
# for the seeds 0-9, in 8 bits; the seeds 10-19 are there to check what was seen on the first.
LONG = {"epochs": 8000}
ENDS = {4000: torch.float16, 8000: torch.float16}
WAY = dict.fromkeys((450, 650, 900, 1250, 1750, 2400, 3200, 5500), torch.int8)
GROUPS = [Group(range(10), WAY | ENDS, LONG), Group(range(10, 20), ENDS, LONG)]


def _origin(path: Path) -> tuple[str | None, str | None]:
    """Stamp and seed that a file names."""
    try:
        about = read_tensors(path)[1]
    except (ValueError, FileNotFoundError):
        about = {}
    return about.get("stamp"), about.get("seed")


def main() -> None:
    """Train what is missing, or list it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--list", action="store_true", help="train nothing")
    only_list = parser.parse_args().list
    torch.set_num_threads(1)  # these matrices are too small to share
    for group in GROUPS:
        if seeds := group.missing():
            print(f"{'to train' if only_list else 'training'}: seeds {seeds}", flush=True)
            if not only_list:
                group.train(seeds)
    files = sorted(FOLDER.glob("*.safetensors"))
    print(f"{len(files)} files, {sum(f.stat().st_size for f in files):,} bytes, in {FOLDER.name}")


if __name__ == "__main__":
    main()
