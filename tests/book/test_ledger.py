"""The page of verdicts: no statement of the paper without a claim, no claim without a statement."""

import json
import re

import pytest
import yaml
from ledger import SIGNS, read, summary, tally

from entk_helpers.claims import VERDICTS, Ledger


@pytest.fixture
def book(tmp_path):
    """Two claims of the paper and one of our own, all listed as they should be."""
    ledger = Ledger("03_toy", tmp_path / "claims")
    for id, source, verdict in (
        ("drop", "arXiv 2510.00468v1, Figure 1", "holds"),
        ("lines", "arXiv 2510.00468v1, Figure 2", "does not hold"),
        ("control", "this book", "holds in part"),
    ):
        ledger.record(
            id, statement=f"About {id}.", source=source, published="1", measured=[1, 2, 3],
            verdict=verdict, why="So it is.",
        )  # fmt: skip
    listed = {"where": "v1, Figure 1", "says": "Spectra", "claims": ["03_toy#drop"]}
    other = {"where": "v1, Figure 2", "says": "Lines", "claims": ["03_toy#lines"]}
    write(tmp_path, [listed, other])
    return tmp_path


def write(book, statements):
    parts = [{"part": "Toys", "statements": statements}]
    (book / "statements.yml").write_text(yaml.safe_dump(parts))


def statements(book):
    return yaml.safe_load((book / "statements.yml").read_text())[0]["statements"]


def test_the_book_has_no_gap():
    entries, faults = read()
    assert faults == []
    assert len({entry.key for entry in entries}) == len(entries) > 40


def test_claims_come_in_the_papers_order_and_ours_last(book):
    write(book, statements(book)[::-1])
    entries, faults = read(book)
    assert faults == []
    assert [entry.key for entry in entries] == ["03_toy#lines", "03_toy#drop", "03_toy#control"]
    assert [entry.where for entry in entries] == ["v1, Figure 2", "v1, Figure 1", ""]
    assert tally(entries) == dict(zip(SIGNS, (1, 1, 1, 0), strict=True))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s[:1], "'03_toy#lines' .* checks no statement"),
        (lambda s: [s[0], s[1] | {"claims": []}], "'v1, Figure 2' .* has no claim"),
        (lambda s: [s[0], s[1] | {"claims": ["03_toy#gone"]}], "'03_toy#gone' is recorded by no"),
        (lambda s: [*s, s[0]], "'03_toy#drop' is listed twice"),
        (lambda s: [*s, s[0] | {"claims": ["03_toy#control"]}], "'this book' is not the paper's"),
    ],
)
def test_a_gap_is_a_fault(book, change, fault):
    write(book, change(statements(book)))
    _, faults = read(book)
    assert any(re.search(fault, found) for found in faults), faults


def test_a_summary_tells_mean_spread_and_number(book):
    claims = json.loads((book / "claims" / "03_toy.json").read_text())["claims"]
    assert summary(claims[0]["measured"][0]) == "2 ± 1, 3 seeds"
    assert summary({"name": "a", "values": [0.5], "mean": 0.5, "sd": None}) == "a: 0.5 (one value)"
    assert summary({"name": "a", "values": [1, 1], "mean": 1, "sd": 0}) == "a: 1, all 2 seeds"


def test_every_verdict_has_a_sign():
    assert tuple(SIGNS) == VERDICTS
