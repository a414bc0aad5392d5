"""Runs of format 1, whose pairs held texts in the training format, made readable."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import directories, display_path, move_aside, write_json
from cai.core.run import lock_run
from cai.core.schema import FORMAT, PAIR_KEYS
from cai.generation.records import RECORDS
from cai.models.registry import REGISTRY, ModelSpec, with_registry
from cai.prompts.training_format import training_completion, training_prompt

# What of an old record is read here.
READ = {
    **dict.fromkeys(("id", "instruction", "initial_answer", "revised_answer"), str),
    "adapter": (str, type(None)),
}
RENAMED = {"verdict": "decision", "direction": "label_accuracy", "sentinels": "guardrails"}


def convert(name: str) -> str:
    """Writes data/<run>/ anew in this format; the old directory is moved aside, and its new path given back.
    Killed in the middle, it can be called again.

    Raises UserError if there is no such run, or it is of another format than 1."""
    with lock_run(name):
        data = directories(name)[0]
        scratch = data.with_name(data.name + ".part")
        if data.exists() or not _is_whole(scratch):
            _write(name, data, scratch)
            old = move_aside(data)
        else:  # killed between the two moves
            aside = [p for p in data.parent.glob(f"{data.name}~*") if p.name.split("~")[-1].isdecimal()]
            old = max(aside, key=lambda path: int(path.name.split("~")[-1]))
        scratch.rename(data)
    return display_path(old)


def _is_whole(scratch: Path) -> bool:
    """Whether all of a converted run is there: run.json is written last."""
    path = scratch / "run.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("format") == FORMAT


def _write(name: str, data: Path, scratch: Path) -> None:
    """The run in this format, beside its directory."""
    try:
        text = (data / "run.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"there is no run {name!r} ({display_path(data)}/run.json)") from None
    except ValueError:
        raise UserError(f"{display_path(data)}/run.json is damaged: restore it") from None
    if manifest.get("format", 1) != 1:
        raise UserError(f"run {name!r} is of format {manifest['format']} already")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(data, scratch, symlinks=True)
    for path in data.glob("records*.jsonl"):
        if RECORDS.fullmatch(path.name):
            _rewrite(scratch / path.name, [_record(row, text) for row in jsonl.read(path, READ)])
    if (pairs := data / "pairs.jsonl").exists():
        _rewrite(scratch / pairs.name, [_pair(row) for row in jsonl.read(pairs, PAIR_KEYS)])
    settings = manifest["settings"]
    if "kind" in settings:  # a run that generates has the registry's values among its settings
        model = manifest.get("model") or settings.get("model")
        spec = REGISTRY.get(model) or ModelSpec(model, model, kind=settings["kind"])
        manifest["settings"] = with_registry(settings, spec)
    _name_warmup(directories(name)[1] / "training.json")
    for key in ("gate", "data_gate", "result", "row"):
        if key in manifest:
            manifest[key] = _renamed(manifest[key])
    write_json(scratch / "run.json", manifest | {"format": FORMAT})


def _name_warmup(path: Path) -> None:
    """In the checkpoints' own manifest: it was a constant, and is the registry's now."""
    try:
        training = json.loads(path.read_text(encoding="utf-8"))
        training["settings"].setdefault("warmup", ModelSpec.warmup)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return  # nothing trained, or damaged: train_dpo.py says so
    write_json(path, training)


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.unlink()
    jsonl.append(path, rows)


def _record(row: dict[str, Any], manifest: str) -> dict[str, Any]:
    pair, revised = None, row["revised_answer"]
    if revised:
        pair = {"prompt": row["instruction"], "chosen": revised, "rejected": row["initial_answer"]}
    roles = {part: _hash(name, manifest) for part, name in (row.pop("writers", None) or {}).items()}
    changed = {"preference_pair": pair, "adapter": _hash(row["adapter"], manifest), "roles": roles}
    return {"format": FORMAT} | row | changed | {"engine": "local"}


def _hash(name: str | None, manifest: str) -> str | None:
    """Adapters of stages were named by the first 12 digits of their hashes, which stand in the manifest."""
    if name is None:
        return None
    digits = name.removeprefix("stage-")
    whole = re.search(rf"\b{re.escape(digits)}[0-9a-f]{{{64 - len(digits)}}}\b", manifest)
    return whole[0] if whole else digits


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    before, after = training_prompt("\0").split("\0")
    gap = training_completion("")
    texts = {key: row[key].removeprefix(gap) for key in ("chosen", "rejected")}
    return row | {"prompt": row["prompt"].removeprefix(before).removesuffix(after)} | texts


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {RENAMED.get(key, key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value
