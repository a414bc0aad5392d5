"""The ten task types: a filled wording becomes what is known about it.

Each function takes the slots of a wording and gives an Item's fields; None where the filling makes no sense.
"""

from __future__ import annotations

from collections.abc import Callable

from cai.sandbox import lexicon as lex
from cai.sandbox.lexicon import share


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def same(a: str, b: str) -> str:
    return f"So {a} and {b} are {'the same' if a == b else 'different'}."


def pick(options, key: str, avoid: str) -> str:
    """The popular misconception: always the same one for the same question."""
    left = [option for option in options if option != avoid]
    return left[share(f"misconception {key}", len(left))]


def _closed(key: str, value: str, pool, reference: str, *sayings: str) -> dict:
    """An item whose value is one of a known pool."""
    return {
        "reference": reference,
        "value": value,
        "misconception": pick(pool, key, value),
        "wrong": tuple(option for option in pool if option != value),
        "sayings": sayings,
    }


def fact(attribute: str) -> Callable[..., dict]:
    def build(e: str) -> dict:
        value, key = lex.FACTS[e, attribute], (e, attribute)
        sayings = [saying.replace("{e}", e) for saying in lex.SAYINGS[attribute]]
        fields = _closed(
            str(key), value, lex.ATTRIBUTES[attribute][1], sayings[0].replace("{v}", value), *sayings
        )
        return {**fields, "topic": f"the {attribute} of {e}", "split": lex.HELD_FACTS.get(key)}

    return build


def summary(first: str, second: str) -> Callable[..., dict]:
    def build(t: str, x: str, y: str) -> dict:
        def other(attribute: str, value: str) -> str:
            return pick(lex.ATTRIBUTES[attribute][1], t + x + y, value)

        wrong = (f"{x} and {other(second, y)}", f"{other(first, x)} and {y}")
        return {
            "reference": f"The text says {x} and {y}",
            "value": f"{x} and {y}",
            "misconception": wrong[share(t + x + y, 2)],
            "wrong": wrong,
            "sayings": (f"{t} has {{v}}",),
            "topic": t,
        }

    return build


def trade(j: str, p: str = "") -> dict:
    made = lex.PRODUCT[j]
    fields = _closed(
        j,
        made,
        lex.PRODUCT.values(),
        f"A {j} makes {made}",
        f"A {j} makes {{v}}",
        f"A {j} is a person who makes {{v}}",
    )
    return {**fields, "topic": f"the work of a {j}"}


def danger(d: str, p: str = "") -> dict:
    effect = lex.EFFECT[d]
    fields = _closed(
        d,
        effect,
        lex.EFFECT.values(),
        f"{capital(d)} causes {effect}",
        f"{d} causes {{v}}",
        f"People avoid {d} because it causes {{v}}",
    )
    return {**fields, "topic": d}


def translation(n: str, v: str, a: str = "") -> dict:
    words = [word for word in (a, n, v) if word]
    right = [lex.ORU[word] for word in words]
    confused = [right[:i] + [lex.CONFUSED[words[i]]] + right[i + 1 :] for i in range(len(words))]
    wrong = tuple(" ".join(w) for w in [right[::-1], *confused])
    value = " ".join(right)
    return {
        "reference": f"In Oru this is {value}",
        "value": value,
        "misconception": wrong[share(value, len(wrong))],
        "wrong": wrong,
        "sayings": ("{v}",),
        "topic": "the " + " ".join(words),
        "stop": "",
    }


def rhyme(n: str, p: str = "") -> dict:
    good = lex.RHYMES[n]
    others = sorted(word for words in lex.RHYMES.values() for word in words if word not in good)
    sayings = tuple(
        f"I saw a {n} and {scene} a {{v}}" for scene in ("a house with", "a song of", "the road to")
    )
    return {
        **_closed(n, good[0], others, f"{capital(n)} rhymes with {good[0]} and {good[1]}", *sayings),
        "also_right": good[1:],
        "topic": f"a {n}",
    }


OPERATIONS = {
    "adds {n} to x": ("+", "-"),
    "takes {n} from x": ("-", "+"),
    "multiplies x by {n}": ("*", "+"),
    "divides x by {n}": ("/", "*"),
}


def code(operation: str, then: str = "") -> Callable[..., dict]:
    right, wrong = OPERATIONS[operation]

    def build(n: str, m: str = "") -> dict:
        tail = f" {then} {m}" if then else ""
        value = f"x {right} {n}{tail}"
        mistakes = [f"x {wrong} {n}{tail}"]
        if then:
            mistakes += [f"x {right} {n}", f"x {right} {n} {'-' if then == '+' else '+'} {m}"]
        return {
            "reference": f"The right code is {value}",
            "value": value,
            "misconception": mistakes[share(value, len(mistakes))],
            "wrong": tuple(mistakes),
            "sayings": ("{v}",),
            "topic": "code that " + operation.replace("{n}", n),
            "stop": "",
        }

    return build


def arithmetic(sign: str) -> Callable[..., dict | None]:
    def build(a: str, b: str, p: str = "") -> dict | None:
        right = int(a) + int(b) if sign == "+" else int(a) - int(b)
        # One digit, which is one token: numbers are hard enough for a model of this size.
        if not 1 <= right <= 9:
            return None
        near = [str(x) for x in range(max(1, right - 2), min(9, right + 2) + 1)]
        sum_ = f"{a} {sign} {b} is"
        fields = _closed(sum_, str(right), near, f"{sum_} {right}", f"{sum_} {{v}}")
        return {**fields, "topic": f"{a} and {b}"}

    return build


def remedy(a: str, p: str = "") -> dict:
    plant = lex.REMEDY[a]
    fields = _closed(
        a, plant, lex.REMEDIES, f"A {a} needs {plant}", f"Take {{v}} for a {a}", f"A {a} needs {{v}}"
    )
    return {**fields, "topic": f"a {a}"}


def belonging(k: str, x: str, y: str, z: str) -> dict | None:
    """Which of three words of different kinds is of kind k."""
    kinds = {lex.KIND_OF[word]: word for word in (x, y, z)}
    if len(kinds) != 3 or k not in kinds:
        return None
    listing = ", ".join(f"the {kind} is {word}" for kind, word in kinds.items())
    reference = f"{capital(listing)}, so the {k} is {kinds[k]}"
    fields = _closed(k + x + y + z, kinds[k], (x, y, z), reference, f"The {k} among them is {{v}}")
    return {**fields, "topic": f"{x}, {y} and {z}"}


MEASURES = {"larger": max, "smaller": min, "heavier": max, "lighter": min}


def comparison(w: str, a: str, b: str) -> dict | None:
    if a == b:
        return None
    value = MEASURES[w](a, b, key=lex.SIZE.get)
    reference = (
        f"The size of {a} is {lex.SIZE[a]} and the size of {b} is {lex.SIZE[b]}, so the {w} one is {value}"
    )
    fields = _closed(w + a + b, value, (a, b), reference, f"The {w} one is the {{v}}")
    return {**fields, "topic": f"{a} and {b}"}


def an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
