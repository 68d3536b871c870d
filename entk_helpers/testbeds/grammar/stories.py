"""Short stories for children from a grammar: each word comes with its tag and its features.

The page has three parts: the words, the rules, and the engine that draws a story from them.
Tags and features are those of Universal Dependencies. A tag follows from the words to the left,
also where a word has several: *to walk*, *a walk*; *he saw*, *the saw*.

Three things make the stories harder to foresee than their grammar, as in real text. Each story
has a cast, and pronouns agree with it; each story has favourites among the words of every kind;
and a verb decides what may follow it.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

from ...language.text import Document, Word
from ..checks import check

# ---------------------------------------------------------------------------- the words
# Open classes, by what a rule asks for. A noun has its plural behind a slash, where it has one
# that is used; a verb whose forms are not regular is spelled out below.

NAMES = {
    "Fem": "Lily Mia Anna Sue Emma Lucy Sara Zoe Amy Nina Rosie Molly",
    "Masc": "Tim Tom Max Ben Sam Jack Leo Bob Finn Joe Billy Dan",
}

NOUNS = {
    "toy": "ball/balls doll/dolls car/cars kite/kites boat/boats robot/robots drum/drums puzzle/puzzles train/trains "
    "bike/bikes",
    "animal": "dog/dogs cat/cats bird/birds rabbit/rabbits frog/frogs duck/ducks horse/horses "
    "bear/bears fox/foxes mouse/mice fly/flies",
    "pet": "puppy kitten dog cat rabbit",
    "food": "apple/apples cookie/cookies cake/cakes carrot/carrots egg/eggs sandwich/sandwiches "
    "pie/pies banana/bananas",
    "liquid": "water milk juice soup honey tea paint",
    "place": "park garden forest beach school farm lake river hill shop zoo yard well house",
    "item": "box/boxes key/keys shell/shells stone/stones leaf/leaves stick/sticks coin/coins "
    "hat/hats book/books saw/saws watch/watches light/lights feather/feathers map/maps",
    "green": "flower/flowers plant/plants tree/trees rose/roses seed/seeds",
    "spot": "table bed tree chair bush bridge fence",
    "person": "girl/girls boy/boys man/men woman/women farmer/farmers teacher/teachers "
    "cook/cooks neighbor/neighbors",
    "family": "mom dad brother sister grandma",
    "part": "back nose head arm knee",
    "limb": "hand foot leg",
    "turn": "walk run ride swim rest look drink jump",
    "hug": "hug kiss smile",
    "game": "play race dream dance party talk",
    "time": "day morning night",
    "weather": "rain wind snow storm",
}

ADJECTIVES = {
    "big": "big small little red blue old new shiny pretty soft funny brown white black loud fast "
    "hard kind",
    "mood": "happy sad tired scared excited proud angry hungry brave kind surprised",
    "state": "cold light open clean dry ready fast",
}

ADVERBS = {
    "gladly": "quickly slowly happily quietly softly loudly carefully gently proudly bravely fast "
    "hard well",
    "away": "away back home inside outside",
    "up": "up down around",
    "often": "always never often soon quickly slowly suddenly",
    "then": "then later suddenly soon finally today",
    "so": "very so too really",
    "here": "again nearby outside today there",
}

VERBS = {
    "go": "go run walk hurry swim fly ride race",  # to a place
    "come": "come go run hurry",  # away, back
    "look": "look jump turn",  # up, around
    "laugh": "laugh smile cry sing dance sleep rest jump shout dream",  # in some way
    "play": "play dance hide talk walk",  # with somebody
    "eat": "eat cook share taste smell like love",  # food
    "drink": "drink pour spill want",  # a liquid
    "hold": "hold take find lose carry drop hide fix break clean open leave paint",  # a thing
    "kick": "kick throw push pull catch",  # a toy
    "see": "see watch hear feed chase follow",  # an animal
    "help": "help hug kiss thank meet visit call",  # a person
    "give": "give show bring send",  # a thing to a person
    "grow": "water plant pick dry",  # flowers
    "want": "want try like love need start decide",  # to do something
    "think": "think know hope say wish",  # that something is so
    "tell": "say shout whisper cry",  # in quotes
    "ask": "ask say shout",
    "seem": "seem look feel",
    "climb": "climb crawl hop",
    "have": "have",
    "take": "take",
    "hurt": "hurt",
    "love": "love",
    "need": "need",
    "pass": "start stop come",
    "like": "want like love need hope",
}  # fmt: skip

# Third person, past and -ing of the verbs that are not regular.
IRREGULAR = """
    break breaks broke breaking, bring brings brought bringing, catch catches caught catching,
    come comes came coming, drink drinks drank drinking, drop drops dropped dropping,
    eat eats ate eating, feed feeds fed feeding, feel feels felt feeling, find finds found finding,
    fly flies flew flying, give gives gave giving, go goes went going, have has had having,
    hear hears heard hearing, hide hides hid hiding, hold holds held holding,
    hop hops hopped hopping,
    hug hugs hugged hugging, hurt hurts hurt hurting, know knows knew knowing,
    leave leaves left leaving, lose loses lost losing, meet meets met meeting,
    ride rides rode riding, run runs ran running, say says said saying, see sees saw seeing,
    send sends sent sending, sing sings sang singing,
    sleep sleeps slept sleeping, stop stops stopped stopping, swim swims swam swimming,
    take takes took taking, think thinks thought thinking, throw throws threw throwing"""

# Auxiliaries: base; present with I, you, she, we; past with I, you, she, we; "there was" is a verb.
AUXILIARIES = {
    "be": "AUX be am are is are was were was were",
    "do": "AUX do do do does do did did did did",
    "can": "AUX can can can can can could could could could",
    "will": "AUX will will will will will would would would would",
    "exist": "VERB be am are is are was were was were",
}

# Closed classes. Rules name a word that has several tags with one of them: that/SCONJ.
CLOSED = {
    "DET Definite=Def|PronType=Art": "the",
    "DET Definite=Ind|PronType=Art": "a an",
    "DET Number=Sing|PronType=Dem": "this that",
    "DET Number=Plur|PronType=Dem": "these",
    "DET PronType=Ind": "some another",
    "DET PronType=Tot": "every all",
    "NUM NumForm=Word|NumType=Card": "one two three",
    "PRON Number=Sing|PronType=Dem": "this",
    "PRON Number=Sing|PronType=Tot": "everyone",
    "PRON Number=Sing|PronType=Ind": "something",
    "PRON PronType=Int": "what",
    "PRON PronType=Rel": "that who",
    "PRON": "there",
    "ADP": "to at with under near of like around up down upon",
    "PART": "to",
    "PART Polarity=Neg": "not",
    "CCONJ": "and but or",
    "SCONJ": "that because when while",
    "ADV": "once home",
    "ADV PronType=Int": "where",
    "NOUN Number=Sing": "time fun help kind end cold",
    "ADJ Degree=Pos": "left",
    "VERB Tense=Past|VerbForm=Part": "named",
    "PUNCT": ". , ! ? “ ”",
}

# Whom a pronoun stands for; the subject of a verb is known by the same names.
STANDS_FOR = (
    "1 Sing", "2 Sing", "3 Sing Masc", "3 Sing Fem", "3 Sing Neut", "1 Plur", "3 Plur",
)  # fmt: skip
PRONOUNS = {
    "he": ("Case=Nom", "I you he she it we they"),
    "him": ("Case=Acc", "me you him her it us them"),
    "his": ("Case=Gen|Poss=Yes", "my your his her its our their"),
}

# ---------------------------------------------------------------------------- the rules
# Capitals are symbols, <toy> draws a word of that kind, and all else is itself. A number is an
# alternative's weight. The mark ! is on a subject: verbs and possessives from there on agree with
# it, and so do those before the first. @past and @pres set the tense of all that is below; @inf
# and @imp ask for other forms of the verb (*to go*, *go!*). <hero>, <friend> and <other> are names;
# <he> stands for the hero, <him> for somebody other than the subject, <his> for the subject.

RULES = {
    "OPENING": """
        3 once upon a time , there/PRON <exist> a LOOK <child>! named <hero> .
        2 one <time> , <hero>! VP .
        2 one <time> , BOTH! VP1 .
        2 <hero>! <be> a LOOK <child> . <he>! <love> to/PART VP1@inf .
        1 every <time> , <hero>! VP1 .""",
    "SENTENCE": """
        6 START! VP .
        2 <then> , START! VP .
        3 START! VP , and MID! VP .
        2 START! VP , but MID! VP .
        1 when MID! VP1 , NAMED! VP1 .
        1 START! VP1 because MID! WAS .
        1 START! VP1 while MID! WAS .
        1 the <weather>! <pass> , and MID! VP .
        4 QUOTED""",
    "QUOTED": """
        3 “ SPEECH@pres , ” <tell> NAMED! .
        2 “ SPEECH@pres ! ” <tell> NAMED! .
        2 NAMED! <tell> , “ SPEECH@pres . ”
        2 “ QUESTION@pres ? ” <ask> NAMED! .
        1 NAMED! <ask> , “ QUESTION@pres ? ”""",
    "ENDING": """
        2 they! <be> <so> <mood> .
        2 BOTH! <go> home/ADV .
        1 everyone! <be> <mood> .
        1 it! <be> a LOOK <time> .
        1 the end .""",
    # Somebody: at the start of a sentence, later in it, where no plural may be, as an object.
    "START": """
        10 <hero>
        3 <he>
        3 <friend>
        2 BOTH
        1 they
        2 CREATURE
        1 <his> <family>""",
    "MID": """
        5 <he>
        2 they
        1 it
        1 <friend>
        1 CREATURE
        1 <his> <family>
        1 <his> <pet>""",
    "NAMED": """
        4 <hero>
        3 <friend>
        2 <his> <family>
        1 <he>
        1 the LOOK <animal>""",
    "BOTH": "1 <hero> and <friend>",
    "OTHER": """
        3 <other>
        4 <him>
        2 <his> <family>
        1 a LOOK <person>
        1 some <person.plural>""",
    "CREATURE": """
        4 the LOOK <animal>
        1 the <animal>! who <be> <mood>
        2 the <animal.plural>
        1 all the <animal.plural>
        1 two <person.plural>
        1 a LOOK <person>""",
    # What somebody does or is.
    "VP": """
        10 VP1
        3 VP1 and VP1
        2 <often> VP1
        3 <want> to/PART VP1@inf
        2 <do> not VP1@inf
        1 <can> VP1@inf
        2 WAS
        2 <think> that/SCONJ THOUGHT""",
    "THOUGHT": """
        1 MID! WAS
        1 MID! <can> VP1@inf""",
    "VP1": """
        3 <go> to/ADP the <place>
        1 <go> around/ADP the <place>
        1 <climb> up/ADP the <spot>
        1 <climb> down/ADP the <spot>
        4 <come> <away>
        2 <look> <up>
        4 <laugh> <gladly>
        1 <laugh> like/ADP a <animal>
        2 <play> with OTHER
        1 <play> at the <place>
        2 <play> with <his> <toy>
        3 <eat> FOOD
        2 <drink> some <liquid>
        3 <hold> THING
        2 <kick> <his> LOOK <toy>
        3 <see> BEAST
        2 <help> OTHER
        2 <give> THING to/ADP OTHER
        1 <give> OTHER a <hug>
        2 <grow> the LOOK <green.plural>
        1 <take> a <turn>
        1 <have> HAD
        1 <hurt> <his> HURT""",
    "WAS": """
        4 <be> <mood>
        2 <be> <so> <mood>
        1 <be> <mood> and <mood>
        1 <be> <state> or <state>
        1 <be> <so> <state>
        2 <seem> <mood>
        3 <be> <laugh.ing> <here>
        2 <be> <play.ing> with OTHER
        1 <be> <hold.ing> THING
        1 <be> at the <place>""",
    # Things.
    "LOOK": """
        5
        4 <big>""",
    "FOOD": """
        2 a <food>
        3 some <food.plural>
        1 the LOOK <food>
        2 two <food.plural>""",
    "THING": """
        3 the LOOK <item>
        2 a LOOK <item>
        2 some <item.plural>
        1 these LOOK <item.plural>
        1 another <item>
        2 <his> LOOK <toy>
        1 <his> <toy.plural>
        1 a LOOK <toy>
        1 the <item> under the <spot>
        1 the <item> that/PRON OWNED@past
        1 three LOOK <item.plural>
        1 some kind/NOUN of <liquid>""",
    "OWNED": """
        1 <he>! <hold>
        1 <hero>! <see>
        1 <friend>! <hold>""",
    "BEAST": """
        3 the LOOK <animal>
        2 a LOOK <animal>
        2 some <animal.plural>
        1 the LOOK <animal.plural>
        1 the <animal> near the <spot>
        1 something""",
    "HAD": """
        2 a <game> with OTHER
        1 fun
        1 a cold/NOUN""",
    "HURT": """
        1 <part>
        1 left/ADJ <limb>""",
    # What people say.
    "SPEECH": """
        4 I! VP
        3 we! VP
        2 you! VP
        2 I! <like> to/PART VP1@inf
        2 I! <will> VP1@inf
        1 I! <love> this/DET <item>
        1 I! <want> that/DET <toy>
        1 this/PRON! <be> a LOOK <toy>
        3 VP1@imp
        1 <hero>! <be> my <family>
        1 I! <need> help/NOUN
        1 it! WAS""",
    "QUESTION": """
        3 <do> you! <like> to/PART VP1@inf
        2 <can> we! VP1@inf
        2 where <be> my <toy>!
        1 <be> you! <mood>
        1 what! <be> under the <spot>
        1 <will> you! VP1@inf
        1 <do> you! <love> these <item.plural>""",
}

# ---------------------------------------------------------------------------- the engine

LENGTHS = (50, 110)  # a story goes on until it has a number of words, drawn from this range
PRESENT = 0.15  # the share of stories that are told in the present tense
LOYALTY = 0.7  # how often a word is one of the story's two favourites of its kind


class Form(NamedTuple):
    """A word as it may stand in a text."""

    text: str
    tag: str
    features: str


class Step(NamedTuple):
    """A part of an alternative: a symbol, a <kind> or a word, with what is written on it."""

    symbol: str
    kind: str
    form: str  # plural or ing, where a rule asks for it
    word: Form | None
    marked: bool  # with !
    mood: str  # after @


class Scope(NamedTuple):
    """What a part of a sentence knows of the parts around it."""

    subject: str  # one of STANDS_FOR
    who: str  # hero, friend, or another
    verb: str  # past, pres, inf or imp


def stories(n: int, seed: int) -> list[Document]:
    """Draw stories of 50 words or more; the same ones for the same seed on every machine.

    Fewer stories are the first of many. Raises ValueError for a negative n.

    Examples:
        >>> (story,) = stories(1, seed=0)
        >>> story.text[:60]
        'Once upon a time, there was a new girl named Rosie. She dran'
        >>> [(word.text, word.tag) for word in story.words[:4]]
        [('Once', 'ADV'), ('upon', 'ADP'), ('a', 'DET'), ('time', 'NOUN')]
    """
    check(n >= 0, f"n is {n}; give the number of stories")
    return list(islice(tell(seed), n))


def tell(seed: int) -> Iterator[Document]:
    """Stories without end: `stories(n, seed)` are the first n.

    Examples:
        >>> next(tell(seed=0)) == stories(1, seed=0)[0]
        True
    """
    chance = random.Random(f"stories {seed}")
    while True:
        yield _document(_Teller(chance).story())


def vocabulary() -> list[str]:
    """All words that stories can hold, in alphabetical order.

    Examples:
        >>> words = vocabulary()
        >>> words == sorted(words), "banana" in words, "transformer" in words
        (True, True, False)
    """
    words, kinds = set(), {step for step in _steps() if step.kind}
    words |= {step.word.text for step in _steps() if step.word} | {"an"}
    for step in kinds:
        words |= _forms_of(step)
    return sorted(words | {_capital(word) for word in _openers()})


class _Teller:
    """Draws the sentences of one story."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        names = [(name, gender) for gender, some in NAMES.items() for name in some.split()]
        self.cast = dict(zip(("hero", "friend", "third"), chance.sample(names, 3), strict=True))
        self.tense = "pres" if chance.random() < PRESENT else "past"
        self.favourites: dict[str, list[dict[str, Form]]] = {}

    def story(self) -> list[Form]:
        """The words from the beginning to the end."""
        length = self.chance.randint(*LENGTHS)
        words = self.sentence("OPENING")
        while len(words) < length:
            words += self.sentence("SENTENCE")
        return words + self.sentence("ENDING")

    def sentence(self, symbol: str) -> list[Form]:
        """A sentence, or two, with capitals, and with *an* before vowels."""
        words: list[Form] = []
        self.expand(symbol, Scope(self.person("hero"), "hero", self.tense), words)
        for i, word in enumerate(words):
            if word.text == "a" and words[i + 1].text[0] in "aeiou":
                words[i] = word._replace(text="an")
            if i == 0 or words[i - 1].text in (".", "“"):
                words[i] = words[i]._replace(text=_capital(words[i].text))
        return words

    def expand(self, symbol: str, scope: Scope, words: list[Form]) -> tuple[str, str]:
        """Append the words of a symbol; return for whom they stand, as in `Scope`."""
        weights, alternatives = _RULES[symbol]
        steps = alternatives[bisect(weights, self.chance.random() * weights[-1])]
        subjects: list[tuple[tuple[str, str], list[Form]]] = []
        for step in steps:  # before the rest, as a verb before its subject agrees with it too
            if step.marked:
                own: list[Form] = []
                subjects.append((self.step(step, scope, own), own))
        if subjects:
            scope = Scope(*subjects[0][0], scope.verb)
        drawn = iter(subjects)
        last = "", ""
        for step in steps:
            if step.marked:
                subject, own = next(drawn)
                scope = Scope(*subject, scope.verb)
                words += own
            else:
                last = self.step(step, scope, words)
        if symbol == "BOTH":
            return "3 Plur", "both"
        return (scope.subject, scope.who) if subjects else last

    def step(self, step: Step, scope: Scope, words: list[Form]) -> tuple[str, str]:
        """Append the words of one part; return for whom they stand."""
        if step.mood:
            scope = scope._replace(verb=step.mood)
            if step.mood == "imp":
                scope = scope._replace(subject="2 Sing", who="you")
        if step.symbol:
            return self.expand(step.symbol, scope, words)
        word, who = step.word, step.kind
        if word is None and step.kind in PRONOUNS:
            whom, who = {
                "he": (self.person("hero"), "hero"),
                "him": self.other(scope),
                "his": (scope.subject, ""),
            }[step.kind]
            word = _PERSONAL[step.kind][whom]
        elif word is None and step.kind in ("hero", "friend", "other"):
            who = self.other(scope)[1] if step.kind == "other" else step.kind
            word = Form(self.cast[who][0], "PROPN", "Number=Sing")
            words.append(word)
            return self.person(who), who
        elif word is None and step.kind == "child":
            word = Form({"Fem": "girl", "Masc": "boy"}[self.cast["hero"][1]], "NOUN", "Number=Sing")
        elif word is None:
            forms = self.draw(step.kind)
            finite = f"{scope.verb} {scope.subject[:6]}"
            word = forms.get(step.form) or forms.get(finite) or forms[scope.verb]
        words.append(word)
        return _stands_for(word), who

    def draw(self, kind: str) -> dict[str, Form]:
        """A word of a kind, in all its forms; favourites of this story come more often."""
        lexemes = _KINDS[kind]
        if len(lexemes) == 1:
            return lexemes[0]
        if kind not in self.favourites:
            self.favourites[kind] = self.chance.sample(lexemes, 2)
        loyal = self.chance.random() < LOYALTY
        return self.chance.choice(self.favourites[kind] if loyal else lexemes)

    def person(self, who: str) -> str:
        """How a verb or a pronoun refers to somebody of the cast."""
        return f"3 Sing {self.cast[who][1]}"

    def other(self, scope: Scope) -> tuple[str, str]:
        """Somebody of the cast who is not the subject."""
        alone = scope.subject.startswith("3 Sing")
        who = "friend" if scope.who == "hero" else "hero" if alone else "third"
        return self.person(who), who


