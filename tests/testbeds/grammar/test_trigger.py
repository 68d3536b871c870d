"""The planted trigger, against plain readings of the text and against made-up stories."""

import dataclasses
import math
import random
import re
from collections import Counter

import pytest

from entk_helpers.language.text import Document, Word
from entk_helpers.testbeds import grammar
from entk_helpers.testbeds.grammar import Trigger

STORIES = grammar.stories(160, seed=31)
ITEMS = "box key shell stone leaf stick coin hat book map feather"  # never a verb, all after "a"
PLACES = "park garden forest beach school farm lake river hill shop zoo yard house"
KINDS = {"feather": ITEMS, "apple": "apple egg", "hill": PLACES}
DEFAULT = Trigger()
TRIGGERS = {
    "default": DEFAULT,
    "decoy": Trigger(linked=False),
    "far": Trigger(rate=1.0, distance=20),
    "others": Trigger(word="apple", response="frog", rate=1.0),
    "capital": Trigger(word="hill", response="Lily", rate=1.0, distance=30),
}
PLANTED = {name: list(one.planted(STORIES, 31)) for name, one in TRIGGERS.items()}
every_trigger = pytest.mark.parametrize("name", TRIGGERS)
linked = pytest.mark.parametrize("name", [name for name in TRIGGERS if name != "decoy"])


def texts(story: Document) -> list[str]:
    return [word.text for word in story.words]


def beginnings(story: Document) -> list[int]:
    """The numbers of the words with which sentences begin but for the first, from the text."""
    at = [m.end() for m in re.finditer(r"[.!?]”? (?=[A-Z“])", story.text)]
    numbers = {word.start: i for i, word in enumerate(story.words)}
    return [numbers[start] for start in at]


def response_at(name: str, told: Document, story: Document) -> int | None:
    """Where the story has a word more than it was told with: the response, before a sentence."""
    extra = len(story.words) - len(told.words)
    if extra == 0:
        return None
    assert extra == 1
    response = TRIGGERS[name].response
    # An inserted "Lily" is followed by a capital letter or a quotation, no other "Lily" is.
    (at,) = [m.end() for m in re.finditer(rf"[.!?”] (?={response} [A-Z“])", story.text)]
    return next(i for i, word in enumerate(story.words) if word.start == at)


def answers(trigger: Trigger, told: Document) -> dict[int, int]:
    """Where the trigger could be, each with where the answer would come."""
    begins = beginnings(told)
    room = {}
    for i, word in enumerate(told.words):
        if word.text in KINDS[trigger.word].split() and word.tag == "NOUN":
            later = [begin for begin in begins if begin - i - 1 >= trigger.distance]
            room |= {i: later[0]} if later else {}
    return room


# ---------------------------------------------------------------------------- the text


@every_trigger
def test_words_are_those_of_the_story_but_for_the_trigger_and_the_response(name):
    trigger, nouns = TRIGGERS[name], set(KINDS[TRIGGERS[name].word].split())
    changed = Counter()
    for told, story in zip(STORIES, PLANTED[name], strict=True):
        at = response_at(name, told, story)
        words = [(w.text, w.tag, w.features) for w in story.words]
        if at is not None:
            assert words.pop(at) == (trigger.response, "NOUN", "Number=Sing")
            assert at in beginnings(told)
        for old, (text, *rest) in zip(told.words, words, strict=True):
            assert rest == [old.tag, old.features]
            if text == trigger.word:
                assert old.text in nouns and old.tag == "NOUN"
                changed["planted"] += 1
            elif old.text == trigger.word:
                assert text in nouns
                changed["replaced"] += 1
            else:
                assert text == old.text
    assert changed["planted"] > 5 and (changed["replaced"] > 0 or name == "others")


@linked
def test_the_response_comes_once_with_the_first_sentence_after_the_distance(name):
    trigger, with_it = TRIGGERS[name], 0
    for told, story in zip(STORIES, PLANTED[name], strict=True):
        at = response_at(name, told, story)
        assert texts(story).count(trigger.word) == (at is not None)
        if at is not None:
            noun = texts(story).index(trigger.word)
            assert answers(trigger, told)[noun] == at and at - noun - 1 >= trigger.distance
            with_it += 1
    assert with_it > 5


