"""DPO on preference pairs (Rafailov et al. 2023): TRL trains, this module says on what, from where, and
checks that it did."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.engine import LocalEngine
from cai.models import Model
from cai.records import append
from cai.registry import ModelSpec
from cai.run import UserError

LN2 = math.log(2)
START_TOLERANCE = 0.02  # of the loss at step 0 around ln 2: what bfloat16 rounding leaves


@dataclass(frozen=True)
class Settings:
    """One DPO training. steps: optimizer steps; a step sees batch_size * gradient_accumulation pairs."""

    steps: int
    learning_rate: float
    beta: float
    lora_r: int
    lora_alpha: int
    batch_size: int
    gradient_accumulation: int
    max_length: int
    seed: int = 0

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


@dataclass(frozen=True)
class Preference:
    """How a model prefers chosen over rejected, against its reference; averages over n pairs.

    loss: -log sigmoid(margin); margin: beta * [log p/p_ref (chosen) - log p/p_ref (rejected)] (eqs. 5 and 7
    of the paper); accuracy: the share of pairs with a margin above 0; chosen, rejected: mean log-probability
    of the texts, nats.
    """

    n: int
    loss: float
    margin: float
    accuracy: float
    chosen: float
    rejected: float


def preference(
    engine: LocalEngine,
    pairs: Sequence[dict[str, str]],
    beta: float,
    adapter: str | None,
    reference: str | None = None,
) -> Preference:
    """Measures `adapter` against `reference` (None: the base model). Each text ends with the end token, as in
    training."""
    end = engine.model.tokenizer.eos_token
    prompts = [p["prompt"] for p in pairs] * 2
    texts = [p["chosen"] + end for p in pairs] + [p["rejected"] + end for p in pairs]
    policy = [s.total for s in engine.logprobs(prompts, texts, adapter)]
    base = [s.total for s in engine.logprobs(prompts, texts, reference)]
    n = len(pairs)
    margins = [beta * ((policy[i] - base[i]) - (policy[n + i] - base[n + i])) for i in range(n)]
    return Preference(
        n,
        sum(math.log1p(math.exp(-m)) if m > -30 else -m for m in margins) / n,
        sum(margins) / n,
        sum(m > 0 for m in margins) / n,
        sum(policy[:n]) / n,
        sum(policy[n:]) / n,
    )


def train_dpo(
    model: Model, pairs: Sequence[dict[str, str]], settings: Settings, output: Path
) -> list[dict[str, Any]]:
    """Trains the adapter "default" of the model and returns TRL's log, a row a step; each row is also
    appended to output/training.jsonl as it comes. The reference is the adapter as it was at the start.

    Raises UserError without pairs, when the loss does not start at ln 2, and when it stops being finite.
    """
    if not pairs:
        raise UserError(
            "there are no preference pairs to train on: see rejected_because in records.jsonl for what took "
            "them"
        )
    if settings.steps < 1:
        raise UserError(f"{settings.steps} training steps: at least 1 is needed")
    model.for_training()
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    cuda = model.device.type == "cuda"
    batch = min(settings.batch_size, len(pairs))
    config = DPOConfig(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=min(settings.gradient_accumulation, math.ceil(len(pairs) / batch)),
        learning_rate=settings.learning_rate,
        beta=settings.beta,
        loss_type=["sigmoid"],
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
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataset_num_proc=None,
    )
    log: list[dict[str, Any]] = []

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" not in logs:
                return
            row = {
                "step": state.global_step,
                **{k.removeprefix("rewards/"): float(v) for k, v in logs.items()},
            }
            if not log:
                check_start(row)
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"the DPO loss is {row['loss']} at step {state.global_step}: lower the learning rate "
                    f"({settings.learning_rate})"
                )
            log.append(row)
            append(output / "training.jsonl", [row])

    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # it reports that special tokens were aligned
    output.mkdir(parents=True, exist_ok=True)
    (output / "training.jsonl").unlink(missing_ok=True)  # this training starts at step 0
    rows = Dataset.from_list([{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in pairs])
    with contextlib.redirect_stdout(io.StringIO()):  # TRL's own printing of the log
        trainer = DPOTrainer(
            model=model.model,
            args=config,
            train_dataset=rows,
            processing_class=model.tokenizer,
            callbacks=[Log()],
        )
        trainer.train()
    if "ref" in model.model.peft_config:
        model.model.delete_adapter("ref")  # TRL's copy of the adapter as it was at the start
    return log


def check_start(row: dict[str, Any]) -> None:
    """Raises UserError unless the first step's loss is ln 2 and its margin 0: the policy starts as its own
    reference."""
    if abs(row["loss"] - LN2) > START_TOLERANCE or abs(row["margins"]) > START_TOLERANCE:
        raise UserError(
            f"training does not start from its reference: at step 0 the loss is {row['loss']:.4f} (ln 2 is "
            f"{LN2:.4f}) and "
            f"the margin {row['margins']:.4f} (0): the adapter and the reference differ"
        )
