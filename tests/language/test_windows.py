"""Windows against a second route, and with stand-ins for models and tokenizers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from entk_helpers.language.taggers import TableTagger
from entk_helpers.language.text import Document, Word
from entk_helpers.language.windows import select_windows


def invent(n, seed):
    """Words of one to four syllables, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    words = {"".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(2 * n)}
    return sorted(words)[:n]


WORDS = {
    "NOUN": ["cat", "wheelbarrow", "river", "strawberry", *(w + "n" for w in invent(30, 1))],
    "VERB": [w + "s" for w in invent(40, 2)],
    "PROPN": ["Lily", "Bartholomew", "Tom", *(w.title() for w in invent(30, 3))],
    "ADV": ["quickly", "there", *(w + "ly" for w in invent(30, 4))],
    "DET": ["the", "a"],
}
PATTERN = ["DET", "NOUN", "VERB", "PROPN", "ADV", "PUNCT"]


def make_documents(n, sentences=8, seed=0):
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(n):
        text, words = "", []
        for tag in PATTERN * sentences:
            form = "." if tag == "PUNCT" else str(rng.choice(WORDS[tag]))
            text += "" if not text or tag == "PUNCT" else " "
            words.append(Word(form, tag, f"Tag={tag.title()}", len(text), len(text) + len(form)))
            text += form
        documents.append(Document(text, tuple(words)))
    return documents


def metaspace(model, trainer):
    raw = Tokenizer(model)
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(".", "isolated")]
    )
    raw.decoder = decoders.Metaspace()
    return raw, trainer


def gemma_like():
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split(".", "isolated")]
    )
    raw.decoder = decoders.Replace("▁", " ")
    return raw, trainers.BpeTrainer


def byte_level():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return raw, trainers.BpeTrainer


def word_level():
    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw, trainers.WordLevelTrainer


KINDS = {
    "metaspace BPE": lambda: metaspace(models.BPE(), trainers.BpeTrainer),
    "metaspace unigram": lambda: metaspace(models.Unigram(), trainers.UnigramTrainer),
    "Gemma": gemma_like,
    "bytes": byte_level,
    "words": word_level,
}


