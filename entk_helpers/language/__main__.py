"""The command `python -m entk_helpers.language`: a model's grammar, layer by layer, into a folder.

    python -m entk_helpers.language --model google/gemma-3-270m --out DIR
    python -m entk_helpers.language --model FOLDER --conllu FILE --layers 0-3 --out DIR
    python -m entk_helpers.language --dry-run
    torchrun --nproc-per-node 4 -m entk_helpers.language --out DIR

What is cheap to check is checked first. Whatever is wrong is one line on stderr, and exit code 2.
Stopped in the middle, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..spectrum import NotConverged
from .budget import show_plan
from .command import run
from .settings import Settings


def parser() -> argparse.ArgumentParser:
    """The options, with the paper's values as defaults."""
    new = argparse.ArgumentParser(
        prog="python -m entk_helpers.language",
        description="Grammar in the eigenvectors of a language model's logit kernel.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    say = new.add_argument
    say("--model", help="a name on the Hugging Face hub, or a folder")
    say("--out", type=Path, metavar="DIR", help="where results are kept, and continued")
    say("--layers", help='"all", or numbers and ranges: 0,3,8-11,-1')
    say("--module", help="the linear map within a layer")
    say("--windows", type=int, help="in all, equally many a tag")
    say("--length", type=int, help="tokens of a window")
    say("--pairs", type=int, help="eigenpairs of each layer's kernel")
    say("--tol", type=float, help="residual relative to each eigenvalue")
    source = new.add_mutually_exclusive_group().add_argument
    source("--text", type=Path, metavar="FILE", help="stories with blank lines between")
    source("--conllu", type=Path, metavar="FILE", help="annotated text")
    say("--stories", type=int, help="of TinyStories, where no file is given")
    say("--tagger", choices=("stanza", "table"), help="of the model's own words (table: looked up in "
        "the annotated text)")  # fmt: skip
    say("--download", action="store_true", help="let Stanza download its models")
    say("--min-support", type=int, help="windows of a morphology label")
    say("--min-words", type=int, help="distinct words of such a label")
    say("--splits", type=int, help="random halves that directions are graded on")
    say("--seed", type=int)
    say("--dtype", choices=("float32", "float64"), help="float64 only for models that compute in it "
        "throughout, which Gemma's norms do not")  # fmt: skip
    say("--device", help="such as cpu or cuda:1; CUDA where there is one")
    say("--memory", help='for one kernel, such as "40GiB"; most of what is free')
    say("--dry-run", action="store_true", help="print bytes and seconds for each layer, and stop")
    new.set_defaults(**vars(Settings()))
    return new


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = vars(parser().parse_args(arguments))
    out, dry = options.pop("out"), options.pop("dry_run")
    first = os.environ.get("RANK", "0") == "0"
    try:
        settings = Settings(**options)
        if dry:
            show_plan(settings)
        elif out is None:
            raise ValueError("--out is missing; name the folder that results go to")
        else:
            run(settings, out)
    except (ValueError, OSError, NotConverged, torch.OutOfMemoryError) as error:
        if first:
            print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if first:
            print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
