"""`make portable`: one machine acts as several, and what comes out otherwise is found."""

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import portable
import pytest
import room
import torch

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, **environment: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------------------- the arithmetics


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are of x86")
@pytest.mark.parametrize(("name", "capability"), [("oldest", "DEFAULT"), ("AVX2", "AVX2")])
def test_an_arithmetic_takes_effect(name, capability):
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    found = python(code, **portable.ARITHMETICS[name])
    assert found == capability or found == "DEFAULT"  # a processor without AVX2


STEPS = """
import torch
torch.manual_seed(0)
W = torch.nn.Parameter(torch.randn(1000, dtype=torch.DTYPE))
optimizer = torch.optim.SGD([W], lr=0.1)
W.square().sum().backward()
optimizer.step()
print(int((W.detach().view(torch.WHOLE) & 7).count_nonzero()), W.sum().item())
"""


def test_coarse_steps_lose_three_bits_and_repeat():
    code = STEPS.replace("DTYPE", "float32").replace("WHOLE", "int32")
    (plain, exact), (coarse, rounded), again = (
        python(code, **environment).split()
        for environment in ({}, portable.COARSE["coarse"], portable.COARSE["coarse"])
    )
    assert int(plain) > 800 and coarse == "0" and again == [coarse, rounded]
    assert rounded != exact and float(rounded) == pytest.approx(float(exact), rel=1e-5)


def test_coarse_steps_leave_double_precision_alone():
    code = STEPS.replace("DTYPE", "float64").replace("WHOLE", "int64")
    assert python(code) == python(code, **portable.COARSE["coarse"])


# ---------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize(
    ("a", "b", "rtol", "atol", "expected"),
    [
        (1.0, 1.0, 0, 0, 0.0),
        (1.2, 1.0, 0.1, 0, 2.0),
        (1.2, 1.0, 0.1, 0.3, 0.5),
        ([1.0, 2.0], [1.0, 2.1], 0, 0.2, 0.5),
        (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]), 0.1, 0, 0.0),
        (1 + 1j, 1.0, 0, 2, 0.5),
        (1.0, 2.0, 0, 0, room.EXACT),
    ],
)
def test_a_use_is_the_largest_share_of_the_tolerance(a, b, rtol, atol, expected):
    assert room.used(a, b, rtol, atol) == pytest.approx(expected)


EXAMPLE = """
import numpy as np, pytest, torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

def test_one():
    assert 1.05 == pytest.approx(1.0, abs=0.1)
    assert [1.0, 1.02] == pytest.approx([1.0, 1.0], abs=0.1)
    assert {"a": 3.0} != pytest.approx({"a": 1.0}, abs=0.1)
    assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), rtol=0, atol=1)
    assert_close({"a": torch.ones(2)}, {"a": torch.ones(2)})
    assert not torch.allclose(torch.zeros(1), torch.ones(1), rtol=0, atol=0.25)
    assert np.allclose(1.0, 1.1, rtol=0, atol=0.2)
    assert_allclose(np.ones(2), np.ones(2) + 0.3, rtol=0, atol=0.6)
"""


def test_comparisons_are_watched_wherever_they_are_made(tmp_path):
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text(EXAMPLE)
    (tests / "room.py").write_text((ROOT / "tests" / "room.py").read_text())
    environment = os.environ | {"ENTK_ROOM": str(tmp_path / "seen"), "PYTHONPATH": str(tests)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "room", "-p", "no:cacheprovider", tests]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (file,) = (tmp_path / "seen").iterdir()
    seen = json.loads(file.read_text())
    assert [place.rpartition(" ")[2] for place in seen] == ["test_one"] * 8
    assert all(place.startswith("tests/test_it.py:") for place in seen)
    found = [value for values in seen.values() for value in values]
    assert found == pytest.approx([0.5, 0.2, 20, 0.5, 0, 4, 0.5, 0.5], rel=1e-6)


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([0.5, 0.5, 0.5], math.inf),
        ([0.0, 0.1, 0.2], 9),
        ([0.1, 0.9], 1.25),
        ([0.2, 0.2, 1.2], 0.8),  # one failed
        ([11.0, 10.0, 9.0], 9),  # two that are to differ do so, by nine times the spread
    ],
)
def test_room_is_the_way_to_the_bound_over_the_spread(used, expected):
    assert portable.room(used) == pytest.approx(expected)


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "OUT", tmp_path / "portable")
    return tmp_path / "portable"


