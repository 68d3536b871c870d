"""Measure this package beside other tools, in one run, and check that all answers agree.

Each contender runs in a process of its own: it warms up on a small case (neural-tangents, in an
environment of its own, on the same case, to compile), then the median of its runs counts (fewer
than asked for once they have taken 10 s together). CPU time adds up the threads: on one thread,
where it is less than the time, other programs had the core. Memory is the peak beyond inputs and
libraries. 'difference' is from the first contender of the section (a, c, d, e), from gradients in
float64 (f), from gram_eigenpairs (dense eigh), or of a pair from being an eigenpair
(gram_eigenpairs). The exit code is 1 where
contenders disagree; a missed target is reported.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from . import growth, lanczos, language, mlp, report, spectrum, transformer
from .measure import measuring

MODULES = {module.KEY: module for module in (mlp, spectrum, lanczos, transformer, language, growth)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for, print their tables, say whether all agree."""
    options = _options(arguments)
    where = report.machine()
    print(report.machine_line(where))
    print(f"median of up to {options.repeats} runs, after a warm-up\n")
    sections: list[report.Section] = []
    for threads, keys in itertools.groupby(options.only, lambda key: _threads(key, options)):
        with measuring(threads, options.repeats, fresh=not options.smoke) as measure:
            for section in itertools.chain.from_iterable(
                MODULES[key].run(
                    measure, threads, smoke=options.smoke, full=options.full, dense=options.dense
                )
                for key in keys
            ):
                print(report.table(section), end="\n\n", flush=True)
                sections.append(section)
    if options.json:
        settings = {name: getattr(options, name) for name in ("repeats", "smoke", "full", "dense")}
        report.save(options.json, where, settings, sections)
    wrong = [f"({s.key}) {name}" for s in sections for name in s.disagreements]
    if wrong:
        print(f"DISAGREEMENT, so the times mean nothing: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _threads(key: str, options: argparse.Namespace) -> int:
    return options.threads or (report.cores() if key == spectrum.KEY else 1)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--only", nargs="+", choices=list(MODULES), default=list(MODULES),
        help="a: kernels of an MLP; b: spectrum of TMS; c: matrix-free eigenpairs; "
        "d: kernels and training of a Transformer; e: logit kernels of language models; "
        "f: growth with points, outputs, parameters and positions",
    )  # fmt: skip
    add("--threads", type=_positive, help="default: 1, all cores for b")
    add("--repeats", type=_positive, default=5, help="runs of each contender (default: 5)")
    add(
        "--full", action="store_true",
        help="b: dense eigh also at n = 8,000; e: more layers, and curvlinops (minutes)",
    )  # fmt: skip
    add(
        "--dense", action="store_true",
        help="dense eigh at n = 25,000 instead of extrapolating (an hour or more, some 20 GB)",
    )  # fmt: skip
    add("--smoke", action="store_true", help="tiny sizes, to see that all of it works")
    add("--json", type=Path, metavar="FILE", help="store the results, with their provenance")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