def _document(words: list[Form]) -> Document:
    """Put spaces between the words, but none inside quotes or before a full stop."""
    text, placed = "", []
    for word in words:
        if text and word.text not in _CLOSING and not text.endswith("“"):
            text += " "
        placed.append(Word(*word, start=len(text), end=len(text) + len(word.text)))
        text += word.text
    return Document(text, tuple(placed))


_CLOSING = tuple(".,!?”")


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


@cache
def _stands_for(word: Form) -> str:
    """The name under which verbs agree with a word."""
    known = dict(feature.split("=") for feature in word.features.split("|") if feature)
    person, number = known.get("Person", "3"), known.get("Number", "Sing")
    gender = f" {known.get('Gender', 'Neut')}" if (person, number) == ("3", "Sing") else ""
    return f"{person} {number}{gender}"


def _features(**values: str) -> str:
    """Features as they are written: sorted, without those that have no value."""
    return "|".join(f"{name}={value}" for name, value in sorted(values.items()) if value)


def _agreement(whom: str) -> dict[str, str]:
    """Person, number and gender; *you* does not show its number."""
    person, number, *gender = whom.split()
    number = "" if person == "2" else number
    return {"Person": person, "Number": number, "Gender": "".join(gender)}


def _lexicon() -> dict[str, list[dict[str, Form]]]:
    """Every kind of word with its words, each in all of its forms."""
    kinds: dict[str, list[dict[str, Form]]] = {}
    for kind, words in NOUNS.items():
        kinds[kind] = []
        for word in words.split():
            one, _, many = word.partition("/")
            forms = {"": Form(one, "NOUN", "Number=Sing")}
            if many:  # not every kind is used in the plural
                forms["plural"] = Form(many, "NOUN", "Number=Plur")
            kinds[kind].append(forms)
    for tag, features, table in (("ADJ", "Degree=Pos", ADJECTIVES), ("ADV", "", ADVERBS)):
        for kind, words in table.items():
            kinds[kind] = [{"": Form(word, tag, features)} for word in words.split()]
    for kind, words in VERBS.items():
        kinds[kind] = [_verb(*_inflect(word)) for word in words.split()]
    for kind, line in AUXILIARIES.items():
        tag, base, *finite = line.split()
        kinds[kind] = [_verb(base, finite[:4], finite[4:], "", tag)]
    assert len(kinds) == sum(map(len, (NOUNS, ADJECTIVES, ADVERBS, VERBS, AUXILIARIES)))
    return kinds


