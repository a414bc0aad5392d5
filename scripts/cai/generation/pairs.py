"""Training pairs of a run: revisions, and anchors that keep what was good.

Revision pairs alone teach a model to refuse everything and to trust no first answer. An anchor pair takes
an answer that its critic passed as chosen, against a bad answer that was written for another instruction:
a refusal where help was given, help with harm where a refusal was given. Ground truth has no part in it:
what passed is what the critics passed, and the judge where it was asked.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import sha256_file
from cai.core.run import Run
from cai.core.schema import HELD_OUT, PAIR_KEYS, check, is_held_out, row_seed
from cai.generation.filters import is_loop, kept_ids
from cai.generation.guard import may_be_chosen
from cai.generation.meta_talk import is_meta_talk
from cai.generation.refusals import is_refusal
from cai.generation.text_ends import is_cut_off
from cai.generation.verdicts import verdict_of
from cai.prompts.markers import KEEP

FILE = "pairs.jsonl"
REVISION, ANCHOR = KINDS = "revision", "anchor"
REFUSALS = 3  # every third anchor keeps a refusal that was passed, while there are any

# A critic that calls the request harmless has not passed the refusal of it, only its principle did not
# forbid it.
CALLED_HARMLESS = re.compile(
    r"\b(harmless|innocent|hurts? (?:nobody|no one)|not harmful|no harm|"
    r"nothing (?:harmful|dangerous|wrong))\b",
    re.IGNORECASE,
)


def make_pairs(
    run: Run, records: Sequence[dict[str, Any]], *, anchors: float, seed: int, held_out: float = HELD_OUT
) -> list[dict[str, Any]]:
    """pairs.jsonl, built from the records once they are complete; see build."""
    wanted = build(records, anchors=anchors, seed=seed, held_out=held_out)
    keep_pairs(run, wanted)
    kinds, held = Counter(row["kind"] for row in wanted), sum(row["held_out"] for row in wanted)
    run.log(f"[3] {len(wanted)} pairs: {dict(kinds)}, {held} of them held out")
    return wanted


def keep_pairs(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """pairs.jsonl of a run, as far as it is not there yet, and in run.json what it holds: training and
    evaluation know by the hash that it is the one that was written."""
    jsonl.complete(run.data / FILE, rows, PAIR_KEYS)
    record_pairs(run, rows)


def record_pairs(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    kinds, held = Counter(row["kind"] for row in rows), sum(row.get("held_out", False) for row in rows)
    digest = sha256_file(run.data / FILE)
    run.record(pairs={"count": len(rows), "kinds": dict(kinds), "held_out": held, "sha256": digest})


def build(
    records: Sequence[dict[str, Any]], *, anchors: float, seed: int, held_out: float = HELD_OUT
) -> list[dict[str, Any]]:
    """The rows of pairs.jsonl, by kind and id: PAIR_KEYS, and task, principles, held_out.

    anchors: how many of them for each revision pair, as far as there are answers that passed; 0 for none.
    held_out: the share of examples that is kept out of training.
    Training and held-out pairs are made apart, so that no text of a held-out example is in a training
    pair. The rows follow from the records and the seed; the records' order does not matter.
    """
    records = sorted(records, key=lambda r: r["id"])
    kept, rows = kept_ids(records), []
    for side in (False, True):
        some = [r for r in records if is_held_out(r["id"], held_out) is side]
        revised = [r for r in some if r["id"] in kept]
        made = [revision_pair(r) for r in revised]
        made += _anchors(some, revised, round(anchors * len(revised)), seed)
        rows += [{**row, "held_out": side} for row in made]
    return sorted(rows, key=lambda row: (row["kind"] != REVISION, row["id"]))


def passed(record: dict[str, Any]) -> bool:
    """Whether a first answer is good enough to be chosen: every critic passed it and nothing else speaks
    against it, nor a guard, nor the judge where it was asked; it ends, and talks about no critique. A
    refusal must not be of something that the critic calls harmless."""
    answer, critiques = record["initial_answer"], [c["critique"] for c in record["critiques"]]
    return (
        record["rejected_because"] == ["no_change_needed"]
        and all(verdict_of(c) == KEEP for c in record["critiques"])
        and (record.get("judgement") or {"passed": True})["passed"]
        and may_be_chosen(record, "initial_answer")
        and not (is_cut_off(answer) or is_loop(answer) or is_meta_talk(answer, record["instruction"]))
        and not (is_refusal(answer) and any(CALLED_HARMLESS.search(c) for c in critiques))
    )


def _anchors(
    records: Sequence[dict[str, Any]], revised: Sequence[dict[str, Any]], wanted: int, seed: int
) -> list[dict[str, Any]]:
    """Up to `wanted` anchors among records that are sorted by id, the bad answers from these same records."""
    refusals, compliances = _bad_answers(records, revised)
    good = sorted((r for r in records if passed(r)), key=lambda r: row_seed(seed, r["id"], "anchor"))
    helped = [r for r in good if not is_refusal(r["initial_answer"])] if refusals else []
    refused = [r for r in good if is_refusal(r["initial_answer"])] if compliances else []
    rows = []
    while len(rows) < wanted and (helped or refused):
        kind, bad = (
            (refused, compliances)
            if refused and (not helped or len(rows) % REFUSALS == REFUSALS - 1)
            else (helped, refusals)
        )
        record = kind.pop(0)
        text = random.Random(row_seed(seed, record["id"], "mismatch")).choice(bad)
        pair = {"prompt": record["instruction"], "chosen": record["initial_answer"], "rejected": text}
        rows.append(_row(record, pair, ANCHOR))
    return rows


def _bad_answers(
    records: Sequence[dict[str, Any]], revised: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """(refusals, compliances) that other instructions got. Refusals: what revisions and first answers
    refused with. Compliances: first answers that were revised into a refusal; if there are none, any that
    were revised."""
    texts = [r["revised_answer"] for r in revised] + [r["initial_answer"] for r in records]
    refusals = {t for t in texts if is_refusal(t)}
    plain = [r for r in revised if not is_refusal(r["initial_answer"])]
    compliances = {r["initial_answer"] for r in plain if is_refusal(r["revised_answer"])}
    return sorted(refusals), sorted(compliances or {r["initial_answer"] for r in plain})


def revision_pair(record: dict[str, Any]) -> dict[str, Any]:
    """The row of pairs.jsonl of a kept record."""
    assert record["kept"], (
        f"record {record['id']} was rejected because {record['rejected_because']}: it makes no pair"
    )
    if record["preference_pair"] is None:
        raise UserError(f"record {record['id']} is kept and has no 'preference_pair': restore records.jsonl")
    return _row(record, record["preference_pair"], REVISION)


def _row(record: dict[str, Any], pair: dict[str, str], kind: str) -> dict[str, Any]:
    row = {
        "id": record["id"],
        **pair,
        "kind": kind,
        "task": record["task"],
        "principles": [c["principle_id"] for c in record["critiques"]],
    }
    return check(row, PAIR_KEYS, f"pair {record['id']}")
