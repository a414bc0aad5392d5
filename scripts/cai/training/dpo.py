"""DPO and its relatives on preference pairs: TRL trains, this room says on what, from where, and checks that
it did.

`train` is the whole: what the pairs tell, start from a stated reference, watch on held-out pairs,
checkpoints, resume, the adapter. `train_adapter` is that as a step of a run. `train_dpo` is the bare training
that milestone 0 and the pre-flight take.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, write_json
from cai.core.jsonl import read
from cai.core.run import Run
from cai.core.stats import wilson
from cai.costs.budget import Budget
from cai.models.engines import engine_of
from cai.models.model import Model, free_memory, lora_of
from cai.models.session import Session
from cai.training import checkpoints, curves, manifest, trackers
from cai.training.callbacks import LOG_KEYS, Log, Watched
from cai.training.likelihood_displacement import DISPLACED, WAY_OUT, displaced, pair_statistics
from cai.training.memory import after_out_of_memory, fitting, forget_embeddings, out_of_memory
from cai.training.pair_files import refuse_special_tokens, same_tokens
from cai.training.settings import FINISHED, Settings, default_every
from cai.training.trainer import build, told


@dataclass
class Result:
    """status: FINISHED, or one of likelihood_displacement's. step: that of the kept adapter; steps: trained.
    before, after: {"train" | "held_out": Preference} against the state at the start (before: of loss ln 2 by
    definition). forecast: the pairs' PairStatistics. taken: the steps of this call alone: fewer where it went
    on from a checkpoint."""

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

    def table(self) -> str:
        """What training changed, in lines. likelier needs no reference: see Preference."""
        lines = [
            f"{self.status}: the adapter of step {self.step} of {self.steps} is kept; "
            f"{self.trained_on} pairs trained on, {self.held_out} held out, {self.seconds:.0f} s",
            f"{'':20}{'n':>5}{'loss':>9}{'margin':>9}  "
            f"{'accuracy (95 %)':<20}{'likelier':>9}{'chosen':>10}{'rejected':>10}",
        ]
        for name in self.after:
            for when, x in (("before", self.before[name]), ("after", self.after[name])):
                low, high = wilson(round(x["accuracy"] * x["n"]), x["n"])
                accuracy = f"{x['accuracy']:.2f} ({low:.2f} to {high:.2f})"
                lines.append(
                    f"{name.replace('_', ' ') + ', ' + when:20}"
                    f"{x['n']:>5}{x['loss']:>9.4f}{x['margin']:>+9.3f}  "
                    f"{'as its reference' if when == 'before' else accuracy:<20}"
                    f"{x['likelier']:>9.2f}{x['chosen']:>10.2f}{x['rejected']:>10.2f}"
                )
        return "\n".join(lines)


def train_adapter(session: Session, pairs: Sequence[dict[str, Any]], settings: Settings) -> Result:
    """Trains on the pairs that are not held out, as the step "training" of the session's run, which records
    it. The engine carries the adapter "default" then, be it of an earlier call of the same."""
    seen, held_out = ([row for row in pairs if row["held_out"] is side] for side in (False, True))
    if not seen:
        raise UserError("no pair to train on: see the table above for which reason took how many")
    run = session.run
    how = {"resume": True, "log": run.log, "budget": run.budget}
    how["pairs_file"] = run.manifest.get("pairs", {}).get("sha256")
    if session.model is None and (result := _earlier(run, settings)):
        run.log(f"this training was done earlier ({result.status}): {display_path(run.checkpoints)}")
    else:
        session.load_weights()
        with run.step("training") as step:
            result = train(session.model, seen, held_out, settings, run.checkpoints, **how)
            step.examples = result.taken
    facts = ("status", "steps", "before", "after")
    found = {key: getattr(result, key) for key in facts}
    run.record(adapter=result.adapter, training=found)
    session.use_trained()
    return result


def _earlier(run: Run, settings: Settings) -> Result | None:
    """What a training that has ended for a run came to, if it was of these settings and pairs: to know it, no
    gigabytes have to be loaded."""
    if not manifest.is_finished(run.checkpoints):
        return None
    earlier = manifest.read_training(run.checkpoints)
    told = replace(settings, every=settings.every or default_every(settings.steps))
    same = asdict(told).items() <= earlier["settings"].items()
    if not same or earlier.get("pairs_file") != run.manifest.get("pairs", {}).get("sha256"):
        return None
    return Result(**{k: earlier["result"][k] for k in manifest.RESULT_KEYS})


def train(
    model: Model,
    pairs: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    settings: Settings,
    output: Path,
    *,
    resume: bool,
    start: Path | None = None,
    log: Callable[[str], None] = print,
    tracker: str = "none",
    budget: Budget | None = None,
    pairs_file: str | None = None,
) -> Result:
    """Trains a LoRA adapter on pairs and leaves it in `output`, with training.json, training.jsonl and
    curves.png.

    model: without adapters yet; it carries the trained one as "default" afterwards. start: a saved adapter to
    go on from, which is then the reference; else a new adapter on the base model, which is. resume: go on
    from what an earlier call of the same settings left in output; without it that is moved aside. pairs_file:
    the hash of pairs.jsonl, for training.json. Raises UserError for pairs that cannot be trained on, settings
    that differ from those that output was begun with, a start that is not at its reference, a loss that is
    not finite. Raises BudgetReached where the steps ahead might pass the budget: before the first one, or
    later behind a checkpoint, from which the same call goes on.
    """
    began = time.perf_counter()
    settings = replace(settings.checked(), every=settings.every or default_every(settings.steps))
    if not pairs:
        raise UserError(
            "there is no pair to train on: " + ("all are held out" if held_out else "pairs.jsonl is empty")
        )
    trackers.check(tracker)
    refuse_special_tokens(model.tokenizer, [*pairs, *held_out])
    alike, pairs = same_tokens(model.tokenizer, pairs)
    if not pairs:
        raise UserError(
            f"pairs.jsonl: 'chosen' and 'rejected' of every pair (n {len(alike)}) are the same tokens to "
            "this model, if not the same characters: there is nothing to learn, write other texts"
        )
    held_out = same_tokens(model.tokenizer, held_out)[1]
    statistics, fits = pair_statistics(model.tokenizer, pairs, settings.max_length)
    pairs = [p for p, fit in zip(pairs, fits, strict=True) if fit]
    held_fits = pair_statistics(model.tokenizer, held_out, settings.max_length)[1] if held_out else []
    held_out = [p for p, fit in zip(held_out, held_fits, strict=True) if fit]
    if not pairs:
        raise UserError(
            f"all {len(fits)} pairs are longer than {settings.max_length} tokens: "
            "use a model of longer context"
        )
    facts = manifest.facts_of(model, pairs, held_out, settings, start)
    earlier = manifest.claim(output, facts, resume, pairs_file)
    if earlier["status"] != manifest.BEGUN:
        log(f"this training was done earlier ({earlier['status']}): {display_path(output)}")
        shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)
        model.load_adapter(output, "default")
        return Result(**{k: earlier["result"][k] for k in manifest.RESULT_KEYS})
    if alike:
        log(f"      ! {len(alike)} pairs left out: 'chosen' and 'rejected' are the same tokens")
    for line in statistics.lines():
        log(f"      {line}")
    settings = begin(model, settings, start)
    fit = fitting(model, settings, statistics.longest, log)
    say = _past_redirection(log)
    watched = partial(Watched, engine_of(model), model, pairs, held_out, settings, output, say, budget)
    state = watched()
    last = begun_at = state.resume_at
    if budget is not None:
        ahead = settings.steps - last
        budget.step(f"{ahead} training steps", ahead * budget.rates.get("training", 0.0))
    if state.watch.stopped or last == settings.steps:  # it was killed between its last step and its end
        state.start()
    else:
        while (last := _train_steps(state, pairs, fit, output, tracker)) is None:
            fit = after_out_of_memory(fit, len(pairs), state.step_reached, say)
            _back_to_the_start(model, output)
            state = watched()
        if budget is not None:
            budget.stop_if_reached()
    _let_go(model)
    status, kept = state.watch.stopped or FINISHED, state.kept(last)
    checkpoints.load_weights(model.model, checkpoints.place(output, kept))
    after = state.measure_all()
    if status != DISPLACED and (why := displaced(after, settings.stop_fall)):
        status = DISPLACED
        log(f"      !!! {why}: the training is displaced. {WAY_OUT}")
    title = f"{settings.loss}, {len(pairs)} pairs"
    curves.draw(read(output / "training.jsonl", LOG_KEYS), output / "curves.png", title)
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
        forecast=asdict(statistics),
        taken=last - begun_at,
    )
    ended = {"status": status, "trainer": told(model, fit, len(pairs)), "result": asdict(result)}
    write_json(output / manifest.NAME, earlier | ended)
    shutil.rmtree(output / checkpoints.DIRECTORY)
    return result


def train_dpo(
    model: Model,
    pairs: Sequence[Mapping[str, str]],
    settings: Settings,
    output: Path,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Trains the adapter "default" of the model and returns TRL's log, a row a step; each row is also
    appended to output/training.jsonl as it comes. The reference is the adapter as it was at the start.
    Nothing is held out, saved or resumed.

    Raises UserError without pairs, when the loss does not start at ln 2, and when it stops being finite.
    """
    if not pairs:
        raise UserError(
            "there are no preference pairs to train on: "
            "see rejected_because in records.jsonl for what took them"
        )
    settings.checked()
    if same_tokens(model.tokenizer, pairs)[0]:
        raise UserError("'chosen' and 'rejected' of a pair are the same tokens: there is nothing to learn")
    import torch

    output.mkdir(parents=True, exist_ok=True)
    (output / "training.jsonl").unlink(missing_ok=True)  # this training starts at step 0
    log = Log(settings, output, say=_past_redirection(say))
    with contextlib.redirect_stdout(io.StringIO()):  # TRL's own printing of the log
        try:
            build(model, pairs, settings, output, log).train()
        except torch.OutOfMemoryError as error:
            raise out_of_memory(log.step_reached, min(settings.batch_size, len(pairs))) from error
    _let_go(model)
    shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)  # the trainer's own, empty
    return log.rows