def _inflect(base: str) -> tuple[str, list[str], list[str], str]:
    """The forms of a verb: base, present and past (I, you, she, we), -ing."""
    irregular = {line.split()[0]: line.split()[1:] for line in IRREGULAR.split(",")}
    if base in irregular:
        third, past, ing = irregular[base]
    else:
        soft = re.sub("e$", "", base)  # smil-ed, smil-ing
        y = re.sub("(?<![aeiou])y$", "i", soft)  # cri-ed, cri-es
        third = y + "es" if y != soft or re.search("(s|x|z|ch|sh|o)$", base) else base + "s"
        past, ing = y + "ed", soft + "ing"
    return base, [base, base, third, base], [past] * 4, ing


def _verb(
    base: str, present: list[str], past: list[str], ing: str, tag: str = "VERB"
) -> dict[str, Form]:
    """All forms of a verb, under the names by which a sentence asks for them."""
    forms = {
        "inf": Form(base, tag, "VerbForm=Inf"),
        "imp": Form(base, tag, "Mood=Imp|Person=2|VerbForm=Fin"),
        "ing": Form(ing, tag, "Tense=Pres|VerbForm=Part"),
    }
    for tense, texts in {"pres": present, "past": past}.items():
        for whom, text in zip(("1 Sing", "2 Sing", "3 Sing", "1 Plur"), texts, strict=True):
            agreement = _agreement(whom)
            forms[f"{tense} {whom}"] = Form(
                text, tag, _features(Mood="Ind", Tense=tense.title(), VerbForm="Fin", **agreement)
            )
        plural = _features(Mood="Ind", Tense=tense.title(), VerbForm="Fin", **_agreement("3 Plur"))
        forms[f"{tense} 3 Plur"] = forms[f"{tense} 1 Plur"]._replace(features=plural)
    return forms


