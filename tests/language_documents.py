"""Annotated documents for tests, from a few words each."""

from entk_helpers.language.text import Document, Word


def annotated(text, *words):
    """A document whose words (text, tag, features) are found from left to right."""
    found, end = [], 0
    for word, tag, *features in words:
        start = text.index(word, end)
        end = start + len(word)
        found.append(Word(word, tag, features[0] if features else "", start, end))
    return Document(text, tuple(found))
