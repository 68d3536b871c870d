"""The command end to end on a small Gemma: results, a second start, a kill, processes, errors."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from entk_helpers.language import command, sources
from entk_helpers.language.__main__ import main
from entk_helpers.language.budget import size
from entk_helpers.language.kernel import LogitKernel
from entk_helpers.language.settings import parse_layers
from entk_helpers.language.study import load_study
from entk_helpers.language.text import write_conllu
from entk_helpers.testbeds.grammar import stories

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "notebooks" / "data" / "07_grammar" / "seed_0")
SMALL = ["--windows", "64", "--length", "16", "--pairs", "4", "--splits", "3",
         "--min-support", "6", "--min-words", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def conllu(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "stories.conllu"
    write_conllu(path, stories(600, 2))
    return path


@pytest.fixture(scope="module")
def arguments(conllu):
    return ["--model", MODEL, "--conllu", str(conllu), *SMALL]


def start(*command_line, timeout=400):
    """Run Python in a process of its own, with the package as it is here."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ENTK_DEVICE": "cpu"}
    environment |= {"ENTK_PROGRESS": "off", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command_line],
        env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory):
    """A whole study, by the command as one types it."""
    out = tmp_path_factory.mktemp("study") / "results"
    done = start("-m", "entk_helpers.language", *arguments, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "windows: 64, 8 a tag" in done.stdout
    assert done.stdout.splitlines()[-1] == f"results: {out}"
    return out


def without(folder, layers, new):
    """A copy of a study in which some layers are still to be done."""
    shutil.copytree(folder, new)
    for layer in layers:
        for file in new.glob(f"layer_{layer:02d}.*"):
            file.unlink()
    (new / "tables.json").unlink()
    return new


def same_layer(one, other, layer):
    a, b = (load_file(folder / f"layer_{layer:02d}.safetensors") for folder in (one, other))
    torch.testing.assert_close(a["values"], b["values"], rtol=1e-5, atol=0)
    # A vector moves by rounding over the gap to the next value.
    torch.testing.assert_close(a["scores"], b["scores"], rtol=0, atol=1e-3)
    notes = [json.loads((f / f"layer_{layer:02d}.json").read_text()) for f in (one, other)]
    assert notes[0]["products"] == notes[1]["products"]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ENTK_DEVICE", "cpu")


def test_a_study_is_complete(folder):
    names = {file.name for file in folder.iterdir()}
    layers = {f"layer_{n:02d}.{kind}" for n in range(4) for kind in ("json", "safetensors")}
    figures = {f"{n}.{kind}" for n in ("grades_by_layer", "spectra") for kind in ("png", "svg")}
    windows = {"windows.json", "windows.safetensors", "baselines.safetensors"}
    assert names == layers | figures | windows | {"settings.json", "tables.json"}
    study = load_study(folder)
    assert list(study.layers) == [0, 1, 2, 3]
    assert study.settings["windows"] == 64 and study.settings["tagger"] == "table"
    for result in study.layers.values():
        assert result.values.shape == (4,) and result.scores.shape == (64, 4)
        assert (result.values[:-1] >= result.values[1:]).all() and result.values[-1] > 0
        assert (result.residuals <= 1e-3 * result.values).all()


def test_a_second_start_does_nothing(folder, arguments, monkeypatch, capsys):
    def refuse(*args):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(command, "load_model", refuse)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert main([*arguments, "--out", str(folder)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_other_splits_need_no_weights(folder, arguments, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "load_model", None)
    new = tmp_path / "new"
    shutil.copytree(folder, new)
    assert main([*arguments, "--splits", "2", "--out", str(new)]) == 0
    assert load_study(new).tables["splits"] == 2
    assert "results" in capsys.readouterr().out


KILLED = """
import os, signal
from entk_helpers import spectrum
from entk_helpers.language.__main__ import main
write, written = spectrum.write_tensors, []
def write_and_perhaps_die(*args):
    write(*args)
    written.append(1)
    if len(written) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
spectrum.SAVE_EVERY, spectrum.write_tensors = 0, write_and_perhaps_die
main({arguments})
"""


def test_a_kill_in_the_middle_of_a_layer_changes_nothing(
    folder, arguments, monkeypatch, tmp_path, capsys
):
    new = without(folder, [2], tmp_path / "new")
    command_line = [*arguments, "--out", str(new)]
    assert start("-c", KILLED.format(arguments=command_line)).returncode == -signal.SIGKILL
    assert (new / "layer_02.partial.safetensors").exists()
    assert not (new / "layer_02.json").exists()
    columns, multiply = [], LogitKernel.__matmul__

    def counted(self, v):
        columns.append(v.shape[1])
        return multiply(self, v)

    monkeypatch.setattr(LogitKernel, "__matmul__", counted)
    assert main(command_line) == 0
    assert "layer 2: 4 pairs" in capsys.readouterr().out
    same_layer(folder, new, 2)
    assert sum(columns) < json.loads((new / "layer_02.json").read_text())["products"]
    assert not list(new.glob("*partial*")) and not list(new.glob(".*"))


def test_two_processes_give_what_one_gives(folder, arguments, tmp_path):
    new = without(folder, [1], tmp_path / "new")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start(*torchrun, "-m", "entk_helpers.language", *arguments, "--out", str(new))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("layer 1: 4 pairs") == 1
    same_layer(folder, new, 1)
    assert list(load_study(new).layers) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------- errors


def refused(capsys, *command_line) -> str:
    """What the command says in its one line on stderr."""
    assert main(list(map(str, command_line))) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    return said.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "./nowhere"], "--model ./nowhere: there is no such folder"),
        (["--layers", "0,4"], "--layers 0,4: there is no layer 4, only 0 to 3"),
        (["--layers", "first"], "must be \"all\" or numbers and ranges"),
        (["--module", "mlp.down"], "module='mlp.down' is no linear map of layer 0"),
        (["--windows", "60"], "must be a multiple of 8, the number of tags; 56 would do"),
        (["--pairs", "64"], "--pairs 64 must be fewer than the windows, 64"),
        (["--tol", "2"], "--tol 2.0 must be between 0 and 1"),
        (["--length", "1"], "--length 1 must be at least 2"),
        (["--memory", "200KB"], "is too small: the kernel of layer 0 needs"),
        (["--memory", "much"], 'memory must be bytes or text such as "1GiB"'),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--conllu", "nothing.conllu"], "nothing.conllu: there is no such file"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(arguments, change, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert message in refused(capsys, *arguments, *change, "--out", out)
    assert not out.exists()


def test_no_folder_for_results(arguments, capsys):
    assert "--out is missing" in refused(capsys, *arguments)


def test_a_folder_of_something_else_is_left_alone(arguments, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert "is there already, and is no study" in refused(capsys, *arguments, "--out", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "name"), [(["--pairs", "5"], "pairs was 4, and is 5"), (["--seed", "1"], "seed was")]
)
def test_other_settings_are_refused(folder, arguments, change, name, capsys):
    said = refused(capsys, *arguments, *change, "--out", folder)
    assert "holds a study of other settings" in said and name in said


def test_other_weights_are_refused(folder, arguments, tmp_path, capsys):
    model = tmp_path / "seed_0"
    shutil.copytree(MODEL, model)
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    said = refused(capsys, *arguments, "--model", model, "--out", folder)
    assert "weights was" in said


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ([], "stanza, datasets"),
        (["--text", "stories.txt"], "stanza"),
        (["--conllu", "a.conllu", "--tagger", "stanza"], "stanza"),
        (["--conllu", "a.conllu"], "matplotlib"),
    ],
)
def test_packages_that_are_missing_are_named(options, missing, tmp_path, capsys, monkeypatch):
    absent = missing.split(", ")
    monkeypatch.setattr(sources, "find_spec", lambda name: None if name in absent else name)
    said = refused(capsys, "--model", MODEL, *options, "--out", tmp_path / "out")
    assert f"needs {missing}, not installed" in said and "entk-helpers[gemma]" in said


