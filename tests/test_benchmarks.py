"""The benchmark runs from end to end, compares the answers, and fails where they differ."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """The command as a function and its parts; its processes find it by sys.path."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__, mlp, report, spectrum

    return dict(main=__main__.main, mlp=mlp, report=report, spectrum=spectrum)


def test_the_command_measures_everything_and_all_contenders_agree(tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--repeats", "2", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", file], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(file.read_text())
    assert [section["key"] for section in stored["sections"]] == ["a", "b", "c"]
    for section in stored["sections"]:
        assert section["title"] in done.stdout
        for row in section["rows"]:
            assert row["name"] in done.stdout and row["seconds"] > 0
            assert row["difference"] is not None or "EXTRAPOLATED" in row["note"]
            if row["tolerance"] is not None:
                assert row["difference"] <= row["tolerance"]
    assert stored["versions"]["torch"] and stored["cores"] >= 1 and stored["date"]
    for private in (os.uname().nodename, str(ROOT), str(Path.home())):
        for text in (file.read_text(), done.stdout):
            assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text)


def test_a_contender_with_another_answer_fails_the_run(benchmarks, monkeypatch, capsys):
    mlp = benchmarks["mlp"]
    reference, ours, closed = mlp.contenders(smoke=True)
    other_weights = replace(ours, size=ours.size | {"seed": 1})
    monkeypatch.setattr(mlp, "contenders", lambda smoke: [reference, other_weights, closed])
    assert benchmarks["main"](["--smoke", "--only", "a", "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    (wrong,) = [line for line in printed.out.splitlines() if "DISAGREES" in line]
    assert ours.name in wrong
    assert ours.name in printed.err and closed.name not in printed.err.partition("DISAGREEMENT")[2]


@pytest.mark.parametrize(
    ("difference", "agrees"), [(1e-7, True), (1e-3, False), (float("nan"), False)]
)
def test_a_row_agrees_only_within_its_tolerance(benchmarks, difference, agrees):
    row = benchmarks["report"].Row("x", 1.0, difference=difference, tolerance=1e-5)
    assert row.agrees is agrees


@pytest.mark.parametrize(("power", "used"), [(2.5, 2.5), (3.0, 3.0), (4.0, 3.0)])
def test_the_extrapolation_follows_a_power_law_but_none_above_the_cube(benchmarks, power, used):
    sizes = [1000, 2000, 4000]
    times = [(n / 2000) ** power for n in sizes]
    seconds, slope = benchmarks["spectrum"].extrapolate(sizes, times, 20_000)
    assert slope == pytest.approx(power) and seconds == pytest.approx(10**used)


def test_an_unknown_section_is_refused(benchmarks, capsys):
    with pytest.raises(SystemExit):
        benchmarks["main"](["--only", "z"])
    assert "invalid choice: 'z'" in capsys.readouterr().err
