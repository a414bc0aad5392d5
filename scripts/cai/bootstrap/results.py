"""results.json of a plan: what it has, as far as a report reads it (whole: specs/progressive.md)."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from cai.bootstrap.controls import ARMS
from cai.bootstrap.stage_gates import CARRIED, GO, MEASURED, NO_GO, STARVED, UNDECIDED
from cai.core.errors import UserError
from cai.core.files import from_json
from cai.core.stats import Metric
from cai.evaluation.gates import Criterion
from cai.evaluation.guardrails import Finding

FORMAT = 1


class Gate(BaseModel):
    decision: Literal[GO, NO_GO, UNDECIDED]
    criteria: list[Criterion]


class Training(BaseModel):
    status: str
    steps: int
    step: int  # whose adapter was kept


class BothModels(BaseModel):
    base: Metric
    trained: Metric


class Average(BaseModel):
    base: Metric | None
    trained: Metric | None
    predecessor: Metric | None


class Row(BaseModel):
    """A stage or a control."""

    seed: int
    stage: str
    arm: Literal[tuple(ARMS)]
    run: str
    state: Literal[MEASURED, STARVED, CARRIED]
    parent: str | None
    roles: dict[str, str]
    examples: int
    kept: int
    pairs: int
    anchors: int
    training_pairs: int
    dollars: float
    seconds: float
    tokens: dict[str, int]
    data_tokens: int
    label_accuracy: Metric | None
    first_answers: Metric | None
    success: dict[str, BothModels]
    average: Average
    safety: dict[str, dict[str, Metric]]
    probes: dict[str, dict[str, Metric]]
    training: Training | None
    guardrails: list[Finding]
    gate: Gate
    rolled_back: bool


class PlannedGate(BaseModel):
    safer: bool


class PlannedStage(BaseModel):
    name: str
    title: str
    tasks: list[str]
    gate: PlannedGate


class Planned(BaseModel):
    name: str
    title: str
    question: str
    stages: list[PlannedStage]


class Results(BaseModel):
    format: Literal[FORMAT]
    plan: Planned
    model: str
    bits: int
    seeds: list[int]
    dollars: float
    seconds: float
    finished: bool
    stopped: str | None
    runs: list[Row]


def read(directory: Path) -> dict[str, Any]:
    """results.json of a plan, checked. Raises UserError for a file that is not there or does not fit."""
    path = directory / "results.json"
    try:
        text = path.read_bytes()
        Results.model_validate_json(text, strict=True)
        results = from_json(text)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the plan first (python scripts/bootstrap.py)") from None
    except ValidationError as error:
        raise UserError(
            f"{path}{_mistake(error)}; run the plan's command again, it writes the file anew"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; run the plan's command again, it writes the file anew") from None
    stages = {s["name"] for s in results["plan"]["stages"]}
    for number, row in enumerate(results["runs"], 1):
        if row["stage"] not in stages:
            raise UserError(f"{path}, run {number}: stage {row['stage']!r}: not of this plan")
    return results


def _mistake(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where, key = list(first["loc"]), ""
    if where[:1] == ["runs"] and len(where) > 1:
        key, where = f", run {where[1] + 1}", where[2:]
    name = ".".join(map(str, where))
    if first["type"] == "json_invalid":
        return " is damaged"
    if first["type"] == "missing":
        return f"{key}: the key {name!r} is missing"
    return f"{key}: {name} {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
