"""Windows of annotated text that end just before a word on whose tag text and model agree."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..progress import progress_bar
from .taggers import Tagger
from .text import WORD, Document, Word, last_word

# The parts of speech of the paper (version 4, section 5), 128 windows each.
UD_TAGS = ("PUNCT", "PRON", "PROPN", "DET", "ADV", "CCONJ", "NOUN", "VERB")


@dataclass(frozen=True)
class Windows:
    """N windows of T tokens, each cut off just before a word of its document.

    Entry n of each list belongs to row n: the window's text, its last whole word ("" where it
    has none), the word of the document that comes next with its tag and features, the first word
    of the model's own greedy continuation with its features, and the document's number.
    """

    input_ids: Int[Tensor, "N T"]
    attention_mask: Int[Tensor, "N T"]
    texts: list[str]
    last_words: list[str]
    next_words: list[str]
    tags: list[str]
    features: list[str]
    greedy_words: list[str]
    documents: list[int]
    greedy_features: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)


_FIRST = re.compile(rf"\s*({WORD}|[^\w\s])")
# A word that goes on, or might ("don" of "don't"); the first bytes of a sign.
_OPEN = re.compile(rf"\s*(?:{WORD}['’-]?)?\ufffd*\Z")


class _Candidate(NamedTuple):
    document: int
    word: Word
    stop: int  # the window ends before this token


@dataclass(frozen=True)
class _Tokens:
    """Documents as tokens; a window is `lead`, which begins any text, and `body` tokens of one.

    ids, spans: of each document's tokens, and where each lies in the text.
    """

    documents: Sequence[Document]
    ids: list[list[int]]
    spans: list[list[tuple[int, int]]]
    lead: list[int]
    body: int

    @classmethod
    def of(
        cls, tokenizer: Any, documents: Sequence[Document], lead: list[int], body: int
    ) -> _Tokens:
        """Split each document into tokens."""
        encoded = [
            tokenizer(d.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for d in documents
        ]
        ids, spans = ([e[key] for e in encoded] for key in ("input_ids", "offset_mapping"))
        return cls(documents, ids, spans, lead, body)

    def window(self, c: _Candidate) -> list[int]:
        """The token ids of a window."""
        return self.lead + self.ids[c.document][c.stop - self.body : c.stop]

    def before(self, c: _Candidate) -> str:
        """The document up to the end of a window."""
        return self.documents[c.document].text[: self.spans[c.document][c.stop - 1][1]]

    def text(self, c: _Candidate) -> str:
        """What a window shows of its document."""
        return self.before(c)[self.spans[c.document][c.stop - self.body][0] :]


def select_windows(
    model: Any,
    tokenizer: Any,
    documents: Sequence[Document],
    tagger: Tagger,
    *,
    length: int = 64,
    tags: Sequence[str] = UD_TAGS,
    per_tag: int = 128,
    seed: int = 0,
    special_tokens: bool = True,
    batch: int = 64,
    max_new_tokens: int = 8,
    progress: bool = False,
) -> Windows:
    """Draw windows that end just before a word of a wanted tag, `per_tag` for each of `tags`.

    A window is kept only if the first word of the model's own greedy continuation has the same
    tag, by the tagger, in the document up to there: only then do the text and the model agree
    on what comes next. (A continuation without a whole word in `max_new_tokens` has no tag.)

    Every window has `length` tokens. With `special_tokens` the first are those that the tokenizer
    puts before a text (Gemma's bos), which count; without, all are of the text, as in the published
    notebook. The word must begin where a token begins; a blank that is a token of its own is
    left to the model to write. No document gives two windows to one tag, which would be nearly the
    same text and could lie in both halves of a split; it may give one to each of several tags,
    because rare agreement (adverbs) needs all documents. (The published notebook: one a document.)

    Rows are in order of `tags`. Raises ValueError for a slow tokenizer, a model in train mode, a
    setting out of range, and where the documents run out, with what was found for each tag.

    Examples:
        >>> from entk_helpers.language import TableTagger
        >>> from entk_helpers.testbeds import grammar
        >>> model = grammar.untrained(seed=0, d_model=16, n_layers=1, d_mlp=32)
        >>> told, words = grammar.stories(40, seed=0), grammar.tokenizer()
        >>> settings = dict(length=8, tags=["NOUN"], per_tag=2, max_new_tokens=2, batch=8)
        >>> found = select_windows(model, words, told, TableTagger(told), **settings)
        >>> found.input_ids.shape, found.tags
        (torch.Size([2, 8]), ['NOUN', 'NOUN'])
    """
    tags = list(tags)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "tokenizer must be a fast one: only these say where a token lies in the text"
        )
    if getattr(model, "training", False):
        raise ValueError("model is in train mode; call model.eval() first")
    if not tags or len(set(tags)) < len(tags):
        raise ValueError(f"tags={tags} must name one or more tags, each once")
    for name, value in (("per_tag", per_tag), ("batch", batch), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    lead = _leading_tokens(tokenizer) if special_tokens else []
    body = length - len(lead)
    if body < 1:
        raise ValueError(f"length={length} must exceed the {len(lead)} tokens that begin a text")
    tokens = _Tokens.of(tokenizer, documents, lead, body)
    queues = _queues(tokens, tags, seed)
    found: dict[str, list[tuple[_Candidate, str, str]]] = {tag: [] for tag in tags}
    used: set[tuple[str, int]] = set()  # tags and documents
    tried = Counter()
    with progress_bar(len(tags) * per_tag, "windows", show=progress) as bar:
        while drawn := _next_candidates(queues, found, used, per_tag):
            for start in range(0, len(drawn), batch):
                part = drawn[start : start + batch]
                ids = [tokens.window(c) for c in part]
                tried.update(c.word.tag for c in part)
                written = _continuations(model, tokenizer, ids, max_new_tokens)
                for c, more in zip(part, written, strict=True):
                    tag, match = c.word.tag, _FIRST.match(more)
                    if not match or (tag, c.document) in used or len(found[tag]) == per_tag:
                        continue
                    context = tokens.before(c) + more[: match.start(1)]
                    entry = tagger.tag(context, match[1])
                    if entry is not None and entry[0] == tag:
                        found[tag].append((c, match[1], entry[1]))
                        used.add((tag, c.document))
                        bar.update()
    short = [tag for tag in tags if len(found[tag]) < per_tag]
    if short:
        counts = ", ".join(f"{tag} {len(found[tag])} (of {tried[tag]} tried)" for tag in short)
        raise ValueError(
            f"documents: {len(documents)} are too few for per_tag={per_tag} windows of "
            f"length={length}; found {counts}; pass more or longer documents, or a smaller per_tag"
        )
    return _windows(tokens, [row for tag in tags for row in found[tag]])


def _windows(tokens: _Tokens, rows: list[tuple[_Candidate, str, str]]) -> Windows:
    """Of each row: where the window ends, the model's own next word and its features."""
    chosen, greedy_words, greedy_features = map(list, zip(*rows, strict=True))
    input_ids = torch.tensor([tokens.window(c) for c in chosen])
    return Windows(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        texts=[tokens.text(c) for c in chosen],
        last_words=[last_word(tokens.before(c)) for c in chosen],
        next_words=[c.word.text for c in chosen],
        tags=[c.word.tag for c in chosen],
        features=[c.word.features for c in chosen],
        greedy_words=greedy_words,
        documents=[c.document for c in chosen],
        greedy_features=greedy_features,
    )


def _next_candidates(
    queues: dict[str, list[_Candidate]],
    found: dict[str, list],
    used: set[tuple[str, int]],
    per_tag: int,
) -> list[_Candidate]:
    """Take half as many again as each tag lacks from its queue, since not all will agree."""
    drawn = []
    for tag, queue in queues.items():
        wanted = -(-3 * (per_tag - len(found[tag])) // 2)
        queue[:] = [c for c in queue if (tag, c.document) not in used]
        drawn += queue[:wanted]
        del queue[:wanted]
    return drawn


def _leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    mask = encoded["special_tokens_mask"]
    return encoded["input_ids"][: mask.index(0)]


def _queues(tokens: _Tokens, tags: list[str], seed: int) -> dict[str, list[_Candidate]]:
    """The places where a window may end, by tag, in random order.

    First one place of each document, then a second of each, and so on.
    """
    rng = np.random.default_rng(seed)
    ranked: dict[str, list[tuple[int, float, _Candidate]]] = {tag: [] for tag in tags}
    for number, (document, span) in enumerate(zip(tokens.documents, tokens.spans, strict=True)):
        rounds = Counter()
        for index in rng.permutation(len(document.words)):
            word = document.words[index]
            stop = _stop(document.text, span, word.start) if word.tag in ranked else 0
            if stop >= tokens.body:
                ranked[word.tag].append(
                    (rounds[word.tag], rng.random(), _Candidate(number, word, stop))
                )
                rounds[word.tag] += 1
    return {tag: [c for _, _, c in sorted(ranked[tag], key=lambda r: r[:2])] for tag in tags}


def _stop(text: str, span: list[tuple[int, int]], start: int) -> int:
    """How many tokens come before the word at `start`; 0 if no token begins with it."""
    stop = bisect_right(span, start, key=lambda token: token[1])
    if stop == len(span) or text[span[stop][0] : start].strip():
        return 0
    while stop and not text[slice(*span[stop - 1])].strip(" "):
        stop -= 1
    return stop


@torch.no_grad()
def _continuations(model: Any, tokenizer: Any, ids: list[list[int]], most: int) -> list[str]:
    """What the model writes after each window until a word is whole; "" if it never is."""
    special = set(tokenizer.all_special_ids)
    before = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
    step = torch.tensor(ids, device=model.device)
    mask, cache = torch.ones_like(step), None
    written: list[list[int]] = [[] for _ in ids]
    result = [""] * len(ids)
    running = set(range(len(ids)))
    for _ in range(most):
        # The logits of a whole batch of windows would take gigabytes.
        out = model(
            step, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache, step = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(step)], 1)
        for row, token in enumerate(step.flatten().tolist()):
            if row not in running:
                continue
            ended = token in special
            written[row] += [] if ended else [token]
            # Decoded with its window: alone, a first token would lose its leading blank.
            full = tokenizer.decode(ids[row] + written[row], clean_up_tokenization_spaces=False)
            more = full[len(before[row]) :] if full.startswith(before[row]) else ""
            if ended or not _OPEN.match(more):
                result[row] = more
                running.remove(row)
        if not running:
            break
    return result
