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
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, move_aside, sha256_file, write_json
from cai.core.jsonl import read
from cai.models.model import Model, check_adapter
from cai.training import checkpoints, curves, trackers
from cai.training.callbacks import LOG_KEYS, Log, Watched, _callback
from cai.training.likelihood_displacement import forecast
from cai.training.settings import FINISHED, LOSSES, Settings, default_every

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
    log: Callable[[str], None] = print,
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
        log(f"this training was done earlier ({manifest['status']}): {display_path(output)}")
        shutil.rmtree(output / checkpoints.DIRECTORY, ignore_errors=True)
        model.load_adapter(output, "default")
        return Result(**manifest["result"] | {"taken": 0})
    for line in ahead.lines():
        log(f"      {line}")
    settings = begin(model, settings, start)
    state = Watched(model, pairs, held_out, settings, output, _past_redirection(log))
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


def _past_redirection(log: Callable[[str], None]) -> Callable[[str], None]:
    """log, to the standard output of now, whatever it is redirected to later."""
    out = sys.stdout

    def aloud(text: str) -> None:
        with contextlib.redirect_stdout(out):
            log(text)

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
        "from": check_adapter(start, model.spec, model.source)["sha256"] if start else None,
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
                f"{display_path(output)} holds an adapter of another making: --fresh moves it aside, --run "
                f"another-name "
                "keeps it"
            ) from None
        manifest = {"settings": facts, "status": "begun"}
        write_json(path, manifest)
        return manifest
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError):
        raise UserError(
            f"{display_path(path)} is damaged: --fresh moves {display_path(output)} aside"
        ) from None
    changed = sorted(k for k in old.keys() | facts.keys() if old.get(k) != facts.get(k))
    if changed:
        what = "; ".join(f"{k} was {old.get(k)!r}, now {facts.get(k)!r}" for k in changed)
        raise UserError(
            f"{display_path(output)} was trained with other settings: {what}. Give the old ones to resume, "
            f"or --fresh to move "
            "it aside (the data stay)"
        )
    if manifest["status"] != "begun" and (
        not (output / checkpoints.WEIGHTS).exists()
        or sha256_file(output / checkpoints.WEIGHTS) != manifest["result"]["adapter"]
    ):
        raise UserError(
            f"{display_path(output)} no longer holds the adapter that was saved: --fresh trains it again"
        )
    return manifest


def build(
    model: Model, pairs: Sequence[dict], settings: Settings, output: Path, log: Log, report_to: list[str]
):
    """TRL's trainer for the adapter "default" as it is now; checked: with a loss that has one, TRL's
    reference is a copy of it."""
    model.for_training()
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback

    cuda = model.device.type == "cuda"
    batch = min(settings.batch_size, len(pairs))
    common = dict(
        output_dir=str(output / checkpoints.DIRECTORY),
        max_steps=settings.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=min(settings.gradient_accumulation, math.ceil(len(pairs) / batch)),
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        max_length=settings.max_length,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps // 10,
        optim="adamw_8bit" if cuda else "adamw_torch",
        bf16=cuda and torch.cuda.is_bf16_supported(),
        fp16=False,
        gradient_checkpointing=cuda,
        use_cpu=not cuda,
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses in place of a NaN
        save_strategy="no",  # the callback below says when
        report_to=report_to,
        run_name=output.name,
        disable_tqdm=True,
        dataset_num_proc=None,
    )
    if settings.loss == "orpo":
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Base
    else:
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Base

        weights = [1.0, settings.nll_weight][: len(LOSSES[settings.loss])]
        common |= {"loss_type": LOSSES[settings.loss], "loss_weights": weights}
    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # it reports that special tokens were aligned
    rows = Dataset.from_list([{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in pairs])
    trainer = _resumable(Base)(
        model=model.model,
        args=Config(**common),
        train_dataset=rows,
        processing_class=model.tokenizer,
        callbacks=[_callback(log, model)],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.loss != "orpo":
        check_reference(model.model)
    return trainer


def _resumable(base: type) -> type:
    """A TRL trainer whose checkpoints hold the policy and not the frozen reference: transformers, finding the
    reference's directory in a checkpoint, would load that alone and go on with an untrained policy."""

    class Resumable(base):
        def _save(self, output_dir=None, state_dict=None):
            checkpoints.save_weights(self.model, Path(output_dir))

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            """Nothing yet: the start is measured first (Watched.start), then the weights are loaded."""

        def _save_checkpoint(self, model, trial):
            try:
                super()._save_checkpoint(model, trial)
            except RuntimeError as error:  # torch.save on a full disk
                path = checkpoints.place(Path(self.args.output_dir).parent, self.state.global_step)
                raise checkpoints.disk_error(path, error) from None

        def create_model_card(self, *args, **kwargs):
            """None: save_adapter writes the directory that is handed on."""

    Resumable.__name__ = Resumable.__qualname__ = base.__name__  # Unsloth goes by the name
    return Resumable


def check_reference(model: Any) -> None:
    """Raises UserError unless TRL's frozen reference, the adapter "ref", is the adapter "default" as it is
    now."""
    import torch

    for name, weight in model.named_parameters():
        if ".default." in name:
            frozen = model.get_parameter(name.replace(".default.", ".ref."))
            if not torch.equal(frozen.detach().to(weight.dtype), weight.detach()):
                raise UserError(
                    f"training does not start from its reference: {name} differs from the reference's copy"
                )
