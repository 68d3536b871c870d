"""`make test` and `make book` do their work once for each state of the files."""

import sys

import once
import pytest

GOOD = [sys.executable, "-c", "open('_build/runs', 'a').write('x')"]
BAD = [sys.executable, "-c", "raise SystemExit(3)"]


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "_build").mkdir()
    (tmp_path / "code.py").write_text("1")
    return tmp_path


def runs(checkout):
    path = checkout / "_build" / "runs"
    return len(path.read_text()) if path.exists() else 0


def test_a_second_run_is_skipped_and_says_how_to_force_it(checkout, capsys):
    assert once.once("test", GOOD, checkout) == 0
    assert once.once("test", GOOD, checkout) == 0
    assert runs(checkout) == 1
    assert "make test FORCE=1" in capsys.readouterr().out
    assert once.once("test", GOOD, checkout, force=True) == 0
    assert runs(checkout) == 2


@pytest.mark.parametrize(
    "name", ["code.py", "a.ipynb", "_toc.yml", "book/a.css", "Makefile", ".ci/run", "data/x.csv"]
)
def test_any_changed_or_new_file_runs_it_again(checkout, name):
    once.once("test", GOOD, checkout)
    path = checkout / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("2")
    once.once("test", GOOD, checkout)
    assert runs(checkout) == 2


def test_a_deleted_file_runs_it_again(checkout):
    once.once("test", GOOD, checkout)
    (checkout / "code.py").unlink()
    once.once("test", GOOD, checkout)
    assert runs(checkout) == 2


@pytest.mark.parametrize("name", [".venv/x", "_build/html/x", "__pycache__/x.pyc", ".git/index"])
def test_generated_files_do_not_count(checkout, name):
    once.once("test", GOOD, checkout)
    path = checkout / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("2")
    once.once("test", GOOD, checkout)
    assert runs(checkout) == 1


def test_a_failure_is_never_taken_for_a_pass(checkout):
    once.once("test", GOOD, checkout)
    assert once.once("test", BAD, checkout, force=True) == 3
    assert once.once("test", GOOD, checkout) == 0
    assert runs(checkout) == 2


def test_book_and_test_are_remembered_apart(checkout):
    once.once("test", GOOD, checkout)
    once.once("book", GOOD, checkout)
    assert runs(checkout) == 2
