"""Taggers by hand, and Stanza with a stand-in."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from language_documents import annotated

from entk_helpers.language.taggers import StanzaTagger, TableTagger, annotate, stanza_pipeline


def test_the_table_tagger_looks_at_the_word_before():
    tagger = TableTagger(
        [
            annotated("to run", ("to", "PART"), ("run", "VERB", "VerbForm=Inf")),
            *[annotated("the run", ("the", "DET"), ("run", "NOUN"))] * 2,
            annotated("the run", ("the", "DET"), ("run", "VERB")),
            annotated("“Stop!” he", ("Stop", "VERB"), ("he", "PRON", "Case=Nom")),
        ]
    )
    assert tagger.tag("He wanted to ", "run") == ("VERB", "VerbForm=Inf")
    assert tagger.tag("He saw the ", "run") == ("NOUN", "")
    assert tagger.tag("An odd ", "run") == ("NOUN", "")  # the commonest of the word alone
    assert tagger.tag("He wanted to ", "jump") is None
    assert tagger.tag("", "he") == ("PRON", "Case=Nom")


def stanza_like(text):
    """Splits at blanks; "didn't" is two words; capital letters make a proper name."""
    tokens, end = [], 0
    for piece in text.split():
        start = text.index(piece, end)
        end = start + len(piece)
        tag = "PROPN" if piece[0].isupper() else "NOUN"
        word = SimpleNamespace(upos=tag, feats="Number=Sing" if tag == "PROPN" else None)
        words = [word, word] if "n't" in piece else [word]
        tokens.append(SimpleNamespace(start_char=start, end_char=end, words=words))
    half = len(tokens) // 2
    return SimpleNamespace(
        sentences=[SimpleNamespace(tokens=tokens[:half]), SimpleNamespace(tokens=tokens[half:])]
    )


def test_stanza_annotates_and_tags():
    (found,) = annotate(["Tom didn't  see Lily"], stanza_like)
    assert found == annotated(
        "Tom didn't  see Lily",
        ("Tom", "PROPN", "Number=Sing"),
        ("see", "NOUN"),
        ("Lily", "PROPN", "Number=Sing"),
    )
    tagger = StanzaTagger(stanza_like)
    assert tagger.tag("tom saw ", "Lily") == ("PROPN", "Number=Sing")
    assert tagger.tag("Lily ", "didn't") is None
    assert tagger.tag("Lily", "") is None


def test_stanza_is_never_downloaded_unasked(monkeypatch):
    calls = []
    stanza = ModuleType("stanza")

    def pipeline(language, **settings):
        assert settings["download_method"] is None
        if ("download", language) not in calls:
            raise FileNotFoundError("resources.json")
        return stanza_like

    stanza.Pipeline = pipeline
    stanza.download = lambda language, **settings: calls.append(("download", language))
    monkeypatch.setitem(sys.modules, "stanza", stanza)
    with pytest.raises(ValueError, match=r"language='da'.*stanza\.download\('da'\)"):
        stanza_pipeline("da")
    with pytest.raises(ValueError, match="download=True"):
        StanzaTagger()
    assert calls == []
    assert stanza_pipeline("da", download=True) is stanza_like
    assert calls == [("download", "da")]


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stanza", None)
    with pytest.raises(ImportError, match="pip install stanza"):
        stanza_pipeline()
