"""TRL's trainers as this project uses them: from a stated reference, logged step by step, watched,
resumable."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.jsonl import append, read
from cai.models.local_engine import LocalEngine
from cai.models.model import Model
from cai.training import checkpoints
from cai.training.implicit_reward import Preference, prefer, scores
from cai.training.likelihood_displacement import DISPLACED, FEW, Watch
from cai.training.settings import LN2, START_TOLERANCE, Settings

MEASURED = 200  # pairs of a kind that a measurement takes at most: an accuracy to within 7 points
LOG_KEYS = {"kind": str, "step": int}


def _callback(log: Log, model: Model):
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            log.start()
            model.for_training()

        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = log.due(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            """After each step, and before a checkpoint of it is written."""
            if "loss" not in logs:
                return
            log.step(state.global_step, logs)
            if not log.due(state.global_step):
                return
            verdict = log.measure(state.global_step)
            model.for_training()
            if verdict:
                control.should_training_stop = True
                control.should_save = verdict != DISPLACED

        def on_save(self, args, state, control, **kwargs):
            log.saved(state.global_step)

    return Callback()


def check_start(row: dict[str, Any]) -> None:
    """Raises UserError unless the first step's loss is ln 2 and its margin 0: the policy starts as its own
    reference. With an NLL term the loss is more than ln 2, but margin and rewards must still be 0."""
    away = max(abs(row.get(key, 0.0)) for key in ("margins", "chosen", "rejected"))
    if away > START_TOLERANCE or (not row.get("nll") and abs(row["loss"] - LN2) > START_TOLERANCE):
        raise UserError(
            f"training does not start from its reference: at step 0 the loss is {row['loss']:.4f} (ln 2 is "
            f"{LN2:.4f}) and "
            f"the margin {row['margins']:.4f} (0): the adapter and the reference differ"
        )


# ---- what TRL calls back ----


@dataclass
class Log:
    """Writes every logged step to training.jsonl; checks the first one and that the loss stays finite."""

    settings: Settings
    output: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def start(self) -> None:
        """Before the first step of this process."""

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        append(self.output / "training.jsonl", [row])

    def step(self, number: int, logs: dict[str, Any]) -> None:
        row = {"kind": "train", "step": number}
        row |= {k.removeprefix("rewards/"): float(v) for k, v in logs.items()}
        row.pop("num_tokens", None)  # TRL counts them from the process's start, not the training's
        if self.settings.loss == "orpo":  # TRL logs these per token there
            row = {k.replace("logps/", "logps per token/"): v for k, v in row.items()}
        if number == 1 and self.settings.loss != "orpo":  # ORPO has no reference to start from
            check_start(row | {"nll": self.settings.loss == "dpo+nll"})
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"the {self.settings.loss} loss is {row['loss']} at step {number}: lower the learning rate "
                f"({self.settings.learning_rate})"
            )
        self.write(row)

    def due(self, step: int) -> bool:
        return False

    def measure(self, step: int) -> str | None:
        return None

    def saved(self, step: int) -> None:
        """After TRL has written a checkpoint."""


class Watched(Log):
    """And measures the held-out pairs, decides when to stop, and knows where to go on."""

    def __init__(
        self, model: Model, pairs: Sequence, held_out: Sequence, settings: Settings, output: Path, say
    ):
        super().__init__(settings, output)
        self.model, self.engine, self.say, self.trainer = model, LocalEngine(model), say, None
        self.sets = {"train": _some(pairs), "held_out": _some(held_out)}
        self.sets = {name: rows for name, rows in self.sets.items() if rows}
        self.watch = Watch(settings.patience, stop_fall=settings.stop_fall)
        self.reference: dict[str, list] = {}
        self.before: dict[str, dict[str, float]] = {}
        self.resume_at = max(checkpoints.steps(output), default=0)
        checkpoints.prune(output, checkpoints.steps(output))  # what a crash left half-written
        log = output / "training.jsonl"
        rows = [r for r in read(log, LOG_KEYS) if r["step"] <= self.resume_at] if self.resume_at else []
        part = log.with_name(log.name + ".part")
        part.unlink(missing_ok=True)
        append(part, rows)
        part.replace(log)  # the rows after the checkpoint come again
        for row in rows:
            self.rows.append(row)
            if row["kind"] == "held_out":
                self.watch.see(row["step"], row["n"], row["loss"], row["fall"])
        if self.resume_at:
            say(f"      goes on from the checkpoint of step {self.resume_at} of {settings.steps}")
        else:
            shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)

    def start(self) -> None:
        """The state at the start, which all later measurements are against; then the checkpoint's, if one
        goes on."""
        self.reference = {name: scores(self.engine, rows, "default") for name, rows in self.sets.items()}
        self.before = {name: asdict(prefer(s, s, self.settings.beta)) for name, s in self.reference.items()}
        if self.resume_at:
            checkpoints.load_weights(self.model.model, checkpoints.place(self.output, self.resume_at))
            return
        start = checkpoints.place(self.output, 0)
        checkpoints.save_weights(self.model.model, start)
        checkpoints.complete(start)
        n = len(self.sets.get("held_out", []))
        if n < FEW:
            self.say(f"      {n} held-out pairs: too few to stop the training by ({FEW} are needed)")
        self.measure(0)

    def saved(self, step: int) -> None:
        checkpoints.complete(checkpoints.place(self.output, step))
        checkpoints.prune(self.output, {0, self.watch.best_step, step})

    def measure_all(self) -> dict[str, Preference]:
        return {
            name: prefer(scores(self.engine, rows, "default"), self.reference[name], self.settings.beta)
            for name, rows in self.sets.items()
        }

    def due(self, step: int) -> bool:
        return step % max(1, self.settings.every) == 0 or step == self.settings.steps

    def measure(self, step: int) -> str | None:
        """One held-out measurement; the watch's verdict."""
        if "held_out" not in self.sets:
            return None
        now = scores(self.engine, self.sets["held_out"], "default")
        found = prefer(now, self.reference["held_out"], self.settings.beta)
        warning = self.watch.see(step, found.n, found.loss, found.fall)
        self.write({"kind": "held_out", "step": step, **asdict(found)})
        self.say(
            f"      step {step:>4} of {self.settings.steps}: held out: loss {found.loss:.4f}, "
            f"margin {found.margin:+.3f}, "
            f"accuracy {found.accuracy:.2f}, chosen {found.chosen:.1f} ({-found.fall:+.3f} a "
            f"token), rejected "
            f"{found.rejected:.1f}"
        )
        if warning:
            self.say(f"      {warning}")
        if self.trainer is not None:
            self.trainer.log({f"held_out/{k}": v for k, v in asdict(found).items()})
        return self.watch.verdict

    def kept(self, last: int) -> int:
        """The step whose weights are the result: the last; when stopped, the last good or the best one."""
        if self.watch.verdict == DISPLACED:
            return max(checkpoints.steps(self.output))
        return self.watch.best_step if self.watch.verdict else last


def _some(pairs: Sequence[dict]) -> list[dict]:
    """At most MEASURED pairs, chosen by their prompts' hash."""
    return sorted(pairs, key=lambda p: hashlib.sha256(p["prompt"].encode()).digest())[:MEASURED]