def _personal() -> dict[str, dict[str, Form]]:
    """Personal pronouns by case and by whom they stand for."""
    table: dict[str, dict[str, Form]] = {}
    for kind, (case, words) in PRONOUNS.items():
        fixed = dict(feature.split("=") for feature in case.split("|")) | {"PronType": "Prs"}
        table[kind] = {
            whom: Form(word, "PRON", _features(**fixed, **_agreement(whom)))
            for whom, word in zip(STANDS_FOR, words.split(), strict=True)
        }
    return table


def _closed() -> dict[str, list[Form]]:
    """What a word of the rules can be."""
    forms: dict[str, list[Form]] = {}
    for line, words in CLOSED.items():
        tag, _, features = line.partition(" ")
        for word in words.split():
            forms.setdefault(word, []).append(Form(word, tag, features))
    for form in (form for by_case in _PERSONAL.values() for form in by_case.values()):
        forms.setdefault(form.text, []).append(form)
    return forms


def _parse(part: str) -> Step:
    """A part of an alternative, as it is written in the rules."""
    part, marked, _ = part.partition("!") if len(part) > 1 else (part, "", "")
    part, _, mood = part.partition("@")
    if part.isupper() and part != "I":
        assert part in RULES, part
        return Step(part, "", "", None, bool(marked), mood)
    if part.startswith("<"):
        kind, _, form = part.strip("<>").partition(".")
        assert kind in {*_KINDS, *PRONOUNS, *_CAST}, kind
        return Step("", kind, form, None, bool(marked), mood)
    text, _, tag = part.partition("/") if len(part) > 1 else (part, "", "")
    form = next(form for form in _CLOSED[text] if tag in ("", form.tag))
    return Step("", "", "", form, bool(marked), mood)


