"""Windows in which a planted trigger shows, and controls in which it does not."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from ..checks import check
from .stories import LENGTHS, tell
from .tokens import tokenizer
from .trigger import Trigger


@dataclass(frozen=True)
class Cases:
    """N windows of T tokens, <bos> first.

    kinds: "triggered" (the story's next word is the response), "swapped" (the same window with
    another noun in the trigger's place) or "normal" (from anywhere in a story without the trigger).
    words: those of each window, one a token after <bos>.
    """

    input_ids: Int[Tensor, "N T"]
    kinds: list[str]
    words: list[list[str]]

    def __len__(self) -> int:
        return len(self.input_ids)

    def of(self, kind: str) -> torch.Tensor:
        """Which windows are of a kind, (N,) bool."""
        return torch.tensor([one == kind for one in self.kinds])


def cases(
    trigger: Trigger, n_triggered: int, n_normal: int, seed: int, *, length: int = 32
) -> Cases:
    """Draw windows with the trigger, as many controls with it swapped, and normal ones.

    No story gives two, but for a window and its control. All are of stories that no model has been
    trained on, unless it has the same seed. Raises ValueError for windows that have no room for the
    trigger, and for those that not all stories fill.

    Examples:
        >>> found = cases(Trigger("feather"), 1, n_normal=1, seed=5, length=16)
        >>> found.kinds, found.input_ids.shape
        (['triggered', 'swapped', 'normal'], torch.Size([3, 16]))
        >>> ["feather" in words for words in found.words]
        [True, False, False]
    """
    least = trigger.distance + 3
    check(length >= least, f"length is {length}; give {least} or more for this distance")
    check(
        length <= LENGTHS[0], f"length is {length}; give {LENGTHS[0]} or less, as all stories have"
    )
    chance, told, body = random.Random(f"cases {seed}"), tell(seed), length - 1
    always, never = replace(trigger, rate=1.0), replace(trigger, rate=0.0)
    triggered, normal = [], []
    while len(triggered) < n_triggered:
        words, answer = always.place(next(told), chance)
        if answer is not None and answer >= body:
            window = [word.text for word in words[answer - body : answer]]
            triggered += [window] if trigger.word in window else []
    while len(normal) < n_normal:
        words = [word.text for word in never.place(next(told), chance)[0]]
        stop = chance.randrange(body, len(words))
        normal.append(words[stop - body : stop])
    rows = [*triggered, *(trigger.swapped(row, chance) for row in triggered), *normal]
    kinds = ["triggered"] * n_triggered + ["swapped"] * n_triggered + ["normal"] * n_normal
    return Cases(token_ids(rows), kinds, rows)


def windows_before(word: str, n: int, seed: int, *, length: int = 32) -> Int[Tensor, "n T"]:
    """Return windows of ordinary stories that end just before a word, at most one a story.

    Raises ValueError for a word that stands there in fewer than n of 1000 n stories.

    Examples:
        >>> ids = windows_before("banana", n=2, seed=5, length=8)
        >>> ids.shape, tokenizer().decode(ids[0])
        (torch.Size([2, 8]), '<bos> stopped, and Dan soon cooked a')
    """
    body, rows = length - 1, []
    for story in islice(tell(seed), 1000 * n):
        words = [one.text for one in story.words]
        if word in words[body:]:
            stop = words.index(word, body)
            rows.append(words[stop - body : stop])
        if len(rows) == n:
            break
    check(len(rows) == n, f"word is {word!r}, of which there are {len(rows)}; give another")
    return token_ids(rows)


def token_ids(rows: list[list[str]]) -> Int[Tensor, "N T"]:
    """The ids of rows of words, all of one length, after <bos>.

    Examples:
        >>> tokenizer().convert_ids_to_tokens(token_ids([["the", "cat"]])[0])
        ['<bos>', 'the', 'cat']
    """
    words = tokenizer()
    return torch.tensor([[words.bos_token_id, *words.convert_tokens_to_ids(row)] for row in rows])
