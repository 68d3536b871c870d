"""Progress shows in a terminal, or in a file that stands for one, and nowhere else."""

import pytest
import torch

from entk_helpers.progress import progress_bar
from entk_helpers.spectrum import top_eigenpairs


def count(total=5, **options):
    with progress_bar(total, "counting", **options) as bar:
        for _ in range(total):
            bar.update(1)
    return bar


def test_off_is_silent_and_makes_no_file(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTK_PROGRESS", "off")
    assert count().disable
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_receives_the_bar_and_the_page_does_not(monkeypatch, tmp_path, capfd):
    terminal = tmp_path / "terminal"
    monkeypatch.setenv("ENTK_PROGRESS", str(terminal))
    bar = count()
    assert bar.total == bar.n == 5
    assert "counting" in terminal.read_text() and "0/5" in terminal.read_text()
    assert capfd.readouterr() == ("", "")


def test_not_shown_leaves_the_terminal_alone(monkeypatch, tmp_path, capfd):
    terminal = tmp_path / "terminal"
    monkeypatch.setenv("ENTK_PROGRESS", str(terminal))
    assert count(show=False).disable
    assert not terminal.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["no/such/folder/tty", "."], ids=["missing", "a folder"])
def test_a_terminal_that_cannot_be_opened_is_silence(monkeypatch, tmp_path, capfd, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTK_PROGRESS", where)
    assert count().disable
    assert capfd.readouterr() == ("", "")


def test_an_empty_setting_is_silence(monkeypatch, capfd):
    monkeypatch.setenv("ENTK_PROGRESS", "")
    assert count().disable
    assert capfd.readouterr() == ("", "")


def test_without_a_setting_nothing_reaches_stdout_or_stderr(monkeypatch, capfd):
    monkeypatch.delenv("ENTK_PROGRESS", raising=False)
    count()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["off", "terminal"])
def test_errors_pass_through_and_the_terminal_is_closed(monkeypatch, tmp_path, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENTK_PROGRESS", where)
    with (
        pytest.raises(ZeroDivisionError),
        progress_bar(3, "failing") as bar,
    ):
        _ = 1 / 0
    # A file left open would be a ResourceWarning, an error here.
    assert where == "off" or bar.fp.closed


def test_eigenpairs_show_their_products_only_when_asked(monkeypatch, tmp_path, capfd):
    terminal = tmp_path / "terminal"
    monkeypatch.setenv("ENTK_PROGRESS", str(terminal))
    A = torch.diag(torch.arange(20.0, 0.0, -1.0))
    top_eigenpairs(A, 2)
    assert not terminal.exists()
    top_eigenpairs(A, 2, progress=True)
    assert "Lanczos" in terminal.read_text()
    assert capfd.readouterr() == ("", "")
