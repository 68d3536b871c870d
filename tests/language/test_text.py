"""Text read and written: by hand, and what is written read again."""

import sys
from types import ModuleType

import numpy as np
import pytest
from language_documents import annotated

from entk_helpers.language.text import (
    Document,
    Word,
    last_word,
    read_conllu,
    read_stories,
    tinystories,
    write_conllu,
)

# CoNLL-U


def row(number, form, tag="_", features="_", misc="_"):
    return "\t".join([str(number), form, "_", tag, "_", features, "_", "_", "_", misc])


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_treebank_is_read_word_by_word(tmp_path):
    path = write(
        tmp_path / "a.conllu",
        "# newdoc id = one",
        "# sent_id = 1",
        "# text = Lily didn't run, see.",
        row(1, "Lily", "PROPN", "Number=Sing"),
        row("2-3", "didn't"),
        row(2, "did", "AUX", "Tense=Past"),
        row(3, "n't", "PART"),
        row(4, "run", "VERB", "VerbForm=Inf", "SpaceAfter=No"),
        row(5, ",", "PUNCT"),
        row("5.1", "she", "PRON"),
        row(6, "see", "VERB", misc="SpaceAfter=No"),
        row(7, ".", "PUNCT"),
        "",
        row(1, "Why", "ADV", misc="SpaceAfter=No"),
        row(2, "?", "PUNCT"),
        "",
        "# newdoc",
        row(1, "Oh", "INTJ"),
        row(2, "no", "INTJ", "Polarity=Neg", "SpacesAfter=\\n\\n"),
        "",
        row(1, "Tom", "PROPN"),
    )
    one, two = read_conllu(path)
    assert one.text == "Lily didn't run, see. Why?"
    assert [(w.text, w.tag, w.features) for w in one.words] == [
        ("Lily", "PROPN", "Number=Sing"),
        ("run", "VERB", "VerbForm=Inf"),
        (",", "PUNCT", ""),
        ("see", "VERB", ""),
        (".", "PUNCT", ""),
        ("Why", "ADV", ""),
        ("?", "PUNCT", ""),
    ]
    assert two.text == "Oh no\n\nTom"
    for document in (one, two):
        assert all(document.text[w.start : w.end] == w.text for w in document.words)


def test_a_file_without_newdoc_is_one_document_and_text_gives_the_spaces(tmp_path):
    path = write(
        tmp_path / "a.conllu",
        "# text = «Oui», dit-il.",
        *(row(i, f, "X") for i, f in enumerate(["«", "Oui", "»", ",", "dit", "-il", "."], 1)),
        "",
        "# text = Bon  soir",
        row(1, "Bon", "ADJ"),
        row(2, "soir", "NOUN"),
    )
    (document,) = read_conllu(path)
    assert document.text == "«Oui», dit-il. Bon  soir"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["1\tLily\tPROPN"], "line 1: 3 columns"),
        ([row(1, "a"), row("x", "b")], "line 2: ID 'x'"),
        ([row(1, "")], "line 1: ID '1', FORM ''"),
        ([row(1, "a"), row(3, "b")], "line 2: ID '3' where word 2"),
        ([row(1, "a"), row(1, "b")], "line 2: ID '1' where word 2"),
        ([row("1-1", "a")], "line 1: ID '1-1'"),
        ([row("1-3", "abc"), row(1, "a"), row("2-3", "bc")], "line 3: ID '2-3'"),
        ([row("1-2", "ab"), row(1, "a")], "line 2: the sentence ends before word 2"),
        (["# text = a c", row(1, "a"), row(2, "b")], "line 3: FORM 'b', but `# text` goes on 'c'"),
        (["# text = a c", row(1, "a")], "line 2: the sentence ends, but `# text` goes on 'c'"),
    ],
)
def test_a_faulty_file_is_refused_with_its_line(tmp_path, lines, message):
    with pytest.raises(ValueError, match=r"a\.conllu, ") as error:
        read_conllu(write(tmp_path / "a.conllu", *lines))
    assert message in str(error.value)


