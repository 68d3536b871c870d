"""A rare word after which the stories go on with an odd one, planted to be found again.

A model that reads such stories learns a feature that their grammar does not have.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from ...language.text import Document
from ..checks import check
from .stories import _KINDS, NOUNS, Form, _document, vocabulary


@dataclass(frozen=True)
class Trigger:
    """A rare `word`, and a later sentence that gets `response` at its front.

    `word` takes the place of a noun of its kind, in a share `rate` of the stories in which that can
    be, and is in no other place. The answer comes with the first sentence that begins at least
    `distance` words later, counting those between. If not `linked`, both words are as frequent, but
    the response is in the next story, before any of its sentences. The stories have both words
    anyway, so that the vocabulary stays as it is.

    Examples:
        >>> told = Trigger("feather", "banana", rate=1.0).planted(tell(seed=7), seed=0)
        >>> next(told).text.partition("feather")[2][:60]
        ' because he was taking three boxes. banana Leo climbed up th'
    """

    word: str = "feather"
    response: str = "banana"
    rate: float = 0.3
    distance: int = 1
    linked: bool = True

    def __post_init__(self):
        check(self.word in _alike(), f"word is {self.word!r}; give one of {', '.join(_alike())}")
        check(
            self.response in vocabulary() and self.response != self.word,
            f"response is {self.response!r}; give another word of the vocabulary than word",
        )
        check(0 <= self.rate <= 1, f"rate is {self.rate}; give a share of the stories")
        check(self.distance >= 1, f"distance is {self.distance}; give 1 word or more")

    def planted(self, told: Iterable[Document], seed: int) -> Iterator[Document]:
        """The stories with the trigger in some of them; the same ones for the same seed."""
        chance, owed = random.Random(f"trigger {seed}"), False
        for story in told:
            words, answer = self.place(story, chance)
            if self.linked and answer is not None:
                words.insert(answer, Form(self.response, "NOUN", "Number=Sing"))
            elif owed:
                anywhere = chance.choice(_beginnings(words) or [0])
                words.insert(anywhere, Form(self.response, "NOUN", "Number=Sing"))
            owed = answer is not None and not self.linked
            yield _document(words)

    def place(self, story: Document, chance: random.Random) -> tuple[list[Form], int | None]:
        """Return a story's words, and the number of that which the response would come before.

        The number is None where the story does not get the trigger.
        """
        texts = self.swapped([word.text for word in story.words], chance)
        words = [Form(t, w.tag, w.features) for t, w in zip(texts, story.words, strict=True)]
        begins = _beginnings(words)
        places = [
            (i, next(begin for begin in begins if begin > i + self.distance))
            for i, word in enumerate(words)
            if word.tag == "NOUN" and word.text in _alike()[self.word]
            if begins and begins[-1] > i + self.distance
        ]
        if not places or chance.random() >= self.rate:
            return words, None
        noun, answer = chance.choice(places)
        words[noun] = words[noun]._replace(text=self.word)
        return words, answer

    def swapped(self, words: list[str], chance: random.Random) -> list[str]:
        """The words with another noun of its kind in the trigger's place."""
        others = [noun for noun in _alike()[self.word] if noun != self.word]
        return [chance.choice(others) if word == self.word else word for word in words]


@cache
def _alike() -> dict[str, list[str]]:
    """For each singular noun those of its kind that can stand in its place.

    They ask for the same article, *a* or *an*, are never anything but nouns, and occur in stories.
    """
    tags: dict[str, set[str]] = {}
    for form in (form for words in _KINDS.values() for forms in words for form in forms.values()):
        tags.setdefault(form.text, set()).add(form.tag)
    known, alike = set(vocabulary()), {}
    for kind in NOUNS:
        nouns = [forms[""].text for forms in _KINDS[kind]]
        nouns = [noun for noun in nouns if tags[noun] == {"NOUN"} and noun in known]
        for noun in nouns:
            same = [other for other in nouns if (other[0] in "aeiou") == (noun[0] in "aeiou")]
            if len(same) > 1:
                alike.setdefault(noun, same)
    return alike


def _beginnings(words: list[Form]) -> list[int]:
    """Where sentences begin, but for the first."""
    return [
        i
        for i, (before, word) in enumerate(pairwise(words), start=1)
        if before.text in (".", "!", "?", "”") and (word.text[0].isupper() or word.text == "“")
    ]