def make_tokenizer(kind, texts):
    raw, trainer = KINDS[kind]()
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    settings = {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
    raw.train_from_iterator(
        texts,
        trainer(
            vocab_size=2000 if kind == "words" else 150,
            special_tokens=special,
            show_progress=False,
            **settings,
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", raw.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


class Reciter:
    """A model that goes on as the texts it knows: the token that followed the last `memory`.

    Where it knows nothing, it ends the text. Its cache is what it has read.
    """

    device = "cpu"

    def __init__(self, tokenizer, texts, memory=19):
        self.end, self.size = tokenizer.eos_token_id, len(tokenizer)
        self.memory, self.next, self.read = memory, {}, []
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            for i in range(memory, len(ids)):
                self.next[tuple(ids[i - memory : i])] = ids[i]

    def __call__(self, ids, attention_mask, past_key_values, use_cache, logits_to_keep):
        if past_key_values is None:
            self.read.append(ids)
        seen = ids if past_key_values is None else torch.cat([past_key_values, ids], 1)
        assert attention_mask.shape == seen.shape and attention_mask.all()
        logits = torch.zeros(len(seen), logits_to_keep, self.size)
        for n, line in enumerate(seen.tolist()):
            logits[n, -1, self.next.get(tuple(line[-self.memory :]), self.end)] = 1
        return SimpleNamespace(logits=logits, past_key_values=seen)


@pytest.fixture(scope="module")
def documents():
    return make_documents(30)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_end_just_before_words_that_the_model_goes_on_with(kind, documents):
    texts = [d.text for d in documents]
    tokenizer = make_tokenizer(kind, texts)
    w = select_windows(
        Reciter(tokenizer, texts), tokenizer, documents, TableTagger(documents),
        length=24, tags=PATTERN, per_tag=10,
    )  # fmt: skip
    assert w.input_ids.shape == w.attention_mask.shape == (60, 24) and w.attention_mask.all()
    assert w.tags == [tag for tag in PATTERN for _ in range(10)]
    assert (w.input_ids[:, 0] == tokenizer.bos_token_id).all()
    assert not (w.input_ids[:, 1:] == tokenizer.bos_token_id).any()
    for n in range(60):
        d = documents[w.documents[n]]
        # The window and the word that comes next lie in the document, one after the other.
        ends = [i + len(w.texts[n]) for i in range(len(d.text)) if d.text.startswith(w.texts[n], i)]
        (word,) = [
            x
            for x in d.words
            for end in ends
            if d.text[end : x.start].strip() == "" and x.start >= end and x.start - end < 2
        ]
        assert (word.text, word.tag, word.features) == (w.next_words[n], w.tags[n], w.features[n])
        before = d.words[d.words.index(word) - 1]
        assert w.last_words[n] == before.text
        plain = tokenizer.decode(w.input_ids[n, 1:], clean_up_tokenization_spaces=False)
        assert plain.replace(" ", "") == w.texts[n].replace(" ", "")
    assert w.greedy_words == w.next_words and w.greedy_features == w.features
    if kind != "words":
        pieces = {
            len(tokenizer(" " + x, add_special_tokens=False)["input_ids"]) for x in w.greedy_words
        }
        assert max(pieces) >= 3  # some words take several tokens
    for tag in PATTERN:
        numbers = [d for d, t in zip(w.documents, w.tags, strict=True) if t == tag]
        assert len(set(numbers)) == 10  # one window a document and tag


@pytest.fixture(scope="module")
def world(documents):
    texts = [d.text for d in documents]
    tokenizer = make_tokenizer("Gemma", texts)
    return tokenizer, Reciter(tokenizer, texts), TableTagger(documents)


def test_the_draw_follows_the_seed_and_nothing_else(world, documents):
    tokenizer, model, tagger = world
    settings = dict(length=20, tags=["NOUN", "ADV"], per_tag=12)
    a, b, c = (
        select_windows(model, tokenizer, documents, tagger, seed=seed, batch=batch, **settings)
        for seed, batch in ((0, 64), (0, 5), (1, 64))
    )
    assert (a.input_ids == b.input_ids).all() and a.documents == b.documents
    assert (a.input_ids != c.input_ids).any()


def test_bos_counts_and_can_be_left_out(world, documents):
    tokenizer, model, tagger = world
    settings = dict(length=20, tags=["VERB"], per_tag=5)
    w = select_windows(model, tokenizer, documents, tagger, special_tokens=False, **settings)
    assert w.input_ids.shape == (5, 20)
    assert not (w.input_ids == tokenizer.bos_token_id).any()
    assert (model.read[-1].shape[1], model.read[-1].eq(tokenizer.bos_token_id).any()) == (20, False)


def altered(documents, changes):
    """The texts of the documents with other words in the place of some."""
    return [
        "".join(
            d.text[a.end if a else 0 : b.start] + changes.get(b.text, b.text)
            for a, b in zip((None, *d.words), d.words, strict=False)
        )
        for d in documents
    ]


class Tempted(Reciter):
    """Reads the documents, and writes other texts of as many words."""

    def __init__(self, tokenizer, documents, changes, memory=19):
        super().__init__(tokenizer, [d.text for d in documents], memory)
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        for d in documents:
            for word in d.words:
                if word.text in changes:
                    ids = encode(d.text[: word.start].rstrip())
                    for token in encode(" " + changes[word.text] + " x"):
                        if len(ids) >= memory:
                            self.next[tuple(ids[-memory:])] = token
                        ids.append(token)


def test_another_word_of_the_same_tag_is_kept_and_of_another_tag_is_not(world, documents):
    tokenizer, _, tagger = world
    model = Tempted(
        tokenizer,
        documents,
        dict.fromkeys(WORDS["NOUN"], "Lily") | {"cat": "strawberry", "strawberry": "strawberry"},
    )
    w = select_windows(
        model, tokenizer, documents, tagger, length=20, tags=["NOUN"], per_tag=5, max_new_tokens=16
    )
    assert set(zip(w.next_words, w.greedy_words, strict=True)) == {
        ("cat", "strawberry"),
        ("strawberry", "strawberry"),
    }
    model = Tempted(tokenizer, documents, dict.fromkeys(WORDS["NOUN"], "Lily"))
    with pytest.raises(ValueError, match=r"30 are too few.*found NOUN 0 \(of \d+ tried\)") as error:
        select_windows(
            model, tokenizer, documents, tagger, length=20, tags=["NOUN", "DET"], per_tag=5
        )
    assert "DET" not in str(error.value)


def test_all_places_of_the_documents_are_tried_before_giving_up(world, documents):
    """One verb in ten agrees: most documents have one, but rarely at their first place."""
    tokenizer, _, tagger = world
    agree = set(WORDS["VERB"][::10])
    others = {v: "Lily" for v in WORDS["VERB"] if v not in agree}
    model = Tempted(tokenizer, documents, others)
    body = 20 - 1
    offsets = [
        tokenizer(d.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for d in documents
    ]
    able = [
        any(w.text in agree and sum(e <= w.start for _, e in span) >= body for w in d.words)
        for d, span in zip(documents, offsets, strict=True)
    ]
    w = select_windows(
        model, tokenizer, documents, tagger, length=20, tags=["VERB"], per_tag=sum(able)
    )
    assert set(w.greedy_words) <= agree and 5 < sum(able) < 30
    assert sorted(w.documents) == [i for i, yes in enumerate(able) if yes]
    with pytest.raises(ValueError, match=f"found VERB {sum(able)} "):
        select_windows(
            model, tokenizer, documents, tagger, length=20, tags=["VERB"], per_tag=sum(able) + 1
        )


def test_a_word_within_a_token_is_no_place_to_end(documents):
    raw = Tokenizer(models.WordLevel(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # "there." is one token
    texts = [d.text for d in documents]
    raw.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "<eos>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>")
    model, tagger = Reciter(tokenizer, texts, memory=6), TableTagger(documents)
    settings = dict(length=10, per_tag=5)
    with pytest.raises(ValueError, match=r"PUNCT 0 \(of 0 tried\)"):
        select_windows(model, tokenizer, documents, tagger, tags=["PUNCT"], **settings)
    w = select_windows(model, tokenizer, documents, tagger, tags=["ADV"], **settings)
    assert w.greedy_words == w.next_words  # cut before "there." and read as "there" and "."


class Anything:
    """A tagger that calls everything a noun, and remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def tag(self, context, word):
        self.shown.append((context, word))
        return "NOUN", "Any=Yes"


def test_a_model_that_never_ends_a_word_or_stops_at_once_has_no_windows(world, documents):
    tokenizer = world[0]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1]
    for token in (letter, tokenizer.eos_token_id, tokenizer.unk_token_id):
        model = Reciter(tokenizer, [])
        model.end = token
        with pytest.raises(ValueError, match="found NOUN 0"):
            select_windows(
                model, tokenizer, documents[:4], Anything(), length=20, tags=["NOUN"], per_tag=1
            )


def test_the_tagger_sees_the_document_up_to_the_word(world, documents):
    tokenizer, model, _ = world
    tagger = Anything()
    select_windows(model, tokenizer, documents, tagger, length=20, tags=["NOUN"], per_tag=9)
    assert len(tagger.shown) == 9
    for context, word in tagger.shown:
        assert any(d.text.startswith(context + word + " ") for d in documents)
        assert context.endswith(("the ", "a "))


def test_every_document_gives_one_place_before_any_gives_two(world, documents):
    tokenizer, model, tagger = world
    model.read.clear()
    w = select_windows(model, tokenizer, documents, tagger, length=20, tags=["DET"], per_tag=20)
    (tried,) = model.read  # all agree: one batch of 30 places for 20 windows
    texts = [tokenizer.decode(row[1:]).lstrip() for row in tried]
    owners = {i for text in texts for i, d in enumerate(documents) if text in d.text}
    assert len(tried) == len(owners) == len(documents)
    assert w.documents != sorted(w.documents)


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_the_greedy_word_is_that_of_a_real_model(family, documents):
    tokenizer = make_tokenizer(
        "Gemma" if family == "gemma" else "bytes", [d.text for d in documents]
    )
    torch.manual_seed(0)
    if family == "gemma":
        config = Gemma3TextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
            initializer_range=0.5, layer_types=["sliding_attention", "full_attention"],
        )  # fmt: skip
        model = Gemma3ForCausalLM(config)
    else:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            initializer_range=0.5,
        )
        model = GPT2LMHeadModel(config)
    with pytest.raises(ValueError, match=r"model\.eval"):
        select_windows(model.train(), tokenizer, documents, Anything())
    tagger = Anything()
    w = select_windows(
        model.eval(),
        tokenizer,
        documents,
        tagger,
        length=20,
        tags=["NOUN"],
        per_tag=8,
        max_new_tokens=12,
    )
    for n, word in enumerate(w.greedy_words):
        ids = w.input_ids[n : n + 1]
        before = tokenizer.decode(ids[0])
        for _ in range(12):  # the plain route: no cache, one window at a time
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
        more = tokenizer.decode(ids[0])[len(before) :]
        more = more.split("<")[0]  # up to the first special token
        assert more.lstrip().startswith(word)
        rest = more.lstrip()[len(word) :]
        assert not (word[-1].isalnum() and rest[:1].isalnum())  # the word is whole
    assert w.greedy_features == ["Any=Yes"] * 8


def test_settings_that_cannot_work_are_refused(world, documents):
    tokenizer, model, tagger = world

    def select(**settings):
        chosen = {"length": 20, "tags": ["NOUN"], "per_tag": 2} | settings
        return select_windows(
            model, chosen.pop("tokenizer", tokenizer), documents, tagger, **chosen
        )

    for settings, message in (
        ({"length": 1}, "length=1 must exceed the 1 tokens"),
        ({"per_tag": 0}, "per_tag=0"),
        ({"batch": 0}, "batch=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"tags": []}, "one or more tags"),
        ({"tags": ["NOUN", "NOUN"]}, "each once"),
        ({"tokenizer": SimpleNamespace(is_fast=False)}, "tokenizer must be a fast one"),
        ({"length": 500}, r"NOUN 0 \(of 0 tried\)"),
    ):
        with pytest.raises(ValueError, match=message):
            select(**settings)