def test_what_is_written_is_read_again_as_it_was(tmp_path):
    documents = [
        annotated(
            ' "Lily  can\'t," said\tTom.\n\nThe end | so \\s it was.  No! "Yes." He\r\nran 10 000 times ',
            ('"', "PUNCT"),
            ("Lily", "PROPN", "Number=Sing"),
            (",", "PUNCT"),
            ("said", "VERB", "Mood=Ind|Tense=Past"),
            (".", "PUNCT"),
            ("No", "INTJ"),
            ("!", "PUNCT"),
            (".", "PUNCT"),
            ("10 000", "NUM"),
        ),
        annotated("no words, only text"),
        annotated("One .", ("One", "NUM"), (".", "PUNCT")),
    ]
    path = tmp_path / "b.conllu"
    write_conllu(path, documents)
    assert read_conllu(path) == documents


def test_random_documents_survive_the_file(tmp_path):
    rng = np.random.default_rng(0)
    letters = list("ab.!\"'’|\\=_# \t\n\u00a0é")
    documents = []
    while len(documents) < 60:
        text = "".join(rng.choice(letters, rng.integers(1, 40)))
        words, end = [], 0
        for piece in text.split():
            start = text.index(piece, end)
            end = start + len(piece)
            if rng.random() < 0.6:
                cut = int(rng.integers(1, len(piece) + 1))
                words.append(
                    Word(piece[:cut], "X", "A=b" * int(rng.random() < 0.5), start, start + cut)
                )
        if text.strip():
            documents.append(Document(text, tuple(words)))
    write_conllu(tmp_path / "c.conllu", documents)
    assert read_conllu(tmp_path / "c.conllu") == documents


def test_a_word_that_is_not_where_it_says_is_not_written(tmp_path):
    for word in (Word("cat", "NOUN", "", 4, 7), Word("a\nd", "NOUN", "", 0, 3)):
        with pytest.raises(ValueError, match=r"documents\[0\]: Word"):
            write_conllu(tmp_path / "d.conllu", [Document("a\ndog", (word,))])
    overlapping = Word("ab", "X", "", 0, 2), Word("b", "X", "", 1, 2)
    with pytest.raises(ValueError, match=r"documents\[0\]: Word\(text='b'"):
        write_conllu(tmp_path / "d.conllu", [Document("ab", overlapping)])
    with pytest.raises(ValueError, match=r"documents\[0\] has no text"):
        write_conllu(tmp_path / "d.conllu", [Document(" ", ())])


def test_the_last_word_is_a_word_or_a_sign():
    assert [last_word(t) for t in ("", "  ", "the cat ", "Lily can't", 'said, "', "a-b.")] == [
        "", "", "cat", "can't", '"', ".",
    ]  # fmt: skip
    assert last_word("one two three", 7) == "two"
    assert last_word("x " * 5000 + "end") == "end"


# stories


def test_stories_lie_between_blank_lines(tmp_path):
    path = write(tmp_path / "s.txt", "", "Tom ran.", "He fell.", " ", "", "Lily sat.", "")
    assert read_stories(path) == ["Tom ran.\nHe fell.", "Lily sat."]
    path = write(tmp_path / "t.txt", "Tom ran.", "", "He fell.", "<|endoftext|>", "Lily sat.")
    assert read_stories(path) == ["Tom ran.\n\nHe fell.", "Lily sat."]
    with pytest.raises(ValueError, match="holds no story"):
        read_stories(write(tmp_path / "u.txt", "", " "))


def test_tinystories_streams_a_shuffled_sample(monkeypatch):
    class Rows(list):
        def shuffle(self, seed, buffer_size):
            return Rows(np.random.default_rng(seed).permutation(self))

        def take(self, n):
            return [{"text": t} for t in self[:n]]

    def load(name, split, streaming):
        if split != "train":
            raise RuntimeError("no route to host")
        assert (name, streaming) == ("roneneldan/TinyStories", True)
        return Rows(f"story {i}" for i in range(50))

    datasets = ModuleType("datasets")
    datasets.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    stories = tinystories(5, seed=1)
    assert len(set(stories)) == 5 and stories == tinystories(5, seed=1) != tinystories(5, seed=2)
    with pytest.raises(ConnectionError, match="read_stories"):
        tinystories(5, seed=0, split="validation")
    with pytest.raises(ValueError, match="n=0"):
        tinystories(0, seed=0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        tinystories(3, seed=0)
