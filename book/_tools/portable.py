"""Does everything come out the same on another machine? This one acts as several, and measures.

    python book/_tools/portable.py            what `make portable` does: tests, then chapters
    python book/_tools/portable.py --tests    the trained tests only
    python book/_tools/portable.py --short    what `make test` does: those tests, as another processor

Processors of other makers take other instructions, and round otherwise; libraries can be told to
take those of an older processor. Under each of these arithmetics the tests that depend on training
and all chapters are run, and their results are compared:

- of each comparison in the tests, how much of its tolerance is used, and its room: how many times
  wider the spread over the arithmetics could be before the comparison came out otherwise;
- of each cell whose printed text must not change, whether it is the committed one;
- of each claim, its verdict, and how far its numbers move beside their spread over seeds.

Chapters also run in an arithmetic that is no processor's: weights are rounded eight times as
coarsely after each step of training (`coarse/sitecustomize.py`). A printed text or a verdict has no
tolerance of which a share could be measured; what passes there has room that was not guessed.
Exits with 1 if anything came out otherwise, or has less room than `ROOM`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from chapters import ROOT, compare_claims

OUT = ROOT / "_build" / "portable"
ROOM = 5
WORKERS = str(min(os.cpu_count() or 1, 2))
OLD = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
ARITHMETICS = {
    "as it is": {},
    "oldest": OLD | {"OPENBLAS_CORETYPE": "Nehalem"},
    "AVX2": {
        "MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "two threads": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2"),
}  # fmt: skip
COARSE = {"coarse": {"PYTHONPATH": str(Path(__file__).parent / "coarse")}}
TRAINED = ["-m", "trained", "-p", "room", "tests"]
CHAPTERS = ["-p", "no:python", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=1800",
            "--nbval-sanitize-with", "tests/nbval_sanitize.cfg", "--dist", "loadscope"]  # fmt: skip


def folder(name: str) -> Path:
    """Where the results under an arithmetic are kept."""
    return OUT / name.replace(" ", "_")


def run(name: str, kind: str, arguments: list[str]) -> list[str]:
    """Run pytest under an arithmetic, keep what it says, and name the tests that failed."""
    folder(name).mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    more = {"ENTK_PROGRESS": "off", "ENTK_ROOM": str(folder(name) / "room")}
    more |= {"ENTK_CLAIMS_DIR": str(folder(name) / "claims")}
    paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    arithmetic = (ARITHMETICS | COARSE)[name]
    environment = os.environ | threads | more | arithmetic
    environment["PYTHONPATH"] = ":".join([arithmetic.get("PYTHONPATH", ""), *paths])
    report = folder(name) / f"{kind}.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        WORKERS,
        f"--junitxml={report}",
        *arguments,
    ]
    with (folder(name) / f"{kind}.log").open("w") as log:
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        ).returncode
    if status not in (0, 1):
        raise SystemExit(f"pytest ended with {status}; see {log.name}")
    cases = ElementTree.parse(report).iter("testcase")
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    return [f"{case.get('classname')}::{case.get('name')}" for case in failed]


def uses(name: str) -> dict[str, list[float]]:
    """Line and test -> how much of its tolerance each comparison used, in order."""
    seen: dict[str, list[float]] = defaultdict(list)
    for file in sorted((folder(name) / "room").glob("*.json")):
        for place, values in json.loads(file.read_text()).items():
            seen[place] += values
    return seen


def room(used: list[float]) -> float:
    """How many times wider the spread of these uses could be with none on the other side of 1.

    Examples:
        >>> room([0.0, 0.1, 0.2])  # the middle one is 0.9 from the bound, the others 0.1 from it
        9.0
        >>> room([0.5, 0.5])
        inf
    """
    middle = statistics.median(used)
    spread = max(abs(value - middle) for value in used)
    return round(abs(1 - middle) / spread, 6) if spread else float("inf")


def tests_table(names: list[str]) -> Iterator[tuple[float, str, list[float]]]:
    """(room, place, use under each arithmetic) of the comparison at each place that has least room.

    None where an arithmetic made another number of comparisons.
    """
    seen = {name: uses(name) for name in names}
    tightest: dict[str, tuple[float, list[float]]] = {}
    for test in sorted(set().union(*seen.values())):
        place = test.partition("[")[0]  # a test's cases share it
        columns = [seen[name].get(test, []) for name in names]
        same = len({len(column) for column in columns}) == 1
        rows = [list(row) for row in zip(*columns, strict=True)] if same else [[]]
        found = [(room(row) if row else 0.0, row) for row in rows]
        tightest[place] = min([tightest.get(place, found[0]), *found])
    for place, (least, row) in tightest.items():
        yield least, place, row


def numbers_moved(names: list[str]) -> Iterator[tuple[float, str]]:
    """(largest change of a claim's numbers over their spread over seeds, the claim), worst first."""
    kept: dict[str, list[list[float]]] = defaultdict(list)
    for name in names:
        for file in sorted((folder(name) / "claims").glob("*.json")):
            for claim in json.loads(file.read_text())["claims"]:
                for one in claim["measured"]:
                    kept[f"{file.stem} {claim['id']}: {one['name']}"].append(one["values"])
    found = []
    for label, runs in kept.items():
        if len(runs[0]) > 1 and len({len(values) for values in runs}) == 1:
            spread = statistics.stdev(runs[0])
            moved = max(abs(a - b) for values in runs for a, b in zip(values, runs[0], strict=True))
            found.append((moved / spread if spread else float("inf") if moved else 0.0, label))
    yield from sorted(found, reverse=True)


def main() -> None:
    """Run all arithmetics that were asked for, and print what came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tests", action="store_true", help="no chapters")
    parser.add_argument("--short", action="store_true", help="trained tests, one arithmetic")
    options = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    names, faults = ["oldest"] if options.short else list(ARITHMETICS), []
    for name in names:
        faults += [f"{name}: {test} failed" for test in run(name, "tests", TRAINED)]
        print(f"{name}: trained tests done", flush=True)
    if not options.short:
        for least, place, columns in sorted(tests_table(names)):
            shares = "  ".join(f"{value:9.2g}" for value in columns)
            print(f"{least:9.3g}  {shares}  {place}")
            if least < ROOM:
                faults.append(f"{place}: room {least:.2g}, below {ROOM}")
    if not (options.short or options.tests):
        notebooks = sorted(map(str, (ROOT / "notebooks").glob("*.ipynb")))
        names += COARSE
        for name in names:
            cells = run(name, "chapters", CHAPTERS + notebooks)
            claims = compare_claims(folder(name) / "claims", ROOT / "book" / "claims")
            faults += [f"{name}: {cell} failed" for cell in cells]
            faults += [f"{name}: {claim}" for claim in claims]
            print(f"{name}: chapters done", flush=True)
        for share, label in list(numbers_moved(names))[:30]:
            print(f"{share:9.2g} of the spread over seeds: {label}")
    print("\n".join(faults) or f"{', '.join(names)}: everything came out the same")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
