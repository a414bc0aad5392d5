"""pairs.jsonl as training and evaluation read it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, run_of, sha256_file
from cai.core.jsonl import read
from cai.core.run import manifest_in
from cai.core.schema import HELD_OUT, PAIR_KEYS, is_content_id, is_foreign, is_held_out
from cai.core.text import is_broken
from cai.generation.dedup import EvaluationPrompts
from cai.generation.filters import final_reasons
from cai.generation.pairs import FILE, KINDS
from cai.generation.records import read_records
from cai.prompts.markers import CHAT_TOKENS, END_OF_TEXT, INSTRUCTION, RESPONSE
from cai.prompts.training_format import training_completion, training_prompt

TEXTS = ("prompt", "chosen", "rejected")


def read_pairs(data: Path, *, edited: bool = False) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(pairs to train on, held-out pairs) of a run's data directory; edited: see pair_rows.

    Raises UserError for rows that do not fit (file, line and key), and where there is no pair: then it says
    which filter took how many of the records.
    """
    path = data / FILE
    if not path.is_file():
        raise UserError(
            f"{display_path(path)} is missing: generate a run's data first, or name another run with --data"
        )
    rows, sides = pair_rows(data, edited=edited, texts=True), {False: [], True: []}
    share = _share(data)
    for row in rows:
        sides[_side(row, share)].append(row)
    if rows and not sides[False]:
        raise UserError(f"{display_path(path)}: all {len(rows)} pairs are held out, none is left to train on")
    if not rows:
        raise UserError(f"{display_path(path)} holds no pair. {_why_none(data)}, then generate more")
    return sides[False], sides[True]


def pair_rows(
    data: Path, *, trained_on: str | None = None, edited: bool = False, texts: bool = False
) -> list[dict[str, Any]]:
    """The rows of pairs.jsonl, [] if there is none.

    trained_on: the hash of the file that an adapter was trained on. Without it the file must be the one that
    the run wrote, if run.json tells; edited: it may be another one. texts: they must be fit to be trained on.
    Raises UserError for a row that does not fit the schema or its own id, one that is there twice, and
    another file.
    """
    path, share = data / FILE, _share(data)
    rows, seen = read(path, PAIR_KEYS, growing=False), {}
    for number, row in enumerate(rows, 1):
        try:
            if texts:
                _check_texts(row, data)
            _check(row)
            if texts:
                _check_side(row, share)
            for what, key in (("example and kind", (row["id"], row["kind"])), ("texts", _texts(row))):
                if (line := seen.setdefault(key, number)) != number:
                    raise UserError(f"the {what} of line {line} once more: remove one of the two lines")
        except UserError as error:
            raise UserError(f"{display_path(path)}, line {number}: {error}") from None
    if not edited:
        _check_file(data, len(rows), trained_on)
    return rows


def with_side(rows: Sequence[dict[str, Any]], data: Path) -> list[dict[str, Any]]:
    """Rows that all say whether they are held out, and of what task they are, as evaluation needs it."""
    share = _share(data)
    return [{"task": "unknown", **row, "held_out": _side(row, share)} for row in rows]


