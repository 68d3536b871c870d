"""Text: annotated documents, which CoNLL-U files hold, and plain stories.

Words are those of Universal Dependencies, each with its tag ("NOUN") and features
("Number=Sing"). datasets is imported where it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Word:
    """A word of a document: its Universal Dependencies tag and features ("Number=Sing|Person=3").

    `text` is `document.text[start:end]`; `features` is "" where the word has none.

    Examples:
        >>> text, word = "Dogs bark.", Word("Dogs", "NOUN", "Number=Plur", start=0, end=4)
        >>> text[word.start : word.end] == word.text
        True
    """

    text: str
    tag: str
    features: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text with its words in order.

    Examples:
        >>> Document("Dogs bark.", (Word("Dogs", "NOUN", "Number=Plur", 0, 4),)).words[0].tag
        'NOUN'
    """

    text: str
    words: tuple[Word, ...]


WORD = r"\w+(?:['’-]\w+)*"
_LAST = re.compile(rf"({WORD}|[^\w\s])\s*\Z")


def last_word(text: str, end: int | None = None) -> str:
    """Return the last word or sign of `text[:end]`; "" where it has none."""
    end = len(text) if end is None else end
    match = _LAST.search(text, max(0, end - 60), end)
    return match[1] if match else ""


# CoNLL-U files


class _Token(NamedTuple):
    """A token of the running text; `word` is its tag and features, or None."""

    form: str
    before: str
    after: str | None  # None: nothing is said about the space after it
    word: tuple[str, str] | None


def read_conllu(path: str | Path) -> list[Document]:
    """Read a CoNLL-U file: a document from each `# newdoc` to the next, or all of it as one.

    Space between tokens is as in `# text =`, else one blank unless MISC says SpaceAfter=No;
    SpacesBefore and SpacesAfter, which MISC may hold, go first. A multiword token ("don't") is
    part of the text, but neither it nor its parts are words, and a token without a tag ("_") is
    no word either. Empty nodes are left out. Raises ValueError with the file and the line.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> document = Document("Dogs bark.", (Word("Dogs", "NOUN", "Number=Plur", 0, 4),))
        >>> with TemporaryDirectory() as folder:
        ...     write_conllu(f"{folder}/text.conllu", [document])
        ...     print(read_conllu(f"{folder}/text.conllu") == [document])
        True
    """
    documents: list[list[_Token]] = []
    for new, tokens in _sentences(path):
        if new or not documents:
            documents.append([])
        documents[-1] += tokens
    return [_document(tokens) for tokens in documents if tokens]


def _document(tokens: list[_Token]) -> Document:
    text, words, gap = "", [], ""
    for token in tokens:
        text += gap + token.before
        if token.word is not None:
            words.append(Word(token.form, *token.word, len(text), len(text) + len(token.form)))
        text += token.form + (token.after or "")
        gap = " " if token.after is None else ""
    return Document(text, tuple(words))


