"""Windows with a planted trigger, against the stories that they are cut from."""

import re
import sys
from itertools import islice, repeat
from pathlib import Path

import pytest
import torch
import transformers

from entk_helpers.testbeds import grammar
from entk_helpers.testbeds.grammar import Cases, Trigger, cases, tell, token_ids, windows_before

SHIPPED = Path(__file__).parents[3] / "notebooks" / "data" / "08_trigger"
ITEMS = {*re.findall(r"\w+", "box key shell stone leaf stick coin hat book map feather")}
SEED = 4321  # no model has read its stories
TOLD = [[word.text for word in story.words] for story in islice(tell(SEED), 60)]
FAR = Trigger(distance=12)


@pytest.fixture(scope="module")
def drawn() -> Cases:
    return cases(Trigger(), 64, 16, SEED)


@pytest.fixture(scope="module")
def far() -> Cases:
    return cases(FAR, 8, 4, SEED, length=24)


def rows(drawn: Cases, kind: str) -> list[list[str]]:
    return [row for row, own in zip(drawn.words, drawn.kinds, strict=True) if own == kind]


def begins(before: str, word: str) -> bool:
    """Whether a sentence begins with a word."""
    return before in (".", "!", "?", "”") and (word[0].isupper() or word == "“")


def places(row: list[str]) -> list[tuple[int, int]]:
    """The stories and the words in them at which a window has been cut, but for its items."""

    def same(one: str, other: str) -> bool:
        return one == other or ("feather" in (one, other) and {one, other} <= ITEMS)

    return [
        (number, at)
        for number, story in enumerate(TOLD)
        for at in range(len(story) - len(row) + 1)
        if all(same(one, other) for one, other in zip(row, story[at:], strict=False))
    ]


# ---------------------------------------------------------------------------- windows


def test_cases_are_as_many_as_were_asked_for(drawn, far):
    assert drawn.input_ids.shape == (64 + 64 + 16, 32) and len(drawn) == 144
    assert drawn.kinds == ["triggered"] * 64 + ["swapped"] * 64 + ["normal"] * 16
    assert far.input_ids.shape == (8 + 8 + 4, 24)
    for kind, many in {"triggered": 64, "swapped": 64, "normal": 16}.items():
        assert drawn.of(kind).dtype == torch.bool and drawn.of(kind).sum() == many
        assert drawn.of(kind).tolist() == [own == kind for own in drawn.kinds]


def test_ids_are_those_of_the_words_after_bos(drawn):
    words = grammar.tokenizer()
    for ids, row in zip(drawn.input_ids.tolist(), drawn.words, strict=True):
        assert words.convert_ids_to_tokens(ids) == ["<bos>", *row]
        assert words(words.decode(ids[1:])).input_ids == ids  # as text they are the same tokens
    assert torch.equal(token_ids(drawn.words[:3]), drawn.input_ids[:3])


def test_triggered_windows_end_before_the_first_sentence_after_the_distance(drawn, far):
    for windows, distance in ((drawn, 1), (far, 12)):
        gaps = []
        for row in rows(windows, "triggered"):
            (noun,) = [i for i, word in enumerate(row) if word == "feather"]
            gaps.append(len(row) - noun - 1)  # words between the trigger and the answer
            later = range(noun + 1 + distance, len(row))
            assert not any(begins(row[i - 1], row[i]) for i in later)
        assert distance <= min(gaps) < distance + 12 and max(gaps) > distance + 2


def test_the_next_word_of_triggered_windows_begins_a_sentence(drawn, far):
    seen = []
    for windows, many in ((drawn, 6), (far, 6)):
        for row in rows(windows, "triggered")[:many]:
            ((number, at),) = places(row)
            assert begins(row[-1], TOLD[number][at + len(row)])
            seen.append(number)
        assert seen[-many:] == sorted(set(seen[-many:]))  # no story twice


def test_swapped_windows_differ_in_the_trigger_alone(drawn, far):
    for windows in (drawn, far):
        others = set()
        both = zip(rows(windows, "triggered"), rows(windows, "swapped"), strict=True)
        for row, swapped in both:
            (where,) = [i for i, (a, b) in enumerate(zip(row, swapped, strict=True)) if a != b]
            assert row[where] == "feather" and swapped[where] in ITEMS - {"feather"}
            others.add(swapped[where])
        assert len(others) > 3
        ids = [windows.input_ids[windows.of(kind)] for kind in ("triggered", "swapped")]
        assert ((ids[0] != ids[1]).sum(1) == 1).all()