def apart_from(
    pairs: Sequence[dict[str, Any]], evaluated: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(pairs that can be trained on, those whose prompt is one that models are evaluated on, or near to
    one)."""
    barred, sides = EvaluationPrompts(evaluated), {False: [], True: []}
    for pair in pairs:
        sides[barred.near(pair["prompt"]) is not None].append(pair)
    return sides[False], sides[True]


def same_tokens(
    tokenizer: Any, pairs: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(pairs whose two texts are the same to the model, the others): a tokenizer may normalise Unicode."""
    sides = {False: [], True: []}
    for pair in pairs:
        texts = (training_completion(pair[key]) for key in ("chosen", "rejected"))
        chosen, rejected = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        sides[chosen == rejected].append(pair)
    return sides[True], sides[False]


def refuse_special_tokens(tokenizer: Any, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for a text that holds a token by which this model ends a text or takes turns."""
    for pair in pairs:
        for key in TEXTS:
            if token := next((t for t in tokenizer.all_special_tokens if t in pair[key]), None):
                raise UserError(
                    f"{key!r} of pair {pair.get('id')} holds {token}, a special token of this model: "
                    "remove it"
                )


def _share(data: Path) -> float | None:
    """The share of examples that the run keeps out of training, None where it has recorded none."""
    return ((manifest_in(data) or {}).get("settings") or {}).get("held_out")


def _side(row: dict[str, Any], share: float | None) -> bool:
    """Whether a pair is held out."""
    return row["held_out"] if "held_out" in row else is_held_out(row["id"], share or HELD_OUT)


def _texts(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[key] for key in TEXTS)


def _check_texts(row: dict[str, Any], data: Path) -> None:
    """Raises UserError for what is no pair of plain texts."""
    for key in TEXTS:
        if not row[key].strip():
            raise UserError(f"{key!r} is empty")
    if row["prompt"].startswith(f"{INSTRUCTION} ") and row["prompt"].endswith(f"\n{RESPONSE}"):
        raise UserError(
            "'prompt' is in the training format, as older files had it, and not the instruction alone: "
            f"python scripts/runs.py --convert {run_of(data)} makes plain texts of them"
        )
    training_prompt(row["prompt"])  # no chat token in it
    for key in TEXTS:
        if token := next((t for t in (*CHAT_TOKENS, END_OF_TEXT) if t in row[key]), None):
            raise UserError(f"{key!r} holds the special token {token}, which would be trained: remove it")
    if row["chosen"] == row["rejected"]:
        raise UserError("'chosen' and 'rejected' are the same text")


def _check(row: dict[str, Any]) -> None:
    """Raises UserError for a pair that is not what its id says, or of no known kind."""
    for key in ("id", *TEXTS):
        if is_broken(row[key]):
            raise UserError(f"{key!r} is not UTF-8 (half of a surrogate pair)")
    if row["kind"] not in KINDS:
        raise UserError(f"'kind' is {row['kind']!r}: it can be {' or '.join(map(repr, KINDS))}")
    if not isinstance(row.get("task", ""), str):
        raise UserError(f"'task' is of type {type(row['task']).__name__}")
    if not isinstance(row.get("held_out", False), bool):
        raise UserError("'held_out' is neither true nor false")
    hashed = bool(re.match("[0-9a-f]{8}", row["id"]))
    if "held_out" not in row and not hashed:
        raise UserError("'id' is no content hash, so 'held_out' (true or false) must stand beside it")
    if is_foreign(row["id"], row["prompt"]):
        raise UserError(
            "'id' is not that of the prompt: one of the two was edited; restore it, or give the row an id "
            "of your own and 'held_out'"
        )


def _check_side(row: dict[str, Any], share: float | None) -> None:
    """Raises UserError for an example that stands on another side than in every run of this share."""
    if share is None or "held_out" not in row or not is_content_id(row["id"]):
        return
    if row["held_out"] != (told := is_held_out(row["id"], share)):
        raise UserError(
            f"'held_out' is {json.dumps(row['held_out'])}, by the id and the run's share of {share} "
            f"it is {json.dumps(told)}: restore it"
        )


def _check_file(data: Path, count: int, trained_on: str | None) -> None:
    """Raises UserError for a file that is another one than it should be."""
    path = data / FILE
    now = sha256_file(path) if path.is_file() else None
    if trained_on is not None:
        if now != trained_on:
            raise UserError(
                f"{display_path(path)} is not the one that the adapter was trained on: "
                "restore it, or train again (train_dpo.py --fresh)"
            )
        return
    wrote = (manifest_in(data) or {}).get("pairs", {})
    # Before there was a hash, the count was recorded alone.
    if wrote.get("sha256", now) != now or wrote.get("count", count) != count:
        raise UserError(
            f"{display_path(path)} is not the one that run {run_of(data)!r} wrote "
            f"({wrote.get('count')} pairs, now {count}): restore it, train on it as it is with "
            "train_dpo.py --edited-pairs, or copy it into data/ under another run's name"
        )


def _why_none(data: Path) -> str:
    """What spoke against the records of a run without pairs."""
    against = final_reasons(read_records(data))
    took = Counter(reason for reasons in against.values() for reason in reasons)
    why = ", ".join(f"{reason} {n}" for reason, n in took.most_common()) or "there are no records either"
    kept = sum(not reasons for reasons in against.values())
    return (
        f"Of {len(against)} records {kept} were kept; against the others spoke: {why}. "
        f"Look at {display_path(data)}/records.jsonl"
    )
