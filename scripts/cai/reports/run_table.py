"""All runs in a table: what was decided, on how much, from which parent, at what price."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cai.core import jsonl
from cai.core.errors import UserError
from cai.core.files import directories, run_of
from cai.core.run import manifest_in
from cai.core.text import format_table, one_line
from cai.evaluation.gates import of_another_adapter
from cai.training.manifest import read_training

NONE = "-"
HEADING = ("run", "decision", "records/pairs", "loss", "parent", "engine", "model", "cost")
NUMBERS = (2, 3, 7)  # columns


def table() -> str:
    """data/<run>/run.json and data/<plan>/<stage>/run.json, the newest last; then a line for each that cannot
    be read."""
    root = directories("")[0]
    found, broken = {}, []
    for path in sorted([*root.glob("*/run.json"), *root.glob("*/*/run.json")]):
        name = run_of(path.parent)
        try:
            found[name] = manifest_in(path.parent) or {}
        except (UserError, OSError) as error:
            broken.append(f"{name}: {error}")
    order, adapters = sorted(found, key=lambda name: str(found[name].get("started", ""))), {}
    for name in order:  # a stage that carries an adapter on has the same one as the run that trained it
        adapters.setdefault(str(found[name].get("adapter")), name)
    rows = []
    for name in order:
        try:
            rows.append(row(name, found[name], adapters))
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            broken.append(f"{name}: {root / name}/run.json is damaged: its values are not what a run writes")
    lines = [format_table([HEADING, *rows], numbers=NUMBERS)] if rows else []
    return "\n".join([*lines, *map(one_line, broken)])


def row(name: str, manifest: Mapping[str, Any], adapters: Mapping[str, str]) -> tuple[str, ...]:
    """A cell for each of HEADING. adapters: hash -> name of the run that trained it."""
    counts, training = manifest.get("counts") or {}, manifest.get("training") or {}
    records = counts.get("records", counts.get("tried"))
    pairs = (manifest.get("pairs") or {}).get("count", counts.get("kept"))
    if pairs is None and "trained_on" in training:
        pairs = training["trained_on"] + training["held_out"]
    elif pairs is None:  # a control that takes the main stage's records
        pairs = (manifest.get("result") or {}).get("training_pairs")
    loss = last_loss(name, training)
    bits = manifest.get("bits")
    return (
        name,
        decision(name, manifest),
        f"{NONE if records is None else int(records)}/{NONE if pairs is None else int(pairs)}",
        NONE if loss is None else f"{loss:.3f}",
        parent(name, manifest, adapters),
        f"{engine(name, manifest)}{f', {int(bits)} bits' if bits else ''}",
        str(manifest.get("model") or NONE),
        f"${float(manifest['totals']['dollars']):.2f}" if "totals" in manifest else NONE,
    )


def decision(name: str, manifest: Mapping[str, Any]) -> str:
    """The gate's, or the data's where there is no other; NONE for a gate that speaks of another adapter."""
    gate = manifest.get("gate") or manifest.get("data_gate") or {}
    return NONE if of_another_adapter(name, gate, as_recorded=True) else str(gate.get("decision", NONE))


def last_loss(name: str, training: Mapping[str, Any]) -> float | None:
    """Of the last step that was trained."""
    try:
        log = jsonl.read(directories(name)[1] / "training.jsonl", {"step": int})
    except UserError:
        log = []
    losses = [r["loss"] for r in log or training.get("log", []) if r.get("kind", "train") == "train"]
    return float(losses[-1]) if losses else None


def parent(name: str, manifest: Mapping[str, Any], adapters: Mapping[str, str]) -> str:
    """The run whose adapter a run was trained from, and the one whose data it took."""
    settings, found = manifest["settings"], []
    try:
        training = read_training(directories(name)[1])
    except UserError:
        training = None
    start = settings.get("parent") if training is None else training.get("settings", {}).get("from")
    if start:
        found.append(adapters.get(start, start[:12]))
    if settings.get("data", name) != name:
        found.append(f"data of {settings['data']}")
    return ", ".join(found) or NONE


def engine(name: str, manifest: Mapping[str, Any]) -> str:
    """Its kind, as the records have it."""
    if "engine" in manifest:
        return str(manifest["engine"])
    for path in sorted(directories(name)[0].glob("records*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
        try:
            return str(json.loads(first)["engine"])
        except (ValueError, KeyError, TypeError):
            continue
    return NONE
