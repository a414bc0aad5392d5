"""Evaluation suites: one file each, one registry. A suite gives numbers with n and interval, and keeps every
answer and verdict in data/<run>/evaluation/<suite>.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, from_json, sha256_file, write_json
from cai.core.run import Run
from cai.core.schema import check
from cai.core.text import one_line
from cai.evaluation.model_pair import ModelPair, source_of
from cai.evaluation.result_store import BASE, TRAINED
from cai.evaluation.suite import Suite
from cai.evaluation.suites import (
    critic_probe,
    critique,
    forgetting,
    ground_truth,
    preference,
    task_success,
)
from cai.models.session import Session

# To add a suite: a file here that ends with its entry, SUITE = Suite(name, about, measure), and its module in
# this line. --suite, its help and the gate of Milestone 3 read the entry.
MODULES = (preference, critique, forgetting, ground_truth, task_success, critic_probe)
SUITES: dict[str, Suite] = {module.SUITE.name: module.SUITE for module in MODULES}
DECIDING = tuple(name for name, suite in SUITES.items() if suite.decides)  # what Milestone 3's gate reads


def measure(
    session: Session,
    records: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]],
    names: Sequence[str],
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Suites on the base and the adapter that a session has just trained; the summaries by name."""
    pair = ModelPair(
        session.run,
        list(pairs),
        list(records),
        session.engine,
        session.prompter,
        session.seed,
        adapter="default",
        limit=limit,
    )
    return evaluate(pair, names)


def evaluate(pair: ModelPair, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Runs suites one after the other and writes evaluation/<suite>.json; the summaries by name.

    A rerun takes the answers and verdicts that are there and makes what is missing."""
    return {name: _one(pair, SUITES[name]) for name in names}


def _one(pair: ModelPair, suite: Suite) -> dict[str, Any]:
    run = pair.run
    if not suite.asks_models:  # what it finds does not depend on a model
        pair = replace(pair, engine=None)
    store = pair.results(suite.name)
    metrics, notes = suite.measure(pair, store)
    summary = {
        "suite": suite.name,
        "run": run.name,
        "adapter": pair.digest,
        "revision": pair.revision,
        "settings": {
            "setup": pair.setup,
            "limit": pair.limit,
            "model": run.manifest.get("model") or run.settings.get("model"),
            "bits": run.settings.get("bits"),
            "seed": pair.seed,
            "marks": marks_hash(run),
        },
        "metrics": {key: metric.row() for key, metric in metrics.items()},
        "notes": {**notes, "rows": len(store.own)},
    }
    write_json(run.data / "evaluation" / f"{suite.name}.json", summary)
    run.log(
        f"\n{suite.name}: {display_path(run.data)}/evaluation/{suite.name}.json and .jsonl "
        f"({len(store.own)} rows, {store.found} of them from before)"
    )
    run.log(table(summary))
    return summary


def marks_hash(run: Run) -> str | None:
    """Of the person's marks that the suites have read; None where there are none."""
    path = source_of(run) / "review.jsonl"
    return sha256_file(path) if path.exists() else None


def load_summary(run_dir: Path, suite: str, adapter: str | None = None) -> dict[str, Any]:
    """What evaluation/<suite>.json of a run says. adapter: the hash of the one it must have been measured on.

    Raises UserError if the suite has not run, or ran on another adapter."""
    path = run_dir / "evaluation" / f"{suite}.json"
    command = f"python scripts/evaluate.py --suite {suite} --run {run_dir.name}"
    try:
        summary = check(from_json(path.read_text(encoding="utf-8")), {"metrics": dict, "settings": dict}, "")
    except FileNotFoundError:
        raise UserError(f"{display_path(path)} is missing: run {command}") from None
    except (ValueError, UserError):
        raise UserError(f"{display_path(path)} is damaged: run {command}") from None
    if adapter is not None and summary.get("adapter") != adapter:
        raise UserError(f"{display_path(path)} was measured on another adapter than the run's: run {command}")
    return summary


SIDES = (f", {BASE}", f", {TRAINED}", ", change")


def table(summary: dict[str, Any]) -> str:
    """The metrics as lines; what was measured on base and trained model stands in one."""
    metrics, lines, seen = summary["metrics"], [], set()
    width = max((len(_stem(name)) for name in metrics), default=0)
    for name in metrics:
        stem = _stem(name)
        if stem in seen:
            continue
        seen.add(stem)
        sides = [side for side in SIDES if stem + side in metrics] if stem != name else [""]
        cells = [f"{side.strip(', ')} {_cell(metrics[stem + side])}".strip() for side in sides]
        lines.append(f"  {stem:{width}}  n {metrics[name]['n']:<5} " + "   ".join(cells))
    return "\n".join([*lines, *(f"  {k}: {one_line(v)}" for k, v in summary["notes"].items())])


def _stem(name: str) -> str:
    return next((name.removesuffix(side) for side in SIDES if name.endswith(side)), name)


def _cell(m: dict[str, Any]) -> str:
    """Value and 95 % interval."""
    if m["value"] is None:
        return "-"
    ends = "" if m["interval"] is None else f" ({m['interval'][0]:.3f} to {m['interval'][1]:.3f})"
    return f"{m['value']:.3f}{ends}"