def _train_steps(
    state: Watched, pairs: Sequence[Mapping[str, Any]], fit: Settings, output: Path, tracker: str
) -> int | None:
    """TRL's training from the state's checkpoint on; the last step. None where the GPU's memory ran out."""
    import torch

    start = state.resume_at
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the libraries' own printing
            trainer = build(state.model, pairs, fit, output, state, trackers.prepare(tracker, output))
            state.trainer = trainer if tracker != "none" else None
            trainer.train(resume_from_checkpoint=str(checkpoints.place(output, start)) if start else None)
        return trainer.state.global_step
    except torch.OutOfMemoryError:
        return None


def _back_to_the_start(model: Model, output: Path) -> None:
    """The adapter as it was before the first step, and the memory of the trainer that has failed."""
    _let_go(model)
    start = checkpoints.place(output, 0)
    if start.exists():
        checkpoints.load_weights(model.model, start)
    free_memory()


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


def _let_go(model: Model) -> None:
    """What a trainer leaves in memory: TRL's copy of the adapter as it was at the start, and the model's
    embeddings, once it is gone itself."""
    if "ref" in model.model.peft_config:
        model.model.delete_adapter("ref")
    forget_embeddings()


def _past_redirection(log: Callable[[str], None]) -> Callable[[str], None]:
    """log, to the standard output of now, whatever it is redirected to later."""
    out = sys.stdout

    def aloud(text: str) -> None:
        with contextlib.redirect_stdout(out):
            log(text)

    return aloud
