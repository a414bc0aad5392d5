"""training.json: what a training depends on, and what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, from_json, move_aside, sha256_file, write_json
from cai.models.model import Model, check_adapter
from cai.prompts.training_format import training_pair
from cai.training import checkpoints
from cai.training.settings import Settings

NAME, BEGUN = "training.json", "begun"


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


def claim(output: Path, facts: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The manifest of the training that goes on here, or a new one. Raises UserError for one that was begun
    with other facts, is damaged, or has lost its adapter."""
    path, here = output / NAME, display_path(output)
    if not resume:
        move_aside(output)
    output.mkdir(parents=True, exist_ok=True)
    facts = json.loads(json.dumps(facts))
    try:
        manifest = from_json(path.read_text(encoding="utf-8"))
        old, status = dict(manifest["settings"]), manifest["status"]
    except FileNotFoundError:
        if (output / checkpoints.WEIGHTS).exists():
            raise UserError(
                f"{here} holds an adapter of another making: "
                "--fresh moves it aside, --run another-name keeps it"
            ) from None
        manifest = {"settings": facts, "status": BEGUN}
        write_json(path, manifest)
        return manifest
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{display_path(path)} is damaged: --fresh moves {here} aside") from None
    changed = sorted(k for k in old.keys() | facts.keys() if old.get(k) != facts.get(k))
    if changed:
        what = "; ".join(f"{k} was {old.get(k)!r}, now {facts.get(k)!r}" for k in changed)
        raise UserError(
            f"{here} was trained with other settings: {what}. "
            "Give the old ones to resume, or --fresh to move it aside (the data stay)"
        )
    if status != BEGUN and not _is_saved(output, manifest):
        raise UserError(f"{here} no longer holds the adapter that was saved: --fresh trains it again")
    return manifest


def is_finished(output: Path) -> bool:
    """Whether a training has ended here, and its adapter is there as it was saved."""
    try:
        manifest = from_json((output / NAME).read_text(encoding="utf-8"))
        return manifest["status"] != BEGUN and _is_saved(output, manifest)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _is_saved(output: Path, manifest: Mapping[str, Any]) -> bool:
    weights = output / checkpoints.WEIGHTS
    return weights.exists() and sha256_file(weights) == manifest["result"]["adapter"]
