"""Annotated text, and windows of it that end just before a word.

Words are those of Universal Dependencies, each with its tag ("NOUN") and features
("Number=Sing"). They come with the text in a CoNLL-U file, or Stanza finds them in plain stories.
stanza and datasets are imported where they are needed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..progress import progress_bar

# The parts of speech of the paper (version 4, section 5), 128 windows each.
UD_TAGS = ("PUNCT", "PRON", "PROPN", "DET", "ADV", "CCONJ", "NOUN", "VERB")


@dataclass(frozen=True)
class Word:
    """A word of a document: its Universal Dependencies tag and features ("Number=Sing|Person=3").

    `text` is `document.text[start:end]`; `features` is "" where the word has none.
    """

    text: str
    tag: str
    features: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text with its words in order."""

    text: str
    words: tuple[Word, ...]


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


# Taggers


@runtime_checkable
class Tagger(Protocol):
    """Says what a word is at the end of a context: (tag, features), or None if it cannot."""

    def tag(self, context: str, word: str) -> tuple[str, str] | None:
        """Tag `word`, which follows `context` directly, space included."""
        ...


class TableTagger:
    """Tags a word as annotated documents do most often after the same word, else anywhere.

    Enough for a language with few ambiguous words, as a grammar's. Spelling counts.
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


# Windows

_WORD = r"\w+(?:['’-]\w+)*"
_LAST = re.compile(rf"({_WORD}|[^\w\s])\s*\Z")
_FIRST = re.compile(rf"\s*({_WORD}|[^\w\s])")
# A word that goes on, or might ("don" of "don't"); the first bytes of a sign.
_OPEN = re.compile(rf"\s*(?:{_WORD}['’-]?)?\ufffd*\Z")


def last_word(text: str, end: int | None = None) -> str:
    """Return the last word or sign of `text[:end]`; "" where it has none."""
    end = len(text) if end is None else end
    match = _LAST.search(text, max(0, end - 60), end)
    return match[1] if match else ""


class _Candidate(NamedTuple):
    document: int
    word: Word
    stop: int  # the window ends before this token


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

    encoded = [
        tokenizer(d.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for d in documents
    ]
    spans = [e["offset_mapping"] for e in encoded]

    def window(c: _Candidate) -> list[int]:
        """The token ids of a candidate."""
        return lead + encoded[c.document]["input_ids"][c.stop - body : c.stop]

    def cut(c: _Candidate) -> int:
        """Where a candidate ends in its document."""
        return spans[c.document][c.stop - 1][1]

    queues = _queues(documents, spans, tags, body, seed)
    found: dict[str, list[tuple[_Candidate, str, str]]] = {tag: [] for tag in tags}
    used: set[tuple[str, int]] = set()  # tags and documents
    tried = Counter()
    with progress_bar(len(tags) * per_tag, "windows", show=progress) as bar:
        while drawn := _next_candidates(queues, found, used, per_tag):
            for start in range(0, len(drawn), batch):
                part = drawn[start : start + batch]
                ids = [window(c) for c in part]
                tried.update(c.word.tag for c in part)
                written = _continuations(model, tokenizer, ids, max_new_tokens)
                for c, more in zip(part, written, strict=True):
                    tag, match = c.word.tag, _FIRST.match(more)
                    if not match or (tag, c.document) in used or len(found[tag]) == per_tag:
                        continue
                    context = documents[c.document].text[: cut(c)] + more[: match.start(1)]
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
    rows = [row for tag in tags for row in found[tag]]
    chosen = [c for c, _, _ in rows]
    texts = [documents[c.document].text for c in chosen]
    input_ids = torch.tensor([window(c) for c in chosen])
    return Windows(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        texts=[
            text[spans[c.document][c.stop - body][0] : cut(c)]
            for text, c in zip(texts, chosen, strict=True)
        ],
        last_words=[last_word(text, cut(c)) for text, c in zip(texts, chosen, strict=True)],
        next_words=[c.word.text for c in chosen],
        tags=[c.word.tag for c in chosen],
        features=[c.word.features for c in chosen],
        greedy_words=[word for _, word, _ in rows],
        documents=[c.document for c in chosen],
        greedy_features=[features for _, _, features in rows],
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


def _queues(
    documents: Sequence[Document],
    spans: list[list[tuple[int, int]]],
    tags: list[str],
    body: int,
    seed: int,
) -> dict[str, list[_Candidate]]:
    """The places where a window of `body` tokens may end, by tag, in random order.

    First one place of each document, then a second of each, and so on.
    """
    rng = np.random.default_rng(seed)
    ranked: dict[str, list[tuple[int, float, _Candidate]]] = {tag: [] for tag in tags}
    for number, (document, span) in enumerate(zip(documents, spans, strict=True)):
        rounds = Counter()
        for index in rng.permutation(len(document.words)):
            word = document.words[index]
            stop = _stop(document.text, span, word.start) if word.tag in ranked else 0
            if stop >= body:
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
