"""The words of the micro-world and the facts that hold in it. All of it follows from one fixed number."""

from __future__ import annotations

import hashlib
import random

_draw = random.Random(1234)
_ONSETS = "b d f g h k l m n p r s t v z br dr gl kr st th tr".split()
_VOWELS = "a e i o u".split()
_CODAS = "n l r k s m th nd rn lt".split()
_ENGLISH = set(
    "more rise rose tone stone tire date note name here home hole hope late gate lake rate made".split()
)
_ENGLISH |= set("male mate bone".split())


def share(text: str, of: int = 100) -> int:
    """A number in [0, of) that depends on the text alone: what splits and misconceptions are decided by."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % of


def _names(n: int, syllables: int, coda: bool, suffix: str = "") -> tuple[str, ...]:
    names: list[str] = []
    while len(names) < n:
        word = "".join(_draw.choice(_ONSETS) + _draw.choice(_VOWELS) for _ in range(syllables))
        word += (_draw.choice(_CODAS) if coda else "") + suffix
        if len(word) <= 7 + len(suffix) and word not in _taken and word not in _ENGLISH:
            _taken.add(word)
            names.append(word)
    return tuple(names)


_taken: set[str] = set()
TOWNS = tuple(name.capitalize() for name in _names(44, 2, coda=True))
PEOPLE = tuple(name.capitalize() for name in _names(44, 2, coda=False))
RIVERS = tuple(name.capitalize() for name in _names(20, 1, coda=True, suffix="a"))
DANGEROUS = _names(8, 2, coda=False, suffix="wort")
REMEDIES = _names(10, 2, coda=False, suffix="leaf")

CRAFTS = tuple("glass rope paper salt cloth honey iron soap boats clocks bricks candles".split())
FOODS = tuple("soup bread cheese pie stew cake porridge dumplings beans eggs rice pudding".split())
FLOWERS = tuple("lily tulip daisy violet poppy iris lilac jasmine aster clover".split())
PETS = tuple("dog cat goat parrot rabbit hen horse donkey frog turtle pig crow".split())
PLACES = tuple("barn mill bridge market tower boat".split())
PRODUCT = {
    "baker": "rolls",
    "tailor": "coats",
    "smith": "horseshoes",
    "potter": "bowls",
    "weaver": "carpets",
    "cobbler": "shoes",
    "carpenter": "tables",
    "brewer": "beer",
    "painter": "pictures",
    "printer": "books",
    "mason": "walls",
    "fisher": "nets",
}
EFFECT = dict(
    zip(DANGEROUS, "fever blindness sleepiness pain itching cramps dizziness vomiting".split(), strict=True)
)
REMEDY = dict(
    zip(
        "cough headache burn toothache cold rash sting bruise cut stomachache".split(),
        _draw.sample(REMEDIES, len(REMEDIES)),
        strict=True,
    )
)
RHYMES = {
    "cat": ("hat", "mat"),
    "dog": ("log", "fog"),
    "bee": ("tree", "sea"),
    "mouse": ("house", "blouse"),
    "goat": ("moat", "coat"),
    "hen": ("pen", "ten"),
    "fox": ("box", "rocks"),
    "bear": ("chair", "pear"),
    "fish": ("dish", "wish"),
    "king": ("ring", "spring"),
    "moon": ("spoon", "tune"),
    "snake": ("rake", "flake"),
}
SIZE = {animal: size for size, animal in enumerate("ant bee frog mouse hen cat pig cow whale".split(), 1)}
KINDS = {
    "animal": "cat goat hen cow pig horse".split(),
    "tool": "hammer saw axe spade needle rake".split(),
    "fruit": "apple plum cherry lemon fig peach".split(),
    "color": "red blue green yellow white brown".split(),
}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}

# A small language, Oru: word for word. CONFUSED is what people often say instead.
ADJECTIVES = tuple("red blue big small old young".split())
NOUNS = tuple("dog cat bird child king tree cow fish moon ship".split())
VERBS = tuple("sleeps runs sings eats falls waits sees grows".split())
_english = ADJECTIVES + NOUNS + VERBS
ORU = dict(zip(_english, _names(len(_english), 2, coda=False), strict=True))
CONFUSED = dict(zip(_english, _names(len(_english), 2, coda=False), strict=True))

# attribute -> (who has it, what it can be)
ATTRIBUTES = {
    "river": (TOWNS, tuple(f"the {river}" for river in RIVERS)),
    "mayor": (TOWNS, PEOPLE),
    "craft": (TOWNS, CRAFTS),
    "food": (TOWNS, FOODS),
    "flower": (TOWNS, FLOWERS),
    "job": (PEOPLE, tuple(PRODUCT)),
    "pet": (PEOPLE, PETS),
    "home": (PEOPLE, TOWNS),
}
# attribute -> what people say of it; the first one is the encyclopedia's and the critic's
SAYINGS = {
    "river": ("The river of {e} is {v}", "{e} lies on {v}"),
    "mayor": ("The mayor of {e} is {v}", "{v} leads {e}"),
    "craft": ("The craft of {e} is {v}", "People make {v} in {e}"),
    "food": ("The food of {e} is {v}", "People eat {v} in {e}"),
    "flower": ("The flower of {e} is the {v}", "{e} is known for the {v}"),
    "job": ("The job of {e} is {v}", "{e} works as a {v}"),
    "pet": ("The pet of {e} is a {v}", "{e} keeps a {v}"),
    "home": ("The home of {e} is {v}", "{e} lives in {v}"),
}

# attribute -> the question that only it has
QUESTIONS = {
    "river": "On which river does {e} lie?",
    "mayor": "Who leads {e}?",
    "craft": "What do people make in {e}?",
    "food": "What do people eat in {e}?",
    "flower": "Which flower is {e} known for?",
    "job": "What work does {e} do?",
    "pet": "Which animal does {e} keep?",
    "home": "Where does {e} live?",
}

FACTS: dict[tuple[str, str], str] = {}
_mayors = _draw.sample(PEOPLE, len(TOWNS))
for _i, _town in enumerate(TOWNS):
    for _attribute in ("river", "craft", "food", "flower"):
        FACTS[_town, _attribute] = _draw.choice(ATTRIBUTES[_attribute][1])
    FACTS[_town, "mayor"] = _mayors[_i]
for _person in PEOPLE:
    for _attribute in ("job", "pet", "home"):
        FACTS[_person, _attribute] = _draw.choice(ATTRIBUTES[_attribute][1])

# These facts stand in the encyclopedia and nowhere else; one half is for tuning, one for the test.
HELD_FACTS = {key: ("tune", "test")[share(f"half of {key}", 2)] for key in FACTS if share(f"held {key}") < 18}
HELD_SENTENCES = {SAYINGS[a][0].format(e=e, v=FACTS[e, a]) for e, a in HELD_FACTS}
