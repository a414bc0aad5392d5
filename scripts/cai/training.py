"""DPO and its relatives on preference pairs: TRL trains, this module says on what, from where, and checks
that it did.

`train` is the whole: forecast, start from a stated reference, watch on held-out pairs, checkpoints, resume,
the adapter. `train_dpo` is the bare step that milestone 0 and the pre-flight take.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai import checkpoints, curves, trackers
from cai.displacement import STOP_FALL, forecast
from cai.models import Model, check_adapter
from cai.preferences import Preference, preference
from cai.prompts import INSTRUCTION, RESPONSE
from cai.records import PAIR_KEYS, is_held_out, read
from cai.registry import ModelSpec
from cai.run import UserError, move_aside, sha256_file, shown, write_json
from cai.trainer import LN2, LOG_KEYS, LOSSES, START_TOLERANCE, Log, Watched, build, check_start

__all__ = ["LN2", "START_TOLERANCE", "Preference", "Result", "Settings", "check_start", "preference"]
LEAST_STEPS, MOST_STEPS_OF_FEW, PASSES = 10, 100, 2
FINISHED = "finished"


@dataclass(frozen=True)
class Settings:
    """One training. steps: optimizer steps; a step sees batch_size * gradient_accumulation pairs. loss: a
    key of LOSSES; nll_weight: of the added term, per token. every: steps between two held-out measurements,
    each with a checkpoint (0: neither). patience: see Watch."""

    steps: int
    learning_rate: float
    beta: float
    lora_r: int
    lora_alpha: int
    batch_size: int
    gradient_accumulation: int
    max_length: int
    seed: int = 0
    loss: str = "dpo"
    nll_weight: float = 1.0
    every: int = 0
    patience: int = 3
    stop_fall: float = STOP_FALL

    @classmethod
    def of(cls, spec: ModelSpec, steps: int, seed: int = 0, **overrides: Any) -> Settings:
        values = dict(
            learning_rate=spec.learning_rate,
            beta=spec.beta,
            lora_r=spec.lora_r,
            lora_alpha=spec.lora_alpha,
            batch_size=spec.batch_size,
            gradient_accumulation=spec.gradient_accumulation,
            max_length=spec.max_seq_length,
        )
        return cls(steps=steps, seed=seed, **(values | overrides))

    def checked(self) -> Settings:
        """These settings. Raises UserError for what cannot be trained with."""
        if self.loss not in LOSSES:
            raise UserError(f"loss {self.loss!r}: choose one of {', '.join(LOSSES)}")
        if self.steps < 1:
            raise UserError(f"{self.steps} training steps: at least 1 is needed")
        for name, value in (("learning rate", self.learning_rate), ("beta", self.beta)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value}: it must be above 0")
        if self.lora_r < 1 or self.lora_alpha < 1:
            raise UserError(f"LoRA rank {self.lora_r}, alpha {self.lora_alpha}: both must be at least 1")
        return self


def default_steps(pairs: int, per_step: int) -> int:
    """Two passes over the pairs; a small set is seen more often: a step for each pair, from 10 up to 100
    steps."""
    return max(LEAST_STEPS, min(pairs, MOST_STEPS_OF_FEW), math.ceil(PASSES * pairs / per_step))


def default_every(steps: int) -> int:
    """Ten measurements in a training, and at most 50 steps that a kill can cost."""
    return max(1, min(50, steps // 10))


# ---- pairs ----


def read_pairs(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(pairs to train on, held-out pairs) of a run's data directory.

    Raises UserError for rows that do not fit the schema (file, line and key), and where there is no pair:
    then it says which filter took how many of the records.
    """
    path = data / "pairs.jsonl"
    if not path.is_file():
        raise UserError(
            f"{shown(path)} is missing: generate a run's data first, or name another run with --data"
        )
    rows = read(path, PAIR_KEYS)
    for number, row in enumerate(rows, 1):
        where = f"{shown(path)}, line {number}"
        if not (row["prompt"].startswith(f"{INSTRUCTION} ") and row["prompt"].endswith(f"\n{RESPONSE}")):
            raise UserError(
                f"{where}: 'prompt' is not in the training format (Instruction: ..., newline, Response:)"
            )
        for key in ("chosen", "rejected"):
            if not row[key].startswith(" ") or not row[key].strip():
                raise UserError(f"{where}: {key!r} must be a space and a text")
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{where}: 'chosen' and 'rejected' are the same text")
        if not isinstance(row.get("held_out", False), bool):
            raise UserError(f"{where}: 'held_out' is neither true nor false")
        if "held_out" not in row and not re.match("[0-9a-f]{8}", row["id"]):
            raise UserError(
                f"{where}: 'id' is no content hash, so 'held_out' (true or false) must stand beside it"
            )
    apart = [row["held_out"] if "held_out" in row else is_held_out(row["id"]) for row in rows]
    if not all(apart):
        return [r for r, a in zip(rows, apart, strict=True) if not a], [
            r for r, a in zip(rows, apart, strict=True) if a
        ]
    if rows:
        raise UserError(
            f"{shown(path)}: all {len(rows)} pairs are held out, none is left to train on; generate more"
        )
    from cai.waves import read_records

    records = read_records(data)
    took = Counter(reason for r in records for reason in r["rejected_because"])
    why = ", ".join(f"{reason} {n}" for reason, n in took.most_common()) or "there are no records either"
    raise UserError(
        f"{shown(path)} holds no pair. Of {len(records)} records {sum(r['kept'] for r in records)} were "
        f"kept; against the others spoke: {why}. Look at {shown(data)}/records.jsonl, then generate more"
    )