def _alternatives(rule: str) -> tuple[list[int], list[list[Step]]]:
    """Cumulative weights and steps of a rule's lines."""
    lines = [line.split() for line in rule.strip("\n").splitlines()]
    lines = [line for line in lines if line]
    weights = list(accumulate(int(line[0]) for line in lines))
    return weights, [[_parse(part) for part in line[1:]] for line in lines]


def _steps() -> list[Step]:
    return [step for _, lines in _RULES.values() for line in lines for step in line]


def _forms_of(step: Step, verb: str = "") -> set[str]:
    """All texts that a <kind> can have; those of a verb can be kept to a form."""
    if step.kind in PRONOUNS:
        return {form.text for form in _PERSONAL[step.kind].values()}
    if step.kind in _CAST:
        return {"girl", "boy"} if step.kind == "child" else set(" ".join(NAMES.values()).split())
    forms = [item for word in _KINDS[step.kind] for item in word.items()]
    if step.form or "inf" not in _KINDS[step.kind][0]:
        return {form.text for name, form in forms if name == step.form}
    return {form.text for name, form in forms if name != "ing" and name.startswith(verb)}


def _openers() -> set[str]:
    """Words with which a sentence or a quotation can begin."""

    def first(step: Step, verb: str) -> set[str]:
        if step.word:
            return {step.word.text} | ({"an"} if step.word.text == "a" else set())
        verb = step.mood or verb
        if step.kind:
            return _forms_of(step, verb)
        return {word for line in _RULES[step.symbol][1] for word in first(line[0], verb)}

    starts = [line[0] for name in ("OPENING", "SENTENCE", "ENDING") for line in _RULES[name][1]]
    for _, lines in _RULES.values():
        for line in lines:
            for before, step in pairwise(line):
                if before.word and before.word.text in (".", "“"):
                    starts.append(step)
    return {word for step in starts for word in first(step, "past")}


_CAST = ("hero", "friend", "other", "child")
_KINDS = _lexicon()
_PERSONAL = _personal()
_CLOSED = _closed()
_RULES = {symbol: _alternatives(rule) for symbol, rule in RULES.items()}
