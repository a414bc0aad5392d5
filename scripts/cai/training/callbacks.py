"""What happens around TRL's steps: each is logged and checked, held-out pairs are measured and may stop the
training, checkpoints tell where it goes on."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.jsonl import append, read
from cai.costs.budget import Budget
from cai.models.engine import Engine, Score
from cai.models.model import Model
from cai.training import checkpoints
from cai.training.implicit_reward import Preference, prefer, scores
from cai.training.likelihood_displacement import DISPLACED, FEW, Watch
from cai.training.losses import LOSSES
from cai.training.settings import Settings
from cai.training.start import Start

MEASURED = 200  # pairs of a kind that a measurement takes at most: an accuracy to within 7 points
LOG_KEYS = {"kind": str, "step": int}


@dataclass
class Log:
    """Writes every logged step to training.jsonl; checks the first one and that the loss stays finite.
    first: what the first step has seen, of a loss with a reference."""

    settings: Settings
    output: Path
    say: Callable[[str], None] = field(default=lambda text: None, kw_only=True)
    first: Start | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        append(self.output / "training.jsonl", [row])

    def step(self, number: int, logs: dict[str, Any]) -> None:
        loss = LOSSES[self.settings.loss]
        row = {"kind": "train", "step": number}
        row |= {k.removeprefix("rewards/"): float(v) for k, v in logs.items()}
        row.pop("num_tokens", None)  # TRL counts them from the process's start, not the training's
        row = {loss.renamed.get(k, k): v for k, v in row.items()}
        if number == 1 and self.first is not None:
            self.say(f"      {self.first.check(row, loss)}")
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                what = f"the {self.settings.loss} loss" if name == "loss" else name.replace("_", " ")
                raise UserError(
                    f"{what} is {value} at step {number}: "
                    f"lower the learning rate ({self.settings.learning_rate})"
                )
        self.write(row)

    @property
    def step_reached(self) -> int:
        return max((row["step"] for row in self.rows if row["kind"] == "train"), default=0)

    # What Watched adds.

    def start(self) -> None:
        """Before the first step of this process."""

    def due(self, step: int) -> bool:
        """Whether a step is measured after, and saved."""
        return False

    def measure(self, step: int) -> str | None:
        """One held-out measurement; why training has to stop, None if it need not."""

    def affords_another(self, step: int) -> bool:
        """Whether the budget lets training go on after a step."""
        return True

    def saved(self, step: int) -> None:
        """After TRL has written a checkpoint."""


class Watched(Log):
    """And measures the held-out pairs, decides when to stop, and knows where to go on.

    It measures through the engine and not by TRL's eval_dataset. That was tried with TRL 1.15: the adapter is
    the same to the byte, but (1) eval_loss holds the likelihood term of dpo+nll, whose parts are not logged,
    so early stopping would watch another loss; (2) rewards and log-probabilities are means of batches' means,
    which the last, smaller batch distorts (11 pairs in batches of 8: a margin of 0.227 for 0.212), and over
    ranks they are gathered with its padding (`gather`, not `gather_for_metrics`); (3) ORPO has no reference
    there to measure a fall against; (4) `likelier` is not among them; (5) the reference's scores, which never
    change, are computed anew each time.
    """

    def __init__(
        self,
        engine: Engine,
        model: Model,
        pairs: Sequence[dict[str, Any]],
        held_out: Sequence[dict[str, Any]],
        settings: Settings,
        output: Path,
        say: Callable[[str], None],
        budget: Budget | None = None,
    ):
        super().__init__(settings, output, say=say)
        self.engine, self.model, self.trainer = engine, model, None
        self.budget, self.pieces, self.closing = budget, None, 0.0  # closing: dollars of what ends a training
        self.sets = {"train": _some(pairs), "held_out": _some(held_out)}
        self.sets = {name: rows for name, rows in self.sets.items() if rows}
        self.watch = Watch(settings.patience, stop_fall=settings.stop_fall)
        self.reference: dict[str, list[Score]] = {}
        self.before: dict[str, dict[str, float]] = {}
        there = checkpoints.steps(output)
        self.resume_at = max(there, default=0)
        # The last one that was measured, too: one that only the budget asked for was not.
        self.last_due = max(filter(self.due, there), default=0)
        checkpoints.prune(output, there)  # what a crash left half-written
        self._go_back()
        if self.resume_at:
            say(f"      goes on from the checkpoint of step {self.resume_at} of {settings.steps}")
        else:
            shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)

    def _go_back(self) -> None:
        """Log and watch to where they were at the checkpoint: the rows after it come again."""
        log = self.output / "training.jsonl"
        rows = [r for r in read(log, LOG_KEYS) if r["step"] <= self.resume_at] if self.resume_at else []
        part = log.with_name(log.name + ".part")
        part.unlink(missing_ok=True)
        append(part, rows)
        part.replace(log)
        for row in rows:
            self.rows.append(row)
            if row["kind"] == "held_out":
                self.watch.see(row["step"], row["n"], row["loss"], row["fall"])

    def start(self) -> None:
        """The state at the start, which all later measurements are against; then the checkpoint's, if one
        goes on. What that costs is kept from the budget: the same comes at the end."""
        if self.budget is not None:
            self.pieces = self.budget.pieces("training")
        self._start()
        if self.pieces is not None:
            self.closing = self.pieces.begin()

    def _start(self) -> None:
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
            self.say(
                f"      {n} held-out pairs: too few to stop the training by ({FEW} are needed); "
                "the chosen texts that are trained on are watched"
            )
        self.measure(0)

    def due(self, step: int) -> bool:
        return step % max(1, self.settings.every) == 0 or step == self.settings.steps

    def measure(self, step: int) -> str | None:
        if "held_out" in self.sets:
            self._see_held_out(step)
        if len(self.sets.get("held_out", ())) < FEW:
            warning = self.watch.see_trained(step, self._preference("train").fall)
            if warning:
                self.say(f"      {warning}")
        return self.watch.stopped

    def _see_held_out(self, step: int) -> None:
        found = self._preference("held_out")
        warning = self.watch.see(step, found.n, found.loss, found.fall)
        self.write({"kind": "held_out", "step": step, **asdict(found)})
        self.say(
            f"      step {step:>4} of {self.settings.steps}: held out: loss {found.loss:.4f}, "
            f"margin {found.margin:+.3f}, accuracy {found.accuracy:.2f}, "
            f"chosen {found.chosen:.1f} ({-found.fall:+.3f} a token), rejected {found.rejected:.1f}"
        )
        if warning:
            self.say(f"      {warning}")
        if self.trainer is not None:
            self.trainer.log({f"held_out/{k}": v for k, v in asdict(found).items()})

    def affords_another(self, step: int) -> bool:
        last = step == self.settings.steps or self.pieces is None
        return last or self.pieces.another(closing=self.closing)

    def saved(self, step: int) -> None:
        checkpoints.complete(checkpoints.place(self.output, step))
        self.last_due = step if self.due(step) else self.last_due
        checkpoints.prune(self.output, {0, self.watch.best_step, self.last_due, step})

    def measure_all(self) -> dict[str, dict[str, float]]:
        return {name: asdict(self._preference(name)) for name in self.sets}

    def _preference(self, name: str) -> Preference:
        """How the adapter as it is now prefers a set's chosen texts, against the start."""
        now = scores(self.engine, self.sets[name], "default")
        return prefer(now, self.reference[name], self.settings.beta)

    def kept(self, last: int) -> int:
        """The step whose weights are the result: the last; when stopped, the last good or the best one."""
        if self.watch.stopped == DISPLACED:
            return self.last_due
        return self.watch.best_step if self.watch.stopped else last


def callback(log: Log, model: Model) -> Any:
    """TRL's side of a log."""
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
            if log.due(state.global_step):
                stopped = log.measure(state.global_step)
                model.for_training()
                if stopped:
                    control.should_training_stop = True
                    control.should_save = stopped != DISPLACED
                    return
            if not log.affords_another(state.global_step):
                control.should_training_stop = control.should_save = True

        def on_save(self, args, state, control, **kwargs):
            log.saved(state.global_step)

    return Callback()


def _some(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MEASURED pairs, chosen by their prompts' hash."""
    return sorted(pairs, key=lambda p: hashlib.sha256(p["prompt"].encode()).digest())[:MEASURED]
