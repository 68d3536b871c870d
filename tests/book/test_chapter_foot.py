"""The foot of a chapter tells of its run, and leaves other pages alone."""

import json
from types import SimpleNamespace

import pytest
from chapter_foot import append_foot, duration, foot

RECORD = {
    "seconds": 125.4,
    "device": "cpu",
    "threads": 2,
    "executed": "2026-01-09",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}


def app(suffix):
    return SimpleNamespace(env=SimpleNamespace(doc2path=lambda name, base: name + suffix))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125.4, "2 min 05 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_foot_names_time_device_threads_date_and_versions():
    text = foot(RECORD, "notebooks/03_tms")
    for part in ("2 min 05 s", "CPU with 2 threads", "9 January 2026", "Python 3.11.7", "PyTorch"):
        assert part in text
    assert "{download}`notebook <03_tms.ipynb>`" in text


def test_it_is_appended_to_executed_notebooks_only():
    source = [json.dumps({"metadata": {"entk": RECORD}, "cells": []})]
    append_foot(app(".ipynb"), "notebooks/03_tms", source)
    (cell,) = json.loads(source[0])["cells"]
    assert "chapter-foot" in cell["source"]

    for text, suffix in ((json.dumps({"metadata": {}, "cells": []}), ".ipynb"), ("# A", ".md")):
        source = [text]
        append_foot(app(suffix), "page", source)
        assert source == [text]
