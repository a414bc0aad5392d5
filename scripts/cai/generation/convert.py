"""Runs of format 1, whose pairs held texts in the training format, made readable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import directories, display_path, move_aside, write_json
from cai.core.schema import FORMAT
from cai.models.registry import resolve, row_settings
from cai.prompts.training_format import training_completion, training_prompt

RENAMED = {"verdict": "decision", "direction": "label_accuracy", "sentinels": "guardrails"}


def convert(name: str) -> str:
    """Writes data/<run>/ anew in this format; the old directory is moved aside, and its new path given back.

    Raises UserError if there is no such run, or it is of another format than 1."""
    data = directories(name)[0]
    try:
        manifest = json.loads((data / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no run {name!r} ({display_path(data)}/run.json)") from None
    except ValueError:
        raise UserError(f"{display_path(data)}/run.json is damaged: restore it") from None
    if manifest.get("format", 1) != 1:
        raise UserError(f"run {name!r} is of format {manifest['format']} already")
    scratch = data.with_name(data.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(data, scratch)
    for path in scratch.glob("records*.jsonl"):
        _rewrite(path, [_record(row) for row in jsonl.read(path, {"id": str})])
    if (pairs := scratch / "pairs.jsonl").exists():
        _rewrite(pairs, [_pair(row) for row in jsonl.read(pairs, {"id": str})])
    model = manifest.get("model") or manifest["settings"].get("model")
    if "kind" in manifest["settings"]:  # a run that generates has the registry's values among its settings
        spec = resolve(model, instruct=manifest["settings"]["kind"] == "instruct")
        manifest["settings"] = row_settings(spec) | manifest["settings"]
    for key in ("gate", "data_gate", "result", "row"):
        if key in manifest:
            manifest[key] = _renamed(manifest[key])
    write_json(scratch / "run.json", {"format": FORMAT} | manifest)
    old = move_aside(data)
    scratch.rename(data)
    return display_path(old)


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.unlink()
    jsonl.append(path, rows)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    pair, revised = None, row["revised_answer"]
    if revised:
        pair = {"prompt": row["instruction"], "chosen": revised, "rejected": row["initial_answer"]}
    roles = {part: _hash(name) for part, name in row.pop("writers", {}).items()}
    changed = {"preference_pair": pair, "adapter": _hash(row["adapter"]), "roles": roles, "engine": "local"}
    return {"format": FORMAT} | row | changed


def _hash(name: str | None) -> str | None:
    """Adapters of stages were named by the first 12 digits of their hashes."""
    return name and name.removeprefix("stage-")


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    before, after = training_prompt("\0").split("\0")
    gap = training_completion("")
    texts = {key: row[key].removeprefix(gap) for key in ("chosen", "rejected")}
    return row | {"prompt": row["prompt"].removeprefix(before).removesuffix(after)} | texts


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED.get(key, key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value
