"""The ledger of claims: what it keeps, what it shows, what it refuses."""

import json

import pytest

from entk_helpers.claims import VERDICTS, Ledger, verdict

GOOD = dict(
    statement="The spectrum drops after eigenvalue 50",
    source="v2, figure 1",
    published="a drop at 50",
    measured=[2.0, 3.0, 4.0],
    verdict="holds",
    why="The largest ratio in every seed.",
)


@pytest.fixture
def ledger(tmp_path):
    return Ledger("03_tms", tmp_path)


def kept(ledger):
    return json.loads(ledger.path.read_text())


def test_a_claim_is_on_disk_as_soon_as_it_is_recorded(ledger):
    ledger.record("cliff-at-50", **GOOD)
    (claim,) = kept(ledger)["claims"]
    (measured,) = claim["measured"]
    assert claim["verdict"] == "holds"
    assert claim["link"] == "notebooks/03_tms.html#claim-cliff-at-50"
    assert (measured["mean"], measured["sd"]) == (3.0, 1.0)
    assert (measured["min"], measured["max"], measured["values"]) == (2.0, 4.0, [2.0, 3.0, 4.0])


def test_numbers_are_kept_to_four_digits_and_the_text_is_stable(ledger, tmp_path):
    numbers = {"ratio": [1 / 3, 2 / 3], "count": [49, 50]}
    ledger.record("a", **GOOD | {"measured": numbers})
    first = ledger.path.read_text()
    assert kept(ledger)["claims"][0]["measured"][0]["values"] == [0.3333, 0.6667]
    Ledger("03_tms", tmp_path).record("a", **GOOD | {"measured": numbers})
    assert ledger.path.read_text() == first


def test_numpy_and_torch_numbers_are_taken_as_they_come(ledger):
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    measured = {"numpy": np.array([1.0, 2.0]), "torch": torch.tensor([3.0, 4.0]), "bool": [True]}
    claim = ledger.record("a", **GOOD | {"measured": measured})
    assert [m.values for m in claim.measured] == [(1.0, 2.0), (3.0, 4.0), (1.0,)]


def test_a_claim_that_the_chapter_dropped_leaves_the_file(ledger, tmp_path):
    ledger.record("old", **GOOD)
    again = Ledger("03_tms", tmp_path)
    assert [c["id"] for c in kept(ledger)["claims"]] == ["old"]  # untouched until the first record
    again.record("new", **GOOD)
    assert [c["id"] for c in kept(ledger)["claims"]] == ["new"]


def test_an_interrupted_write_leaves_the_old_file_whole(ledger, monkeypatch):
    ledger.record("a", **GOOD)
    before = ledger.path.read_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.record("b", **GOOD)
    assert ledger.path.read_text() == before


def test_the_table_shows_published_ours_verdict_and_reason(ledger):
    numbers = {"a | b": [2, 3, 4]}
    claim = ledger.record("a", **GOOD | {"measured": numbers, "why": "So it is.", "unit": "s"})
    table = claim._repr_markdown_()
    assert '<a id="claim-a"></a>' in table
    assert "| quantity | value [s] |" in table
    assert "| published | a drop at 50 |" in table
    assert r"| a \| b | 3 ± 1 over 3 seeds (2 to 4) |" in table
    assert "**Verdict: holds.** So it is." in table


def test_one_value_and_equal_values_pretend_no_spread(ledger):
    one = ledger.record("one", **GOOD | {"measured": [2.0]})
    equal = ledger.record("equal", **GOOD | {"measured": [10, 10]})
    assert "2 (one value)" in str(one)
    assert "10 in all of 2 seeds" in str(equal)


def test_what_could_not_be_run_needs_no_numbers(ledger):
    claim = ledger.record("a", **GOOD | {"measured": [], "verdict": "could not be run here"})
    assert claim.measured == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "true"}, r"verdict must be one of holds.*got 'true'"),
        ({"measured": []}, r"measured must hold finite numbers.*none at all"),
        ({"measured": {}}, r"measured must hold finite numbers.*none at all"),
        ({"measured": {"ratio": []}}, r"measured\['ratio'\] must hold finite numbers"),
        ({"measured": [1.0, float("nan")]}, r"nan among 2 values"),
        ({"measured": [float("inf")]}, r"inf among 1 values"),
        ({"why": " "}, r"why must say something"),
        ({"statement": ""}, r"statement must say something"),
    ],
)
def test_bad_values_are_refused_by_name_and_nothing_is_written(ledger, change, message):
    with pytest.raises(ValueError, match=message):
        ledger.record("a", **GOOD | change)
    assert not ledger.path.exists()
    assert not ledger.claims


@pytest.mark.parametrize("bad", ["", "Cliff", "a b", "-a", "a--b", "../a"])
def test_ids_and_chapters_are_slugs(ledger, bad):
    with pytest.raises(ValueError, match="id must be a slug"):
        ledger.record(bad, **GOOD)
    with pytest.raises(ValueError, match="chapter must be a slug"):
        Ledger(bad)


def test_an_id_is_used_once(ledger):
    ledger.record("a", **GOOD)
    with pytest.raises(ValueError, match=r"id 'a' is already in the ledger.*Taken: \['a'\]"):
        ledger.record("a", **GOOD)


def test_the_folder_comes_from_the_environment_then_from_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("ENTK_CLAIMS_DIR", raising=False)
    assert Ledger("c").path == tmp_path / "book" / "claims" / "c.json"
    monkeypatch.setenv("ENTK_CLAIMS_DIR", str(tmp_path / "fresh"))
    assert Ledger("c").path == tmp_path / "fresh" / "c.json"


def test_there_are_four_verdicts():
    assert len(VERDICTS) == len(set(VERDICTS)) == 4


def test_a_verdict_asks_for_all_then_for_some():
    assert verdict(True) == verdict(True, False) == "holds"
    assert verdict(False, True) == "holds in part"
    assert verdict(False) == verdict(False, False) == "does not hold"