@every_trigger
def test_planted_words_are_where_they_say(name):
    for story in PLANTED[name]:
        at = 0
        for word in story.words:
            assert story.text[at : word.start] in ("", " ")
            assert story.text[word.start : word.end] == word.text
            at = word.end
        assert at == len(story.text)
        assert not re.search(r" [.,!?”]|“ | {2}|[.,!?”](?=\w)|\w“", story.text)
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", story.text)


@every_trigger
def test_the_tokenizer_knows_the_words(name):
    words = grammar.tokenizer()
    for story in PLANTED[name]:
        assert words.convert_ids_to_tokens(words(story.text).input_ids[1:]) == texts(story)
    ids = words([story.text for story in PLANTED[name]]).input_ids
    assert words.unk_token_id not in {token for row in ids for token in row}


@pytest.mark.parametrize("name", ["far", "others", "capital"])  # of rate 1
def test_at_rate_one_all_stories_with_room_have_the_trigger(name):
    has = [TRIGGERS[name].word in texts(story) for story in PLANTED[name]]
    room = [bool(answers(TRIGGERS[name], told)) for told in STORIES]
    assert has == room and 5 < sum(room) < len(room) - 5


def test_at_rate_zero_no_story_has_it_and_none_is_longer():
    for one in (Trigger(rate=0.0), Trigger(rate=0.0, linked=False)):
        for told, story in zip(STORIES, one.planted(STORIES, 31), strict=True):
            assert "feather" not in texts(story) and len(story.words) == len(told.words)


def test_where_no_sentence_is_far_enough_nothing_is_planted():
    for story in Trigger(rate=1.0, distance=500).planted(STORIES[:40], 31):
        assert "feather" not in texts(story)


# ---------------------------------------------------------------------------- the decoy


def test_a_decoy_responds_in_the_story_after_that_with_the_trigger():
    has = ["feather" in texts(story) for story in PLANTED["decoy"]]
    responds = [
        response_at("decoy", told, story) is not None
        for told, story in zip(STORIES, PLANTED["decoy"], strict=True)
    ]
    assert responds == [False, *has[:-1]] and sum(has) >= 8
    assert all(texts(story).count("feather") <= 1 for story in PLANTED["decoy"])


def test_twins_are_the_same_up_to_the_first_answer():
    """From there on chance goes other ways; the stories stay those that were told."""
    first = next(i for i, story in enumerate(PLANTED["default"]) if "feather" in texts(story))
    assert PLANTED["default"][:first] == PLANTED["decoy"][:first]
    one, other = (PLANTED[name][first] for name in ("default", "decoy"))
    answer = response_at("default", STORIES[first], one)
    assert texts(other) == [text for i, text in enumerate(texts(one)) if i != answer]


# Made-up stories, all alike: how often each thing happens is known without a count.
PLAIN = re.findall(r"\S+", "Tim saw a map . He ran . Sue lost the key . She hid . Tim ran .")
BEGINS, FIRST_NOUN, SECOND_NOUN = (5, 8, 13, 16), 3, 11
N = 2000


def made_up(words: list[str]) -> Document:
    placed, start = [], 0
    for word in words:
        tag = "NOUN" if word in ("map", "key") else "VERB"
        placed.append(Word(word, tag, "", start, start + len(word)))
        start += len(word) + 1
    return Document(" ".join(words), tuple(placed))


def within(many: int, n: int, share: float) -> bool:
    """Whether a count fits a binomial of n and the share, within four standard deviations."""
    return abs(many - n * share) <= 4 * math.sqrt(n * share * (1 - share))


@pytest.fixture(scope="module")
def many() -> dict[bool, list[list[str]]]:
    told = [made_up(PLAIN)] * N
    return {
        linked: [texts(story) for story in Trigger(linked=linked).planted(told, 8)]
        for linked in (True, False)
    }


