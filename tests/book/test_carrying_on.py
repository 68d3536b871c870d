"""What those who carry on rely on: the workflow, the hooks, and the guide name what exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def step(name):
    (found,) = [step for step in STEPS if step.get("id") == name]
    return found


def address(folder, url):
    """What the workflow's own command takes from a `_config.yml` with this line."""
    (folder / "_config.yml").write_text(f"repository:\n  url: {url}\n")
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    output = folder / "output"
    output.unlink(missing_ok=True)
    command = ["bash", "-euo", "pipefail", "-c", step("settings")["run"]]
    subprocess.run(command, cwd=folder, env={"GITHUB_OUTPUT": str(output)}, check=True)
    return output.read_text()


@pytest.mark.parametrize(
    ("url", "expected"),
    [('""', ""), ("", ""), ("https://example.org/book", "https://example.org/book")],
)
def test_the_workflow_reads_the_address_where_it_is_set(tmp_path, url, expected):
    assert address(tmp_path, url) == f"address={expected}\n"


def test_publishing_waits_for_the_tests_the_address_and_the_main_branch():
    jobs = WORKFLOW["jobs"]
    assert jobs["publish"]["needs"] == "test"
    conditions = jobs["publish"]["if"].split(" && ")
    assert conditions == [
        "github.event_name == 'push'",
        "github.ref == 'refs/heads/main'",
        "needs.test.outputs.address != ''",
    ]
    assert jobs["test"]["outputs"] == {"address": "${{ steps.settings.outputs.address }}"}
    (upload,) = [s for s in STEPS if "upload-pages-artifact" in s.get("uses", "")]
    assert "steps.settings.outputs.address != ''" in upload["if"].split(" && ")
    assert upload["with"]["path"] == "_build/html"


def test_the_workflow_runs_what_anybody_runs():
    assert set(WORKFLOW[True]) == {"push", "pull_request"}  # YAML reads `on` as true
    names = [step.get("run", step.get("uses")) for step in WORKFLOW["jobs"]["test"]["steps"]]
    assert ".ci/run" in names
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def classified(start):
    return {c.removeprefix(start) for c in PROJECT["classifiers"] if c.startswith(start)}


def test_the_package_is_tested_on_what_it_says_it_runs_on():
    job = WORKFLOW["jobs"]["package"]
    assert job["strategy"]["fail-fast"] is False
    matrix = job["strategy"]["matrix"]
    pythons = matrix["python"]
    assert set(pythons) == classified("Programming Language :: Python :: ")
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert matrix["os"] == ["ubuntu-24.04"]
    ends = {
        (python, os)
        for python in (pythons[0], pythons[-1])
        for os in ("ubuntu-24.04-arm", "macos-15")
    }
    assert {(more["python"], more["os"]) for more in matrix["include"]} == ends
    assert classified("Operating System :: ") == {"POSIX :: Linux", "MacOS"}
    assert job["runs-on"] == "${{ matrix.os }}"
    (python,) = [s["with"] for s in job["steps"] if "setup-python" in s.get("uses", "")]
    assert python["python-version"] == "${{ matrix.python }}"
    assert job["steps"][-1]["run"] == "make unit PYTHON=python"
    assert "unit" in TARGETS


def test_the_lock_is_made_for_the_oldest_python():
    source = (ROOT / "book" / "_tools" / "lock.py").read_text()
    (oldest,) = re.findall(r'^OLDEST = "([\d.]+)"', source, re.MULTILINE)
    assert PROJECT["requires-python"] == f">={oldest}"


def test_the_workflow_may_do_no_more_than_it_must_with_tools_of_known_versions():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in WORKFLOW["jobs"][job] for job in ("test", "package"))
    assert WORKFLOW["jobs"]["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    for used in (step["uses"] for step in STEPS if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+\.\d+\.\d+", used)


@pytest.mark.parametrize("hook", HOOKS["repos"][0]["hooks"], ids=lambda hook: hook["id"])
def test_hooks_start_tools_that_are_there(hook):
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]  # no versions but the pinned
    assert hook["language"] == "system"
    python, *rest = shlex.split(hook["entry"])
    assert python == ".venv/bin/python"
    if rest[0] == "-m":
        flags = [word for word in rest[3:] if word.startswith("-")]
        command = [sys.executable, "-m", rest[1], rest[2], "--help"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert all(flag in said for flag in flags)
    else:
        source = ROOT / rest[0]
        assert f"python {' '.join(rest)}" in source.read_text()  # as its docstring says


def test_the_guide_names_commands_and_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`make ([a-z]+)", text))
    assert {"lint", "test", "book", "architecture"} <= named <= TARGETS
    files = re.findall(r"`((?:book|tests|benchmarks|notebooks|entk_helpers)/[\w./]+)`", text)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert files and links
    invented = ("novel", "NN_name")  # the guide's own examples
    for name in files + links:
        assert any(word in name for word in invented) or (ROOT / name).exists(), name


@pytest.mark.parametrize("task", ["a chapter", "a kernel", "a claim"])
def test_the_guide_takes_five_steps(task):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.search(rf"^## Add {task}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    numbers = re.findall(r"^(\d)\. ", section[1], re.MULTILINE)
    assert numbers == ["1", "2", "3", "4", "5"]
