"""training.json: what a training depends on, and what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, move_aside, write_json
from cai.core.schema import misfit
from cai.models.model import Model, check_adapter, saved_hash
from cai.prompts.training_format import training_pair
from cai.training import checkpoints
from cai.training.implicit_reward import Preference
from cai.training.settings import Settings

NAME, BEGUN = "training.json", "begun"
NUMBER = (int, float)
KEYS = {"settings?": {"beta?": NUMBER, "loss?": str}, "status?": str, "pairs_file?": str}
_PREFERENCE = {field.name: NUMBER for field in fields(Preference)}
RESULT_KEYS = {
    **dict.fromkeys(("status", "adapter"), str),
    **dict.fromkeys(("step", "steps", "trained_on", "held_out", "seconds"), NUMBER),
    **dict.fromkeys(("before", "after"), {"train": _PREFERENCE, "held_out?": _PREFERENCE}),
    "forecast": {str: NUMBER},
}


def facts_of(
    model: Model,
    pairs: Sequence[Mapping[str, Any]],
    held_out: Sequence[Mapping[str, Any]],
    settings: Settings,
    start: Path | None,
) -> dict[str, Any]:
    """What a training depends on. Raises UserError for an example on both sides, a start of another base."""

    def digest(rows: Sequence[Mapping[str, Any]]) -> str:
        texts = [list(training_pair(p).values()) for p in rows]  # as they are trained on
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    both = {p["id"] for p in pairs if "id" in p} & {p["id"] for p in held_out if "id" in p}
    if both:
        raise UserError(
            f"{len(both)} examples ({min(both)}, ...) are both held out and to be trained on: mend held_out"
        )
    return {
        **asdict(settings),
        "model": model.spec.name,
        "bits": model.bits,
        "revision": model.revision,
        "from": check_adapter(start, model.spec, model.source)["sha256"] if start else None,
        "pairs": digest(pairs),
        "held_out": digest(held_out),
    }


def claim(output: Path, facts: dict[str, Any], resume: bool, pairs_file: str | None = None) -> dict[str, Any]:
    """The manifest of the training that goes on here, or a new one. pairs_file: the hash of the file that the
    pairs come from, which evaluation compares. Raises UserError for one that was begun with other facts, is
    damaged, or has lost its adapter."""
    path, here = output / NAME, display_path(output)
    if not resume:
        move_aside(output)
    output.mkdir(parents=True, exist_ok=True)
    facts = json.loads(json.dumps(facts))
    manifest = read_training(output)
    if manifest is None:
        if (output / checkpoints.WEIGHTS).exists():
            raise UserError(
                f"{here} holds an adapter of another making: "
                "--fresh moves it aside, --run another-name keeps it"
            )
        manifest = {"settings": facts, "status": BEGUN} | ({"pairs_file": pairs_file} if pairs_file else {})
        write_json(path, manifest)
        return manifest
    if wrong := misfit(manifest, {"settings": dict, "status": str}):
        raise _damaged(output, wrong)
    old = manifest["settings"]
    changed = sorted(k for k in old.keys() | facts.keys() if old.get(k) != facts.get(k))
    if changed:
        what = "; ".join(f"{k} was {old.get(k)!r}, now {facts.get(k)!r}" for k in changed)
        raise UserError(
            f"{here} was trained with other settings: {what}. "
            "Give the old ones to resume, or --fresh to move it aside (the data stay)"
        )
    if manifest["status"] != BEGUN and (lost := _lost(output, manifest)):
        raise UserError(
            f"{here} no longer holds the adapter that was saved ({lost}): --fresh trains it again"
        )
    if manifest["status"] != BEGUN:
        wrong, result = misfit(manifest, {"result": RESULT_KEYS}), manifest["result"]
        if wrong or result["before"].keys() != result["after"].keys():
            raise _damaged(output, wrong or "'before' and 'after' are not of the same pairs")
    return manifest


def read_training(output: Path) -> dict[str, Any] | None:
    """training.json beside an adapter, None where there is none. Raises UserError if it is damaged."""
    try:
        manifest = json.loads((output / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        manifest = None
    if wrong := misfit(manifest, KEYS):
        raise _damaged(output, wrong)
    return manifest


def is_finished(output: Path) -> bool:
    """Whether a training has ended here, and its adapter is there as it was saved."""
    try:
        manifest = read_training(output)
        return manifest is not None and manifest.get("status", BEGUN) != BEGUN and not _lost(output, manifest)
    except UserError:
        return False


def _damaged(output: Path, wrong: str) -> UserError:
    return UserError(
        f"{display_path(output / NAME)} is damaged: --fresh moves {display_path(output)} aside, "
        f"unless it is restored ({wrong})"
    )


def _lost(output: Path, manifest: Mapping[str, Any]) -> str | None:
    """Why this is not the adapter that the training has saved."""
    if wrong := misfit(manifest, {"result": {"adapter": str}}):
        raise _damaged(output, wrong)
    try:
        other = saved_hash(output) != manifest["result"]["adapter"]
    except UserError as error:
        return str(error)
    return "it is another one" if other else None