def keep(folder, kind, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / kind).write_text(json.dumps(content))


def test_the_table_has_the_tightest_comparison_of_each_place(out):
    for name, wide, tight in (("as it is", 0.1, 0.5), ("AVX2", 0.1, 0.6)):
        folder = out / name.replace(" ", "_") / "room"
        keep(folder, "1.json", {"a.py:1 test_a[x]": [tight], "a.py:2 test_b": [0.0]})
        keep(folder, "2.json", {"a.py:1 test_a[y]": [wide]})
    (a, place, uses), (b, _, _) = portable.tests_table(["as it is", "AVX2"])
    assert (place, uses, b) == ("a.py:1 test_a", [0.5, 0.6], math.inf)
    assert a == pytest.approx(0.45 / 0.05)


@pytest.mark.parametrize("uses", [[0.2], [0.2, 0.2, 0.2]])
def test_another_number_of_comparisons_has_no_room(out, uses):
    for name, values in (("as it is", [0.2, 0.2]), ("AVX2", uses)):
        cases = {"a.py:1 test_a[x]": values, "a.py:1 test_a[y]": [0.1]}
        keep(out / name.replace(" ", "_") / "room", "1.json", cases)
    assert list(portable.tests_table(["as it is", "AVX2"])) == [(0.0, "a.py:1 test_a", [])]


def test_numbers_of_claims_are_compared_with_their_spread(out):
    for name, values in (("as it is", [1.0, 2.0, 3.0]), ("AVX2", [1.0, 2.0, 3.5])):
        measured = [{"name": "ratio", "values": values}, {"name": "one seed", "values": [1.0]}]
        claims = {"claims": [{"id": "cliff", "measured": measured}]}
        keep(out / name.replace(" ", "_") / "claims", "03_tms.json", claims)
    ((moved, label),) = portable.numbers_moved(["as it is", "AVX2"])
    assert (label, moved) == ("03_tms cliff: ratio", pytest.approx(0.5))


# ---------------------------------------------------------------------------- the command


@pytest.fixture
def runs(out, monkeypatch):
    """The command with runs that are made up: name and kind -> tests that failed."""
    called, failing = [], {}

    def run(name, kind, arguments):
        called.append((name, kind))
        keep(
            out / name.replace(" ", "_") / "room",
            "1.json",
            {"a.py:1 test_a": [failing.get(name, 0.1)]},
        )
        return failing.get((name, kind), [])

    monkeypatch.setattr(portable, "run", run)
    monkeypatch.setattr(portable, "compare_claims", lambda measured, committed: [])
    return called, failing


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["portable.py", *arguments])
    portable.main()


def test_every_arithmetic_runs_tests_and_chapters(runs, monkeypatch, capsys):
    command(monkeypatch)
    names = list(portable.ARITHMETICS)
    assert len(names) >= 4
    chapters = [(name, "chapters") for name in [*names, "coarse"]]
    assert runs[0] == [(name, "tests") for name in names] + chapters
    assert "everything came out the same" in capsys.readouterr().out


def test_the_short_form_is_one_run_of_the_trained_tests(runs, monkeypatch):
    command(monkeypatch, "--short")
    assert runs[0] == [("oldest", "tests")]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({("AVX2", "tests"): ["test_b"]}, "AVX2: test_b failed"),
        ({("coarse", "chapters"): ["Cell 3"]}, "coarse: Cell 3 failed"),
        ({"AVX2": 0.9}, "a.py:1 test_a: room 1.1, below 5"),
    ],
)
def test_what_came_out_otherwise_fails_the_command(runs, monkeypatch, capsys, fault, said):
    runs[1].update(fault)
    with pytest.raises(SystemExit) as end:
        command(monkeypatch)
    assert end.value.code == 1 and said in capsys.readouterr().out


def test_a_run_is_in_its_arithmetic_and_names_what_failed(out, monkeypatch):
    test = "import os\ndef test_it(): assert os.environ['MKL_CBWR'] == 'AVX2'"
    (out.parent / "test_it.py").write_text(test)
    monkeypatch.setattr(portable, "ROOT", out.parent)
    monkeypatch.setattr(portable, "WORKERS", "0")
    for name, failed in (("AVX2", []), ("oldest", ["test_it::test_it"])):
        assert portable.run(name, "tests", ["test_it.py"]) == failed
    with pytest.raises(SystemExit, match="pytest ended with"):
        portable.run("AVX2", "tests", ["no_such_file.py"])