# ---- training ----


@dataclass
class Result:
    """status: FINISHED, or one of displacement's. step: that of the kept adapter; steps: trained. before,
    after: {"train" | "held_out": Preference} against the state at the start (before: of loss ln 2 by
    definition). taken: the steps of this call alone: fewer where it went on from a checkpoint."""

    status: str
    step: int
    steps: int
    adapter: str
    trained_on: int
    held_out: int
    seconds: float
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    forecast: dict[str, float]
    taken: int = 0


def train(
    model: Model,
    pairs: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    settings: Settings,
    output: Path,
    *,
    resume: bool,
    start: Path | None = None,
    say: Callable[[str], None] = print,
    tracker: str = "none",
) -> Result:
    """Trains a LoRA adapter on pairs and leaves it in `output`, with training.json, training.jsonl and
    curves.png.

    model: without adapters yet; it carries the trained one as "default" afterwards. start: a saved adapter to
    go on from, which is then the reference; else a new adapter on the base model, which is. resume: go on
    from what an earlier call of the same settings left in output; without it that is moved aside. Raises
    UserError for pairs that cannot be trained on, settings that differ from those that output was begun with,
    a start that is not at its reference, a loss that is not finite.
    """
    began = time.perf_counter()
    settings = replace(settings.checked(), every=settings.every or default_every(settings.steps))
    if not pairs:
        raise UserError(
            "there is no pair to train on: " + ("all are held out" if held_out else "pairs.jsonl is empty")
        )
    trackers.check(tracker)
    ahead, fits = forecast(model.tokenizer, pairs, settings.max_length)
    pairs = [p for p, fit in zip(pairs, fits, strict=True) if fit]
    held_fits = forecast(model.tokenizer, held_out, settings.max_length)[1] if held_out else []
    held_out = [p for p, fit in zip(held_out, held_fits, strict=True) if fit]
    if not pairs:
        raise UserError(
            f"all {len(fits)} pairs are longer than {settings.max_length} tokens: use a model of "
            "longer context"
        )
    facts = _facts(model, pairs, held_out, settings, start)
    manifest = _claim(output, facts, resume)
    if manifest["status"] != "begun":
        say(f"this training was done earlier ({manifest['status']}): {shown(output)}")
        shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)
        model.load_adapter(output, "default")
        return Result(**manifest["result"] | {"taken": 0})
    for line in ahead.lines():
        say(f"      {line}")
    settings = begin(model, settings, start)
    state = Watched(model, pairs, held_out, settings, output, _past_redirection(say))
    last = state.resume_at
    if state.watch.verdict or last == settings.steps:  # it was killed between its last step and its end
        state.start()
    else:
        with contextlib.redirect_stdout(io.StringIO()):  # the libraries' own printing
            trainer = build(model, pairs, settings, output, state, trackers.prepare(tracker, output))
            state.trainer = trainer if tracker != "none" else None
            trainer.train(resume_from_checkpoint=str(checkpoints.place(output, last)) if last else None)
        last = trainer.state.global_step
    if "ref" in model.model.peft_config:
        model.model.delete_adapter("ref")
    status = state.watch.verdict or FINISHED
    kept = state.kept(last)
    checkpoints.load_weights(model.model, checkpoints.place(output, kept))
    after = {name: asdict(p) for name, p in state.measure_all().items()}
    rows, title = read(output / "training.jsonl", LOG_KEYS), f"{settings.loss}, {len(pairs)} pairs"
    curves.draw(rows, output / "curves.png", title)
    result = Result(
        status=status,
        step=kept,
        steps=last,
        adapter=model.save_adapter(output),
        trained_on=len(pairs),
        held_out=len(held_out),
        seconds=round(time.perf_counter() - began, 1),
        before=state.before,
        after=after,
        forecast=asdict(ahead),
        taken=last - state.resume_at,
    )
    write_json(output / "training.json", manifest | {"status": status, "result": asdict(result)})
    shutil.rmtree(output / checkpoints.DIRECTORY)
    return result


