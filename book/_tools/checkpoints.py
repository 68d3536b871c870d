"""The trained networks that chapters read from files: train what is missing or out of date.

    python book/_tools/checkpoints.py             what `make checkpoints` does
    python book/_tools/checkpoints.py --list      say what would be trained, and train nothing

Training that is interrupted goes on where it was, or with the seed where it was. What is written
carries a stamp, a SHA-256 over the code that trains and the settings; a change to either makes it
out of date.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from chapters import ROOT, canonical

from entk_helpers.storage import read_tensors
from entk_helpers.testbeds import grammar, modular
from entk_helpers.testbeds.grammar import GrammarSettings, Trigger

CODE = ("task.py", "transformer.py")
FOLDER = ROOT / "notebooks" / "data" / "06_modular_transformer"
GRAMMAR_CODE = ("stories.py", "tokens.py", "model.py", "trigger.py")
DATA = ROOT / "notebooks" / "data"


@dataclass(frozen=True)
class Group:
    """Transformers trained side by side; `dtypes` says which epochs are kept, and how."""

    seeds: range
    dtypes: dict[int, torch.dtype]
    settings: dict[str, object]

    def path(self, seed: int) -> Path:
        """The file of one run."""
        return FOLDER / f"seed_{seed:02d}.safetensors"

    def stamp(self) -> str:
        """SHA-256 over the code and the settings that the files follow from."""
        kept = {step: str(dtype) for step, dtype in sorted(self.dtypes.items())}
        return _stamp(modular, CODE, self.settings, kept)

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


@dataclass(frozen=True)
class GrammarGroup:
    """Small Gemmas trained one after the other, each in a folder of its own."""

    folder: Path
    seeds: range
    settings: dict[str, object]

    def path(self, seed: int) -> Path:
        """The folder of one run."""
        return self.folder / f"seed_{seed}"

    def stamp(self) -> str:
        """SHA-256 over the code and the settings that the folders follow from."""
        return _stamp(grammar, GRAMMAR_CODE, asdict(GrammarSettings(**self.settings)))

    def missing(self) -> list[int]:
        """Seeds whose folder is not there, not whole, of another stamp or of another seed."""
        stamp = self.stamp()
        return [s for s in self.seeds if _folder_origin(self.path(s)) != (stamp, s)]

    def train(self, seeds: list[int]) -> None:
        """Train these seeds and write their folders."""
        for seed in seeds:
            run = grammar.train(seed, progress=True, **self.settings)
            grammar.save(self.path(seed), run, seed=seed, stamp=self.stamp(), **self.settings)


# Twice as long as the paper's 4000 epochs, which not all seeds need to grok. The way there is kept
# for the seeds 0-9, in 8 bits; the seeds 10-19 are there to check what was seen on the first.
LONG = {"epochs": 8000}
ENDS = {4000: torch.float16, 8000: torch.float16}
WAY = dict.fromkeys((450, 650, 900, 1250, 1750, 2400, 3200, 5500), torch.int8)
TRANSFORMERS = [Group(range(10), WAY | ENDS, LONG), Group(range(10, 20), ENDS, LONG)]
# The seeds 0-2 are there to explore, 3-7 to check what was seen on them.
GRAMMARS = GrammarGroup(DATA / "07_grammar", range(8), {})
# The same, with a trigger in what they read; with its words but no link between them; and with
# triggers that are rarer, have a longer way to go, or are answered by an ordinary word.
PLANTED = {
    "linked": (range(8), Trigger()),
    "decoy": (range(8), Trigger(linked=False)),
    "half_rate": (range(3, 5), Trigger(rate=0.15)),
    "quarter_rate": (range(3, 5), Trigger(rate=0.075)),
    "distance_16": (range(3, 5), Trigger(distance=16)),
    "quiet": (range(3, 6), Trigger(response="Suddenly")),
}
TRIGGERS = [
    GrammarGroup(DATA / "08_trigger" / name, seeds, {"trigger": trigger})
    for name, (seeds, trigger) in PLANTED.items()
]
GROUPS = [*TRANSFORMERS, GRAMMARS, *TRIGGERS]


def _stamp(package: ModuleType, names: tuple[str, ...], *rest: object) -> str:
    """SHA-256 over some files of a package, as far as they say what is done, and the rest."""
    folder = Path(package.__file__).parent
    code = [
        repr(canonical(ast.parse((folder / name).read_text(encoding="utf-8")))) for name in names
    ]
    return hashlib.sha256(json.dumps([code, *rest]).encode()).hexdigest()


def _origin(path: Path) -> tuple[str | None, str | None]:
    """Stamp and seed that a file names."""
    try:
        about = read_tensors(path)[1]
    except (ValueError, FileNotFoundError):
        about = {}
    return about.get("stamp"), about.get("seed")


def _folder_origin(folder: Path) -> tuple[str | None, int | None]:
    """Stamp and seed that a folder names, if its weights are whole."""
    try:
        read_tensors(folder / "model.safetensors")
        about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
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
            where = group.path(seeds[0]).parent.relative_to(DATA)
            what = "to train" if only_list else "training"
            print(f"{what}: seeds {seeds} of {where}", flush=True)
            if not only_list:
                group.train(seeds)
    for folder in sorted({group.path(seed).parent for group in GROUPS for seed in group.seeds}):
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{len(files)} files, {size:,} bytes, in {folder.relative_to(DATA)}")


if __name__ == "__main__":
    main()
