"""What says which tag and features a word has: tables of annotated text, and Stanza.

stanza is imported where it is needed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from ..progress import progress_bar
from .text import Document, Word, last_word


@runtime_checkable
class Tagger(Protocol):
    """Says what a word is at the end of a context: (tag, features), or None if it cannot."""

    def tag(self, context: str, word: str) -> tuple[str, str] | None:
        """Tag `word`, which follows `context` directly, space included."""
        ...


class TableTagger:
    """Tags a word as annotated documents do most often after the same word, else anywhere.

    Enough for a language with few ambiguous words, as a grammar's. Spelling counts.

    Examples:
        >>> from entk_helpers.language import Document, Word
        >>> tagger = TableTagger([Document("Dogs bark.", (Word("bark", "VERB", "", 5, 9),))])
        >>> tagger.tag("Dogs ", "bark"), tagger.tag("Dogs ", "sing")
        (('VERB', ''), None)
    """

    def __init__(self, documents: Iterable[Document]):
        self._counts: dict[tuple[str | None, str], Counter] = defaultdict(Counter)
        for document in documents:
            for word in document.words:
                entry = (word.tag, word.features)
                self._counts[last_word(document.text, word.start), word.text][entry] += 1
                self._counts[None, word.text][entry] += 1

    def tag(self, context: str, word: str) -> tuple[str, str] | None:
        """Return the commonest tag and features; None for a word that no document has."""
        for key in ((last_word(context), word), (None, word)):
            if key in self._counts:
                return self._counts[key].most_common(1)[0][0]
        return None


class StanzaTagger:
    """Tags a word as Stanza does at the end of its context.

    `pipeline` is by default `stanza_pipeline()`. Each call annotates the whole context.
    """

    def __init__(self, pipeline: Any = None):
        self._pipeline = stanza_pipeline() if pipeline is None else pipeline

    def tag(self, context: str, word: str) -> tuple[str, str] | None:
        """Return Stanza's tag and features; None where it splits a token into two words."""
        for token in _stanza_tokens(self._pipeline, context + word):
            if token.start_char >= len(context):
                return _stanza_word(token)
        return None


def stanza_pipeline(language: str = "en", *, download: bool = False) -> Any:
    """Return a Stanza pipeline that finds words, tags and features.

    Nothing is downloaded unless `download`. Raises ImportError without the package, and
    ValueError without the language's models; both say what to run.
    """
    try:
        import stanza
    except ImportError as error:
        raise ImportError("tagging needs Stanza: run `pip install stanza`") from error
    parts = "tokenize,mwt,pos"
    if download:
        stanza.download(language, processors=parts, verbose=False)
    try:
        return stanza.Pipeline(language, processors=parts, download_method=None, verbose=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"language={language!r}: Stanza's models for {parts} are not on this machine; pass "
            f"download=True, or run python -c \"import stanza; stanza.download('{language}')\""
        ) from error


def annotate(texts: Iterable[str], pipeline: Any, *, progress: bool = False) -> list[Document]:
    """Return each text with the words that a `stanza_pipeline` finds in it.

    A token that Stanza splits into several words ("don't") stays in the text, but is no word.
    """
    texts = list(texts)
    documents = []
    with progress_bar(len(texts), "annotate", show=progress) as bar:
        for text in texts:
            words = []
            for token in _stanza_tokens(pipeline, text):
                entry, start, end = _stanza_word(token), token.start_char, token.end_char
                if entry is not None:
                    words.append(Word(text[start:end], *entry, start, end))
            documents.append(Document(text, tuple(words)))
            bar.update()
    return documents


def _stanza_tokens(pipeline: Any, text: str) -> Iterator[Any]:
    return (token for sentence in pipeline(text).sentences for token in sentence.tokens)


def _stanza_word(token: Any) -> tuple[str, str] | None:
    if len(token.words) != 1:
        return None
    return token.words[0].upos, token.words[0].feats or ""