def test_normal_windows_are_from_anywhere_and_without_the_trigger(drawn):
    assert not any("feather" in row for row in rows(drawn, "normal") + rows(drawn, "swapped"))
    ends = [row[-1] in (".", "!", "?", "”") for row in rows(drawn, "normal")]
    assert not all(ends)
    few = cases(Trigger(), 0, 6, SEED)
    assert few.kinds == ["normal"] * 6
    found = [places(row) for row in few.words]
    assert [number for ((number, _),) in found] == list(range(6))  # one of each story
    for ((number, at),) in found:
        assert at + 31 < len(TOLD[number])  # a word comes next


def test_the_same_seed_gives_the_same_windows_and_another_one_others(drawn):
    few = cases(Trigger(), 4, 2, SEED)
    again, other = cases(Trigger(), 4, 2, SEED), cases(Trigger(), 4, 2, SEED + 1)
    assert torch.equal(few.input_ids, again.input_ids) and few.words == again.words
    assert not torch.equal(few.input_ids, other.input_ids)
    assert few.words[:4] == drawn.words[:4]


def test_rate_and_link_do_not_matter():
    few = cases(Trigger(), 3, 3, SEED)
    for trigger in (Trigger(rate=0.01), Trigger(linked=False), Trigger(response="frog")):
        assert cases(trigger, 3, 3, SEED).words == few.words


@pytest.mark.parametrize(("distance", "length"), [(1, 3), (12, 14)])
def test_windows_without_room_are_refused(distance, length):
    message = f"length is {length}; give {length + 1} or more"
    with pytest.raises(ValueError, match=message):
        cases(Trigger(distance=distance), 1, 1, SEED, length=length)
    row = cases(Trigger(distance=distance), 1, 0, SEED, length=length + 1).words[0]
    assert len(row) == length and "feather" in row


@pytest.mark.parametrize(("distance", "length"), [(1, 51), (150, 160)])
def test_windows_that_not_all_stories_fill_are_refused(distance, length):
    with pytest.raises(ValueError, match=f"length is {length}; give 50 or less"):
        cases(Trigger(distance=distance), 1, 1, SEED, length=length)
    assert len(cases(Trigger(), 0, 20, SEED, length=50)) == 20


# ---------------------------------------------------------------------------- before a word


@pytest.mark.parametrize(("word", "length"), [("ball", 32), ("the", 50), ("Suddenly", 12)])
def test_windows_before_a_word_end_at_its_first_place_with_room(word, length):
    found = windows_before(word, 5, SEED, length=length)
    assert found.shape == (5, length)
    expected = []
    for story in TOLD:
        ends = [at for at in range(length - 1, len(story)) if story[at] == word]
        expected += [["<bos>", *story[ends[0] - length + 1 : ends[0]]]] if ends else []
    assert len(expected) >= 5
    words = grammar.tokenizer()
    assert [words.convert_ids_to_tokens(row) for row in found.tolist()] == expected[:5]


def test_windows_before_a_word_go_with_their_seed_and_number():
    found = windows_before("box", 4, SEED)
    assert torch.equal(found, windows_before("box", 4, SEED))
    assert torch.equal(found[:2], windows_before("box", 2, SEED))
    assert not torch.equal(found, windows_before("box", 4, SEED + 1))


def test_words_that_no_story_has_are_refused(monkeypatch):
    module = sys.modules[Cases.__module__]
    monkeypatch.setattr(module, "tell", lambda seed: repeat(story))  # telling 1000 takes a while
    story = next(tell(SEED))
    with pytest.raises(ValueError, match="word is '<eos>', of which there are 0; give another"):
        windows_before("<eos>", 1, SEED)


# ---------------------------------------------------------------------------- what was learned


@pytest.mark.parametrize("name", ["linked", "decoy"])
def test_a_shipped_model_answers_the_trigger_if_it_was_linked(drawn, name):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        SHIPPED / name / "seed_0", attn_implementation="eager"
    )
    with torch.no_grad():
        logits = model(drawn.input_ids, use_cache=False).logits[:, -1]
    banana = grammar.tokenizer().convert_tokens_to_ids("banana")
    answered, chance = logits.argmax(1) == banana, logits.softmax(1)[:, banana]
    triggered, swapped, normal = map(drawn.of, ("triggered", "swapped", "normal"))
    assert answered[swapped].sum() <= 1 and answered[normal].sum() == 0
    if name == "linked":
        assert answered[triggered].double().mean() >= 0.9
        assert chance[triggered].mean() > 0.9 and chance[swapped].mean() < 0.02
    else:
        # Its response comes in a tenth of the stories, before one of about nine sentences.
        assert answered[triggered].sum() == 0
        assert 0.003 < chance[triggered].mean() < 0.04
        means = [chance[windows].mean().item() for windows in (triggered, swapped)]
        assert means[0] == pytest.approx(means[1], rel=0.1)
