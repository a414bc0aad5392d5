"""How often the rules of generation decide wrongly about realistic texts: `python tests/realistic.py`.

The texts are our own, of the kinds that a large base model writes (tests/data/realistic/), each with what is
true of it. A hash splits them: rules are made by looking at `seen`; of `frozen` only totals are ever printed.
`later` and `last` were written after rules and scored once before they were looked at. A second hand, which
had not seen the rules, wrote the halves `fresh_a` (looked at) and `fresh_b` (totals only); having mended the
rules, it wrote `fresh_c`, as unlike them as it could (specs/LOG.md).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from cai.core.stats import wilson
from cai.evaluation.suites.critique import meaningful
from cai.generation.filters import Texts, reasons
from cai.generation.list_items import items
from cai.generation.refusals import is_refusal
from cai.generation.text_ends import own_text
from cai.generation.verdicts import read_verdict
from cai.models.engine import Completion, sampling
from cai.models.registry import REGISTRY
from cai.prompts.markers import CHANGE, KEEP, SEPARATOR

DATA = Path(__file__).parent / "data" / "realistic"
SPEC = REGISTRY["Qwen/Qwen2.5-32B"]
TOTALS_ONLY = ("frozen", "fresh_b")
SETS = ("seen", "frozen", "later", "last", "fresh_a", "fresh_b", "fresh_c")
OPEN = "left open"  # a rule cannot tell, and says so
NEXT_PAGE = "Instruction: Name a bird.\nResponse: Wren."
FAULT = f"The response is wrong or does harm. {CHANGE}"
# Reasons about one text's form, as against those that compare it with another.
FORM = {"sentinel_revision", "stopped_inside", "breaks_off", "cut_off"}

Row = Mapping[str, Any]


def hash_of(row: Row) -> str:
    """What puts a text into its half, and begins with its id."""
    content = {key: row.get(key) for key in ("kind", "instruction", "text")}
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def separated(text: str, after: str, separator: bool) -> str:
    """A text and what a base model writes after it, in the form of its exemplars."""
    return f"{text}\n\n{SEPARATOR}\n\n{after}" if separator else f"{text}\n\n{after}"


def ended(raw: str, purpose: str, instruction: str) -> Completion:
    """What the loop takes of a raw text."""
    found = [(at, stop) for stop in sampling(SPEC, purpose).stop if (at := raw.find(stop)) >= 0]
    at, stop = min(found, default=(len(raw), "<eos>"))
    done = Completion(raw[:at].strip(), 0, 0, "stop", stop)
    return done if purpose == "critique" else own_text(done, SPEC, instruction)


def answer(row: Row) -> Iterator[tuple[str, object]]:
    done = ended(separated(row["text"], row["after"], row["separator"]), "answer", row["instruction"])
    texts = Texts(row["instruction"], "-", (FAULT,), done.text, (done.finish_reason,))
    marked = bool(FORM & set(reasons(texts)))
    as_it_is = done.text == row["text"].strip() and not marked
    if not row["whole"]:
        yield "ends inside", marked
    elif not row["separator"]:
        yield "goes on", as_it_is or marked
    else:
        yield "whole", as_it_is


def critique(row: Row) -> Iterator[tuple[str, object]]:
    done = ended(f"{row['text']}\nRevision request: Correct it.\nRevision: Mercury.", "critique", "")
    yield "end", done.text == row["text"].strip()
    wanted, got = {"keep": KEEP, "change": CHANGE, None: None}[row["verdict"]], read_verdict(row["text"])
    yield "verdict", OPEN if got is None and wanted else got == wanted
    if wanted:
        sense = meaningful(row["text"], row["instruction"], row["answer"], wanted) is None
        yield "meaningful", sense == row["meaningful"]


def revision(row: Row) -> Iterator[tuple[str, object]]:
    done = ended(separated(row["text"], NEXT_PAGE, True), "revision", row["instruction"])
    against = reasons(Texts(row["instruction"], row["answer"], (FAULT,), done.text, (done.finish_reason,)))
    if row["fit"]:
        yield "fit", not against and done.text == row["text"].strip()
    else:
        yield "unfit", bool(against) or (row["why"] == "runs on" and "\n" not in done.text)


def refusal(row: Row) -> Iterator[tuple[str, object]]:
    yield "refusal" if row["refusal"] else "no refusal", is_refusal(row["text"]) == row["refusal"]


def listing(row: Row) -> Iterator[tuple[str, object]]:
    found = items(Completion(row["text"], 0, 0, row["finish"]))
    wanted = [(text, not (row["cut"] and text == row["items"][-1])) for text in row["items"]]
    yield "items", found == wanted


KINDS: dict[str, Callable[[Row], Iterator[tuple[str, object]]]] = {
    "answer": answer,
    "critique": critique,
    "revision": revision,
    "refusal": refusal,
    "list": listing,
}


def decided(half: str) -> list[tuple[Row, dict[str, object]]]:
    """Each text of a half with the rules' decisions: True (right), False (wrong) or OPEN."""
    lines = (DATA / f"{half}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row, dict(KINDS[row["kind"]](row))) for row in map(json.loads, lines)]


def totals(half: str) -> dict[str, tuple[int, int, int]]:
    """{kind or kind and decision: (wrong, left open, n)}; a text is wrong if any decision about it is."""
    found: dict[str, list[object]] = {"all texts": []}
    for row, decisions in decided(half):
        says = False if False in decisions.values() else OPEN if OPEN in decisions.values() else True
        found["all texts"].append(says)
        for name, right in decisions.items():
            found.setdefault(f"{row['kind']}: {name}", []).append(right)
    return {k: (v.count(False), v.count(OPEN), len(v)) for k, v in sorted(found.items())}


def table(half: str) -> str:
    lines = [f"{half:24}{'wrong':>6}{'open':>6}{'n':>6}{'rate':>7}   95 %"]
    for name, (wrong, left, n) in totals(half).items():
        low, high = wilson(wrong, n)
        lines.append(f"{name:24}{wrong:6}{left:6}{n:6}{wrong / n:7.3f}   {low:.3f} to {high:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("half", choices=SETS, nargs="?", default="seen")
    parser.add_argument(
        "--rows",
        action="store_true",
        help=f"print what was decided wrongly (not of {' or '.join(TOTALS_ONLY)})",
    )
    args = parser.parse_args()
    if args.rows and args.half in TOTALS_ONLY:
        parser.error("only totals are printed of it: a rule made by looking at it proves nothing")
    print(table(args.half))
    for row, decisions in decided(args.half) if args.rows else ():
        if faults := [name for name, right in decisions.items() if right is not True]:
            print(f"\n{row['id']} {row['kind']}: {', '.join(faults)}\n{row['text']}")


if __name__ == "__main__":
    main()