def train_dpo(
    model: Model, pairs: Sequence[dict[str, str]], settings: Settings, output: Path
) -> list[dict[str, Any]]:
    """Trains the adapter "default" of the model and returns TRL's log, a row a step; each row is also
    appended to output/training.jsonl as it comes. The reference is the adapter as it was at the start.
    Nothing is held out, saved or resumed.

    Raises UserError without pairs, when the loss does not start at ln 2, and when it stops being finite.
    """
    if not pairs:
        raise UserError(
            "there are no preference pairs to train on: see rejected_because in records.jsonl for what took "
            "them"
        )
    settings.checked()
    output.mkdir(parents=True, exist_ok=True)
    (output / "training.jsonl").unlink(missing_ok=True)  # this training starts at step 0
    log = Log(settings, output)
    with contextlib.redirect_stdout(io.StringIO()):  # TRL's own printing of the log
        build(model, pairs, settings, output, log, []).train()
    if "ref" in model.model.peft_config:
        model.model.delete_adapter("ref")  # TRL's copy of the adapter as it was at the start
    shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)  # the trainer's own, empty
    return log.rows


def begin(model: Model, settings: Settings, start: Path | None) -> Settings:
    """Gives the model the trainable adapter "default": a new one, or one with the weights of a saved adapter,
    whose rank and alpha the settings then have."""
    if start is not None:
        rank, alpha = lora_of(start)
        settings = replace(settings, lora_r=rank, lora_alpha=alpha)
    model.add_adapter(r=settings.lora_r, alpha=settings.lora_alpha, seed=settings.seed)
    if start is not None:  # into an adapter that Unsloth has made, so that both ways take the same kernels
        checkpoints.load_weights(model.model, start)
    return settings


def lora_of(adapter: Path) -> tuple[int, int]:
    """(rank, alpha) of a saved adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return config["r"], config["lora_alpha"]


def _past_redirection(say: Callable[[str], None]) -> Callable[[str], None]:
    """say, to the standard output of now, whatever it is redirected to later."""
    out = sys.stdout

    def aloud(text: str) -> None:
        with contextlib.redirect_stdout(out):
            say(text)

    return aloud


def _facts(
    model: Model, pairs: Sequence, held_out: Sequence, settings: Settings, start: Path | None
) -> dict[str, Any]:
    """What a training depends on, as its manifest keeps it."""

    def digest(rows: Sequence) -> str:
        texts = [[p[k] for k in ("prompt", "chosen", "rejected")] for p in rows]
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
        "from": check_adapter(start, model.spec, model.revision)["sha256"] if start else None,
        "pairs": digest(pairs),
        "held_out": digest(held_out),
    }


def _claim(output: Path, facts: dict[str, Any], resume: bool) -> dict[str, Any]:
    """training.json of the training that goes on here, or a new one."""
    path = output / "training.json"
    if not resume:
        move_aside(output)
    output.mkdir(parents=True, exist_ok=True)
    facts = json.loads(json.dumps(facts))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        old = manifest["settings"]
    except FileNotFoundError:
        if (output / checkpoints.WEIGHTS).exists():
            raise UserError(
                f"{shown(output)} holds an adapter of another making: --fresh moves it aside, --run "
                f"another-name "
                "keeps it"
            ) from None
        manifest = {"settings": facts, "status": "begun"}
        write_json(path, manifest)
        return manifest
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError):
        raise UserError(f"{shown(path)} is damaged: --fresh moves {shown(output)} aside") from None
    changed = sorted(k for k in old.keys() | facts.keys() if old.get(k) != facts.get(k))
    if changed:
        what = "; ".join(f"{k} was {old.get(k)!r}, now {facts.get(k)!r}" for k in changed)
        raise UserError(
            f"{shown(output)} was trained with other settings: {what}. Give the old ones to resume, "
            f"or --fresh to move "
            "it aside (the data stay)"
        )
    if manifest["status"] != "begun" and (
        not (output / checkpoints.WEIGHTS).exists()
        or sha256_file(output / checkpoints.WEIGHTS) != manifest["result"]["adapter"]
    ):
        raise UserError(
            f"{shown(output)} no longer holds the adapter that was saved: --fresh trains it again"
        )
    return manifest
