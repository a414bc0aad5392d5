"""How many of a run's critiques mean something.

By their form: by a rule, and by a person where one has marked them. And by what came of them: a critique that
asks for a change is confirmed if the judge prefers the revision by that critique's principle, in both orders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cai.core.stats import share
from cai.evaluation.marks import read_marks
from cai.evaluation.model_pair import ModelPair, source_of
from cai.evaluation.result_store import ResultStore
from cai.evaluation.suite import Metrics, Suite
from cai.generation.filters import is_exemplar, normal
from cai.generation.verdicts import read_verdict, verdict_of, without_verdict
from cai.prompts.markers import CHANGE, KEEP
from cai.prompts.templates import hash_texts

MEANINGFUL, CONFIRMED = "critiques meaningful", "critiques confirmed by the judge of their revision"
MIN_REASON_WORDS = 4  # fewer, none of them of the instruction or the answer, are no reason
WIDE = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]")  # Thai, Japanese, Chinese

# Words that a critique of anything shares with anything: they do not show that it speaks of this answer.
COMMON_WORDS = frozenset(
    "all and any are but can did for get has have her his how its let may not off one our out she the too "
    "two use was who why yes yet you "
    "about also answer because been could does from give good help instruction into just make more must "
    "need only people question response should some that their them then there they this very what when "
    "which will with would write your".split()
)


# What a short critique that asks for no change says of the answer.
PRAISE = frozenset(
    "right correct true accurate good fine fitting sound yes exactly complete clear harmless helpful "
    "honest perfect excellent great okay ok".split()
)


def meaningful(critique: str, instruction: str, answer: str, verdict: str | None = None) -> str | None:
    """None for a critique that means something, else what is wrong with it. It must have a verdict (the
    recorded one, else what its words say), give a reason of its own, and speak of this instruction or this
    answer: share a word of content (or a number) with them. One that asks for no change may just call the
    answer right."""
    verdict = verdict or read_verdict(critique)
    if verdict is None:
        return "it ends without a verdict"
    reason = normal(without_verdict(critique))
    if is_exemplar(critique) or (reason and reason in (normal(instruction), normal(answer))):
        return "it is a copy"
    if verdict == KEEP and PRAISE & set(normal(critique).split()):
        return None
    if _content(f"{instruction} {answer}") & _content(reason):
        return None
    short = len(reason.split()) < MIN_REASON_WORDS
    return "it gives no reason" if short else "it names nothing of the instruction or the answer"


def _content(text: str) -> set[str]:
    """Words of content and numbers; of scripts without spaces between words, every two characters."""
    words = normal(text).split()
    pairs = {w[i : i + 2] for w in words if not w.isascii() and WIDE.search(w) for i in range(len(w) - 1)}
    return pairs | ({w for w in words if len(w) > 2 or w.isdigit()} - COMMON_WORDS)


def confirmed(records: Sequence[dict[str, Any]]) -> list[bool]:
    """For each critique that asked for a change, whether it is confirmed. A revision that something else
    speaks against, such as one that changes nothing, is judged by nobody, and confirms nothing. [] where
    nobody judged."""
    found = []
    for record in records:
        said = (record.get("judgement") or {}).get("principles", [])
        won = {j["principle_id"] for j in said if j["winner"] == "second"}
        asked = [c for c in record["critiques"] if verdict_of(c) == CHANGE]
        found += [c["principle_id"] in won for c in asked]
    judged = any(r.get("judgement") for r in records)
    return found if judged else []


def measure(pair: ModelPair, store: ResultStore) -> tuple[Metrics, dict[str, Any]]:
    """(metrics by name, notes). A person's mark of an example stands for all its critiques."""
    marks = read_marks(source_of(pair.run))
    wanted = []
    for record in pair.records:
        mark = marks.get(record["id"])
        by_person = mark.critique_meaningful if mark else None
        for number, c in enumerate(record["critiques"]):
            fault = meaningful(c["critique"], record["instruction"], record["initial_answer"], verdict_of(c))
            counts = by_person if by_person is not None else fault is None
            judged = hash_texts([c["critique"], str(fault)])[:8]  # other data, or another rule: another row
            wanted.append(
                {
                    "id": f"critique/{record['id']}/{number}/{c['principle_id']}/{judged}/{by_person}",
                    "record": record["id"],
                    "principle_id": c["principle_id"],
                    "critique": c["critique"],
                    "fault": fault,
                    "person": by_person,
                    "meaningful": counts,
                }
            )
    found = store.fill(wanted, lambda some: [{} for _ in some])
    examples: dict[str, list[bool]] = {}
    for r in found:
        examples.setdefault(r["record"], []).append(r["meaningful"])
    marked = [r for r in found if r["person"] is not None]
    metrics = {
        MEANINGFUL: share([r["meaningful"] for r in found]),
        "examples all of whose critiques are meaningful": share([all(x) for x in examples.values()]),
        "critiques meaningful by the rule alone": share([r["fault"] is None for r in found]),
    }
    metrics[CONFIRMED] = share(confirmed(pair.records))
    if marked:
        metrics["rule agrees with the person"] = share([(r["fault"] is None) == r["person"] for r in marked])
    return metrics, {"critiques that a person marked": len(marked)}


SUITE = Suite("critique", "how many of the run's critiques mean something", measure, asks_models=False)
