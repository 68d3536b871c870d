"""The benchmark runs from end to end, compares the answers, and fails where they differ."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """The command as a function and its parts; its processes find it by sys.path."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import __main__, growth, language, measure, mlp, report, spectrum, transformer

    monkeypatch.setattr(mlp, "JAX", ROOT / "no-such-environment")
    parts = dict(measure=measure, mlp=mlp, report=report, spectrum=spectrum, growth=growth)
    return parts | dict(main=__main__.main, transformer=transformer, language=language)


def test_the_command_measures_everything_and_all_contenders_agree(tmp_path):
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--repeats", "2", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", file], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads(file.read_text())
    assert [section["key"] for section in stored["sections"]] == [*"abcdddee", *"f" * 8]
    for section in stored["sections"]:
        assert section["title"] in done.stdout
        for row in section["rows"]:
            assert row["name"] in done.stdout and row["seconds"] > 0
            assert row["difference"] is not None or "EXTRAPOLATED" in row["note"]
            if row["tolerance"] is not None:
                assert row["difference"] <= row["tolerance"]
    for known in ("date", "tree", "processor", "cores"):
        assert stored[known]
    assert stored["versions"].keys() >= {"torch", "curvlinops-for-pytorch"}
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
    # Without its environment, neural-tangents is left out, and one line says so.
    assert "neural-tangents" not in printed.out
    assert len([line for line in printed.err.splitlines() if "left out" in line]) == 1


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("summed-output", {"seed": 1}),
        ("class-averaged", {"seed": 1}),
        ("training", {"lr": 4e-4}),
    ],
)
def test_another_transformer_or_training_fails_the_run(
    benchmarks, monkeypatch, capsys, what, change
):
    transformer = benchmarks["transformer"]
    reference, *_, ours = transformer.contenders(smoke=True)[what]
    other = replace(ours, size=ours.size | change)
    monkeypatch.setattr(transformer, "contenders", lambda smoke: {what: [reference, other]})
    assert benchmarks["main"](["--smoke", "--only", "d", "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    (wrong,) = [line for line in printed.out.splitlines() if "DISAGREES" in line]
    assert ours.name in wrong and f"(d) {ours.name}" in printed.err


@pytest.mark.parametrize(("task", "which"), [("product", 1), ("pairs", 1), ("pairs", 3)])
def test_another_language_model_fails_the_run(benchmarks, monkeypatch, capsys, task, which):
    language = benchmarks["language"]
    (layer, field), *_ = (
        (layer, field) for (t, layer), field in language.contenders(smoke=True).items() if t == task
    )
    other = replace(field[which], size=field[which].size | {"seed": 1})
    fields = {(task, layer): [field[0], other]}
    monkeypatch.setattr(language, "contenders", lambda smoke, full: fields)
    assert benchmarks["main"](["--smoke", "--only", "e", "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    (wrong,) = [line for line in printed.out.splitlines() if "DISAGREES" in line]
    assert other.name in wrong and f"(e) {other.name}" in printed.err


@pytest.mark.parametrize(("times", "met"), [((10.0, 0.49), True), ((10.0, 0.51), False)])
def test_the_product_in_layer_16_and_all_pairs_have_a_time_to_keep(benchmarks, times, met):
    facts = {"product": np.ones(3), "note": "", "products": 30, "worst": 1e-4}
    facts["values"] = np.ones(25)

    def measure(contender):
        ours = contender.name in ("LogitKernel", "top_eigenpairs")
        took = (14.9 if met else 15.1) if contender.name == "top_eigenpairs" else times[ours]
        kept = ("product", "note") if "product" in contender.facts.__name__ else facts
        outcome = {name: facts[name] for name in kept}
        return benchmarks["measure"].Outcome((took,), (took,), 1.0, outcome)

    sections = [*benchmarks["language"].run(measure, threads=1, full=True)]
    judged = [[target.met for target in section.targets] for section in sections]
    assert judged == [[], [], [met], [], *[[met, True]] * 4]


@pytest.mark.parametrize(("late", "met"), [(-0.1, True), (0.1, False)])
def test_kernels_of_the_transformer_have_a_time_to_keep(benchmarks, late, met):
    aims = benchmarks["transformer"].AIMS

    def measure(contender):
        reduce = getattr(contender.solve, "keywords", {}).get("reduce")
        took = late + aims["summed-output" if reduce == "pseudo" else "class-averaged"]
        return benchmarks["measure"].Outcome((took,), (took,), 1.0, {"W_E": np.eye(3)})

    *kernels, training = benchmarks["transformer"].run(measure, threads=1)
    assert [[target.met for target in section.targets] for section in kernels] == [[met], [met]]
    assert not training.targets
    # Ten seeds of 20 epochs, each of 7 batches: 420 pairs, 64 at a time.
    took = 30 + late
    assert {row.note for row in training.rows} == {f"{took / 1400 * 1e3:.2f} ms a step and seed"}


WORKER = """\
#!{python}
import json, sys
import numpy as np
*_, inputs, outputs, threads, repeats = sys.argv
at = np.load(inputs)
(H, D), u = at["W1"].shape, at["x"] @ at["W1"].T
K1 = (at["x"] @ at["x"].T) * ((u * (at["W2"] ** 2).mean(0)) @ u.T) * (2 / (D * H)) ** 2
K2 = u**2 @ (u**2).T / (D * H) ** 2
np.savez(outputs, W1=K1, W2=K2 * {factor})
taken = dict(runs=[int(threads), 2.0], cpu=[1.0, 1.0], peak_mb=float(repeats))
print(json.dumps(taken | dict(versions=dict(ours="1.2", jax="0.1"))))
sys.exit({code})
"""


@pytest.fixture
def worker(benchmarks, monkeypatch, tmp_path):
    """Put a stand-in for the interpreter with neural-tangents where it is looked for."""

    def write(factor="1", code="0"):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text(WORKER.format(python=sys.executable, factor=factor, code=code))
        python.chmod(0o755)
        (tmp_path / ".ready").touch()
        monkeypatch.setattr(benchmarks["mlp"], "JAX", tmp_path)

    return write


SMOKE_A = ["--smoke", "--only", "a", "--repeats", "3"]


def test_another_environment_adds_a_row_and_its_versions(benchmarks, worker, tmp_path, capsys):
    worker()
    assert benchmarks["main"]([*SMOKE_A, "--json", str(tmp_path / "bench.json")]) == 0
    stored = json.loads((tmp_path / "bench.json").read_text())
    *_, row = stored["sections"][0]["rows"]
    assert row["name"] == "neural-tangents 1.2 (jax 0.1)" and row["name"] in capsys.readouterr().out
    assert (row["seconds"], row["runs"], row["cpu_seconds"], row["peak_mb"]) == (1.5, 2, 1.0, 3.0)
    assert 0 < row["difference"] <= row["tolerance"]
    assert stored["versions"].items() >= {"ours": "1.2", "jax": "0.1"}.items()


@pytest.mark.parametrize("factor", ["1.01", "np.nan"])
def test_a_wrong_answer_from_another_environment_fails_the_run(benchmarks, worker, factor, capsys):
    worker(factor)
    assert benchmarks["main"](SMOKE_A) == 1
    assert "(a) neural-tangents 1.2 (jax 0.1)" in capsys.readouterr().err


def test_a_crash_in_another_environment_is_not_passed_over(benchmarks, worker):
    worker(code="'out of luck'")
    with (
        benchmarks["measure"].measuring(threads=1, repeats=1) as measure,
        pytest.raises(SystemExit, match="neural-tangents: out of luck"),
    ):
        measure(benchmarks["mlp"].neural_tangents(smoke=True))


@pytest.mark.parametrize(("seconds", "met"), [(0.4, True), (0.6, False)])
def test_the_closed_form_is_the_measure_of_the_structured_kernel(benchmarks, seconds, met):
    row = benchmarks["report"].Row
    ours = row("structured", seconds, cpu_seconds=0.2, speed_up=60.0, peak_mb=100.0)
    targets = benchmarks["mlp"].targets(ours, row("closed", 0.1, cpu_seconds=0.1), smoke=False)
    assert [target.met for target in targets] == [True, True, met]
    assert targets[2].measured == f"{seconds / 0.1:.1f}x (2.0x the CPU time)"


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


@pytest.mark.parametrize("power", [0.5, 1.0, 2.3])
def test_a_power_law_is_found_beyond_the_fixed_cost_and_over_the_last_sizes(benchmarks, power):
    sizes = [8, 64, 128, 256, 512]
    values = [1.0, 7.0, *(0.1 + (n / 100) ** power for n in sizes[2:])]
    exponent = benchmarks["growth"].exponent
    assert exponent(sizes, values, 0.1) == pytest.approx(power, abs=1e-12)
    assert exponent(sizes, values, 0.0) < power  # a fixed cost flattens what is fitted


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [1.4, 3.0, 9.0], [0.0, 3.0, 9.0]], ids=str)
def test_no_exponent_comes_from_too_little(benchmarks, values):
    fixed = 1.0 if 0.0 not in values else 0.0
    assert benchmarks["growth"].exponent([1, 2, 4][: len(values)], values, fixed) is None


@pytest.mark.parametrize(("factor", "agree"), [(1.0, True), (1.001, False)])
def test_every_answer_at_every_size_is_compared_with_gradients(benchmarks, factor, agree):
    growth, Outcome = benchmarks["growth"], benchmarks["measure"].Outcome

    def measure(contender, *, again):
        at = contender.prepare(**contender.size)
        answer = contender.facts(at, contender.solve(at))["K"] * factor
        return Outcome((1.0,), (0.1,), 1.0, {"K": answer})

    sections = [*growth.run(measure, threads=1, smoke=True)]
    assert [len(section.rows) for section in sections] == [4] * 4 + [6] * 4
    for section in sections:
        assert (section.disagreements == []) is agree
        assert agree or len(section.disagreements) == len(section.rows)


def test_a_contender_is_stopped_and_its_growth_is_fitted(benchmarks, monkeypatch):
    growth, Outcome = benchmarks["growth"], benchmarks["measure"].Outcome
    sizes = growth.SMOKE, (8, 16, 32, 64)
    monkeypatch.setitem(growth.SIZES, ("kernel", "N"), sizes)
    monkeypatch.setattr(growth, "reference", lambda task, **size: np.ones((6, 6)))

    def measure(contender, *, again):
        n = contender.size["n_points"]
        took = 0.0 if n < 8 else (n / 32) ** 2 * (1.01 if "jacrev" in contender.name else 0.2)
        peak = 0.0 if n < 8 else 100.0 * n
        return Outcome((5.0,), (took,), peak, {"K": np.ones((n, n))})

    section = growth.section(measure, 1, "kernel", "N", smoke=False, jax=False)
    assert [of.stopped_after for of in section.growth] == [16, 16]  # 1,600 MB
    monkeypatch.setattr(growth, "STOP_MB", 1e9)
    section = growth.section(measure, 1, "kernel", "N", smoke=False, jax=False)
    slow, quick = section.growth
    assert (slow.stopped_after, quick.stopped_after) == (32, None)
    assert [row.size for row in section.rows] == [8, 16, 32, 8, 16, 32, 64]
    assert slow.time == pytest.approx(2) and quick.time == pytest.approx(2)
    assert quick.memory == pytest.approx(1, abs=0.01)
    assert "time N^2.00" in benchmarks["report"].table(section)
    assert "stopped after N = 32" in benchmarks["report"].table(section)


def test_another_kernel_at_one_size_fails_the_run(benchmarks, monkeypatch, capsys):
    growth = benchmarks["growth"]
    monkeypatch.setattr(growth, "SIZES", {("kernel", "C"): growth.SIZES["kernel", "C"]})
    monkeypatch.setitem(
        growth.WAYS["kernel"], "empirical_ntk", partial(growth.structured, reduce="pseudo")
    )
    assert benchmarks["main"](["--smoke", "--only", "f", "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    wrong = [line for line in printed.out.splitlines() if "DISAGREES" in line]
    assert len(wrong) == 2 and all("empirical_ntk" in line for line in wrong)
    assert "(f) empirical_ntk" in printed.err


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts what Linux tells")
def test_memory_that_was_freed_before_counts_again(benchmarks):
    from benchmarks.clock import timed

    def small_pieces():
        return [bytes(20_000) for _ in range(2000)]  # 40 MB from the heap

    peaks = [timed(lambda: len(small_pieces()), 1).peak_mb for _ in range(3)]
    assert min(peaks) > 35


def test_an_unknown_section_is_refused(benchmarks, capsys):
    with pytest.raises(SystemExit):
        benchmarks["main"](["--only", "z"])
    assert "invalid choice: 'z'" in capsys.readouterr().err