def test_text_that_is_too_short(arguments, tmp_path, capsys):
    short = tmp_path / "short.conllu"
    write_conllu(short, stories(4, 2))
    assert main([*arguments, "--conllu", str(short), "--out", str(tmp_path / "out")]) == 2
    assert "too few for per_tag=8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- plans


def test_a_dry_run_of_the_real_gemma_needs_no_network(monkeypatch, capsys):
    def unplugged(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unplugged)
    monkeypatch.setattr(socket.socket, "connect", unplugged)
    assert main(["--dry-run", "--memory", "30GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[3:21]]
    assert [int(row[0]) for row in rows] == list(range(18))
    assert "recomputed" in rows[0] and "kept" in rows[17]
    assert lines[21].startswith("all: at least")


def test_a_plan_that_cannot_work_is_an_error(capsys):
    said = refused(capsys, "--dry-run", "--memory", "100MB", "--layers", "16")
    assert "the kernel of layer 16 needs" in said


@pytest.mark.parametrize(
    ("wanted", "layers"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("3", [3]),
        ("-1", [5]),
        ("-2,0", [0, 4]),
        ("1-3, 5", [1, 2, 3, 5]),
        ("0-1,1-2", [0, 1, 2]),
    ],
)
def test_layers_by_number_and_range(wanted, layers):
    assert parse_layers(wanted, 6) == layers


@pytest.mark.parametrize("wanted", ["", "a", "1,", "3-1", "1-2-3", "1.5"])
def test_layers_that_are_no_numbers(wanted):
    with pytest.raises(ValueError, match="numbers and ranges"):
        parse_layers(wanted, 6)


def test_bytes_as_text():
    assert [size(n) for n in (0, 1023, 1024, 3 * 2**19, 2**30)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 MiB",
        "1 GiB",
    ]