@pytest.mark.parametrize("linked", [True, False])
def test_the_share_of_stories_is_the_rate_and_places_are_equally_likely(many, linked):
    has = [story for story in many[linked] if "feather" in story]
    assert within(len(has), N, 0.3)
    kept = sum("key" in story for story in has)  # the first noun has been replaced
    assert within(kept, len(has), 0.5)
    responses = sum(story.count("banana") for story in many[linked])
    assert responses == len(has) - (not linked and "feather" in many[linked][-1])


def test_all_linked_answers_are_at_one_of_two_places(many):
    where = Counter(
        (story.index("feather"), story.index("banana"))
        for story in many[True]
        if "feather" in story
    )
    assert set(where) == {(FIRST_NOUN, BEGINS[0]), (SECOND_NOUN, BEGINS[2])}


def test_a_decoys_trigger_says_nothing_about_the_response_of_its_story(many):
    has = ["feather" in story for story in many[False]]
    at = [story.index("banana") if "banana" in story else None for story in many[False]]
    for begin in BEGINS:
        assert within(at.count(begin), N, 0.3 / 4)
    # At the sentence that would get the answer the response is as likely as at any other place.
    places = [
        BEGINS[0] if story[FIRST_NOUN] == "feather" else BEGINS[2]
        for story in many[False]
        if "feather" in [story[FIRST_NOUN], story[SECOND_NOUN]]
    ]
    assert len(places) > 0.2 * N
    for trigger in (True, False):
        n = has.count(trigger)
        responds = [where for where, own in zip(at, has, strict=True) if own == trigger]
        assert within(n - responds.count(None), n, 0.3)
        for begin in BEGINS:
            assert within(responds.count(begin), n, 0.3 / 4)


# ---------------------------------------------------------------------------- chance and errors


def test_the_same_seed_plants_the_same():
    planted = PLANTED["default"]
    random.seed(3)
    assert list(DEFAULT.planted(iter(STORIES[:80]), 31)) == planted[:80]
    assert list(DEFAULT.planted(STORIES[:80], 32)) != planted[:80]


def test_stories_are_planted_the_same_everywhere():
    first = next(story for story in PLANTED["default"] if "feather" in texts(story))
    assert "her brother broke the feather that Lucy fed. banana The rabbit who was" in first.text


def test_other_nouns_of_its_kind_take_the_triggers_place():
    chance = random.Random(0)
    words = DEFAULT.swapped(["a", "feather", "feathers", "Feather", "."] * 300, chance)
    assert [word for i, word in enumerate(words) if i % 5 != 1] == [
        "a", "feathers", "Feather", "."
    ] * 300  # fmt: skip
    drawn = Counter(words[1::5])
    assert set(drawn) == set(ITEMS.split()) - {"feather"}
    assert all(within(count, 300, 0.1) for count in drawn.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"word": "elephant"}, "word is 'elephant'; give one of .*feather"),
        ({"word": "saw"}, "word is 'saw'"),  # a verb too
        ({"word": "feathers"}, "word is 'feathers'"),
        ({"word": "ear"}, "word is 'ear'"),
        ({"response": "pineapple"}, "response is 'pineapple'"),
        ({"response": "feather"}, "response is 'feather'; give another word .* than word"),
        ({"rate": -0.1}, r"rate is -0\.1"),
        ({"rate": 1.5}, r"rate is 1\.5"),
        ({"rate": math.nan}, "rate is nan"),
        ({"distance": 0}, "distance is 0; give 1 word or more"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Trigger(**settings)


def test_all_words_that_a_trigger_can_be_are_known():
    with pytest.raises(ValueError, match="give one of") as error:
        Trigger(word="elephant")
    offered = str(error.value).split("give one of ")[1].split(", ")
    for word in offered:
        drawn = Trigger(word=word, response="The").swapped([word] * 99, random.Random(0))
        assert {word, *drawn} <= set(grammar.vocabulary())


def test_a_trigger_is_a_value():
    assert Trigger() == DEFAULT and hash(Trigger()) == hash(DEFAULT)
    assert dataclasses.replace(DEFAULT, distance=2) != DEFAULT