def _sentences(path: str | Path) -> Iterator[tuple[bool, list[_Token]]]:
    """The tokens of each sentence, and whether a document begins with it."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    new, text, rows = False, None, []
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("#"):
            comment, _, value = line[1:].partition("=")
            new |= comment.split()[:1] == ["newdoc"]
            if comment.strip() == "text":
                text = value.strip()
        elif line.strip():
            rows.append((f"{path}, line {number}", line.split("\t")))
        elif rows:
            yield new, _sentence(rows, text)
            new, text, rows = False, None, []


def _sentence(rows: list[tuple[str, list[str]]], text: str | None) -> list[_Token]:
    tokens: list[_Token] = []
    covered = 0  # the last word that a token covers
    expected = 1  # the number of the next word
    for where, columns in rows:
        if len(columns) != 10:
            raise ValueError(f"{where}: {len(columns)} columns; CoNLL-U has 10, between tabs")
        number, form, _, tag, _, features, *_, misc = columns
        match = re.fullmatch(r"(\d+)(?:-(\d+)|(\.\d+))?", number)
        if not match or not form:
            raise ValueError(
                f"{where}: ID {number!r}, FORM {form!r}; want 1, 1-2 or 1.1, and a form"
            )
        if match[3]:
            continue
        again = match[2] and (int(match[2]) <= expected or expected <= covered)
        if int(match[1]) != expected or again:
            raise ValueError(f"{where}: ID {number!r} where word {expected} should begin")
        expected += not match[2]
        if not match[2] and int(number) <= covered:
            continue  # a part of a multiword token
        covered = int(match[2] or number)
        said = dict(pair.split("=", 1) for pair in misc.split("|") if "=" in pair)
        after = "" if said.get("SpaceAfter") == "No" else None
        if text is not None:
            if not text.startswith(form):
                raise ValueError(f"{where}: FORM {form!r}, but `# text` goes on {text[:20]!r}")
            rest = text[len(form) :].lstrip()
            # What follows the sentence is not in its text.
            after = text[len(form) : len(text) - len(rest)] if rest else after
            text = rest
        if "SpacesAfter" in said:
            after = _unescape(said["SpacesAfter"])
        word = None if match[2] or tag == "_" else (tag, "" if features == "_" else features)
        tokens.append(_Token(form, _unescape(said.get("SpacesBefore", "")), after, word))
    if expected <= covered:
        raise ValueError(f"{where}: the sentence ends before word {covered} of a multiword token")
    if text:
        raise ValueError(f"{where}: the sentence ends, but `# text` goes on {text[:20]!r}")
    return tokens


def write_conllu(path: str | Path, documents: Iterable[Document]) -> None:
    """Write documents so that `read_conllu` returns them as they are, whatever their spacing.

    Text between words becomes tokens without a tag. A sentence ends where a line does, or after
    one of . ! ? and the quotes that follow it. Raises ValueError for a word that is not where it
    says, and for a document without words or text.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> document = Document("Dogs.", (Word("Dogs", "NOUN", "Number=Plur", 0, 4),))
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "text.conllu")
        ...     write_conllu(path, [document])
        ...     print(path.read_text().splitlines()[3].split()[:6])
        ['1', 'Dogs', '_', 'NOUN', '_', 'Number=Plur']
    """
    blocks = []
    for number, document in enumerate(documents):
        tokens = _tokens(document, f"documents[{number}]")
        sentences: list[list[_Token]] = [[]]
        for token in tokens:
            sentences[-1].append(token)
            full_stop = token.form in (".", "!", "?", "...", '"', "”", "’") and token.after
            if token is not tokens[-1] and (full_stop or "\n" in token.after):
                sentences.append([])
        for index, sentence in enumerate(sentences):
            text = "".join(t.form + (" " if t.after else "") for t in sentence).rstrip()
            lines = [f"# newdoc id = {number}"] if index == 0 else []
            lines += [f"# sent_id = {number}-{index}", f"# text = {text}"]
            for row, token in enumerate(sentence, start=1):
                tag, features = token.word or ("_", "_")
                misc = [f"SpacesBefore={_escape(token.before)}"] if token.before else []
                if token.after == "":
                    misc.append("SpaceAfter=No")
                # One blank is what no remark means, but not at the end of a document.
                elif token.after != " " or token is tokens[-1]:
                    misc.append(f"SpacesAfter={_escape(token.after)}")
                columns = [row, token.form, "_", tag, "_", features or "_", "_", "_", "_"]
                lines.append("\t".join(map(str, [*columns, "|".join(misc) or "_"])))
            blocks.append("\n".join(lines) + "\n")
    Path(path).write_text("\n".join(blocks) + "\n", encoding="utf-8", newline="\n")


def _tokens(document: Document, name: str) -> list[_Token]:
    text, pieces, end = document.text, [], 0
    for word in document.words:
        there = text[word.start : word.end]
        if (
            word.start < end
            or there != word.text
            or not re.fullmatch(r"\S(?:[^\t\n\r]*\S)?", there)
        ):
            raise ValueError(
                f"{name}: {word} must lie in the text, after the word before it and on one line; "
                f"the text has {there!r} there"
            )
        pieces += _untagged(text, end, word.start)
        pieces.append((word.start, word.end, (word.tag, word.features)))
        end = word.end
    pieces += _untagged(text, end, len(text))
    if not pieces:
        raise ValueError(f"{name} has no text; leave it out")
    starts = [start for start, _, _ in pieces[1:]] + [len(text)]
    lead = text[: pieces[0][0]]
    return [
        _Token(text[start:end], "" if n else lead, text[end:following], word)
        for n, ((start, end, word), following) in enumerate(zip(pieces, starts, strict=True))
    ]


def _untagged(text: str, start: int, end: int) -> list[tuple[int, int, None]]:
    return [(m.start(), m.end(), None) for m in re.compile(r"\S+").finditer(text, start, end)]


_ESCAPES = {" ": "\\s", "\n": "\\n", "\t": "\\t", "\r": "\\r", "|": "\\p", "\\": "\\\\"}


def _escape(space: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in space)


def _unescape(space: str) -> str:
    plain = {escape: character for character, escape in _ESCAPES.items()}
    return re.sub(r"\\.", lambda match: plain.get(match[0], match[0]), space)


# Stories


def read_stories(path: str | Path) -> list[str]:
    """Read the stories of a text file: between blank lines, or between <|endoftext|> if it has any.

    The latter is how TinyStories' own text files part them. Raises ValueError for an empty file.
    """
    text = Path(path).read_text(encoding="utf-8")
    end = "<|endoftext|>"
    parts = text.split(end) if end in text else re.split(r"\n[ \t]*(?:\n[ \t]*)+", text)
    stories = [part.strip() for part in parts if part.strip()]
    if not stories:
        raise ValueError(
            f"path={str(path)!r} holds no story; want text, stories between blank lines"
        )
    return stories


def tinystories(n: int, seed: int, *, split: str = "train") -> list[str]:
    """Stream n stories of roneneldan/TinyStories from the Hugging Face Hub.

    They are drawn through a buffer of 10,000, so they come from the beginning of the data, in an
    order that `seed` fixes. Raises ImportError without the package `datasets`, and
    ConnectionError where the Hub does not answer.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    try:
        import datasets
    except ImportError as error:
        raise ImportError("TinyStories needs datasets: run `pip install datasets`") from error
    try:
        rows = datasets.load_dataset("roneneldan/TinyStories", split=split, streaming=True)
        return [row["text"] for row in rows.shuffle(seed=seed, buffer_size=10_000).take(n)]
    # What a missing network raises depends on the versions of datasets and its HTTP client.
    except Exception as error:
        raise ConnectionError(
            "roneneldan/TinyStories could not be streamed from the Hugging Face Hub; without a "
            "network, pass a file of stories to read_stories instead"
        ) from error
