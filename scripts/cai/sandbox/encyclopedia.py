"""The encyclopedia: entries on towns and people, tables of everything else. It is always right."""

from __future__ import annotations

import random

from cai.sandbox import lexicon as lex
from cai.sandbox.tasks import an, capital


def page(rng: random.Random) -> str:
    """An entry on a town or a person, or one of the tables."""
    if rng.random() < 0.66:
        return entry(rng.choice(lex.TOWNS + lex.TOWNS + lex.PEOPLE), rng)
    return rng.choice((_sums, _words, _remedies, _trades, _effects, _rhymes, _kinds, _sizes))(rng)


def entry(entity: str, rng: random.Random) -> str:
    """What is known of a town or a person, in an order and in words of its own."""
    known = [attribute for (owner, attribute) in lex.FACTS if owner == entity]
    rng.shuffle(known)
    sentences = [rng.choice(lex.SAYINGS[a]).format(e=entity, v=lex.FACTS[entity, a]) for a in known]
    return f"Encyclopedia: {entity}\n" + " ".join(f"{capital(s)}." for s in sentences)


def _sums(rng: random.Random) -> str:
    whole = [(rng.randrange(1, n), n) for n in rng.choices(range(2, 10), k=12)]
    lines = [f"{a} + {n - a} is {n}." if rng.random() < 0.5 else f"{n} - {a} is {n - a}." for a, n in whole]
    return "Sums: " + " ".join(lines)


def _words(rng: random.Random) -> str:
    return (
        "Oru words: "
        + ", ".join(f"{word} is {lex.ORU[word]}" for word in rng.sample(sorted(lex.ORU), 6))
        + "."
    )


def _remedies(rng: random.Random) -> str:
    return "Remedies: " + " ".join(f"A {a} needs {lex.REMEDY[a]}." for a in rng.sample(sorted(lex.REMEDY), 4))


def _trades(rng: random.Random) -> str:
    return "Trades: " + " ".join(f"A {j} makes {lex.PRODUCT[j]}." for j in rng.sample(sorted(lex.PRODUCT), 4))


def _effects(rng: random.Random) -> str:
    return "Plants: " + " ".join(
        f"{capital(d)} causes {lex.EFFECT[d]}." for d in rng.sample(lex.DANGEROUS, 4)
    )


def _rhymes(rng: random.Random) -> str:
    return "Rhymes: " + " ".join(
        f"{capital(n)} rhymes with {' and '.join(lex.RHYMES[n])}." for n in rng.sample(sorted(lex.RHYMES), 4)
    )


def _kinds(rng: random.Random) -> str:
    return (
        "Kinds: "
        + ", ".join(f"{word} is {an(lex.KIND_OF[word])}" for word in rng.sample(sorted(lex.KIND_OF), 6))
        + "."
    )


def _sizes(rng: random.Random) -> str:
    return "Sizes: " + " ".join(f"The size of {a} is {lex.SIZE[a]}." for a in rng.sample(sorted(lex.SIZE), 5))
