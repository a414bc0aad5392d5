"""TRL's trainers as this project uses them: on pairs in the training format, from a stated reference,
resumable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.models.model import Model
from cai.prompts.training_format import training_pair
from cai.training import checkpoints
from cai.training.callbacks import Log, callback
from cai.training.losses import LOSSES
from cai.training.settings import Settings
from cai.training.start import BFLOAT16_NOISE, FLOAT32_NOISE, Start


def stated(settings: Settings, pairs: int, *, cuda: bool, bf16: bool) -> dict[str, Any]:
    """What TRL's configuration is told, as training.json records it.

    In full: on a GPU TRL's trainers are Unsloth's, whose defaults differ (weight decay 0.001, a warm-up,
    8-bit Adam, seed 3407, ...). The values that a CPU run has by TRL's and transformers' hold on both.
    """
    batch = min(settings.batch_size, pairs)
    return dict(
        max_steps=settings.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=min(settings.gradient_accumulation, math.ceil(pairs / batch)),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(settings.warmup * settings.steps),
        optim="adamw_8bit" if cuda else "adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        label_smoothing_factor=0.0,
        neftune_noise_alpha=None,
        disable_dropout=True,
        beta=settings.beta,
        max_length=settings.max_length,
        bf16=bf16,
        fp16=cuda and not bf16,
        gradient_checkpointing=cuda,
        gradient_checkpointing_kwargs={"use_reentrant": True} if cuda else None,  # Unsloth's needs it
        torch_empty_cache_steps=None,
        seed=settings.seed,
        data_seed=None,
        **LOSSES[settings.loss].config(settings),
    )


def told(model: Model, settings: Settings, pairs: int) -> dict[str, Any]:
    """The same, for a loaded model."""
    import torch

    cuda = model.device.type == "cuda"
    return stated(settings, pairs, cuda=cuda, bf16=cuda and torch.cuda.is_bf16_supported())


def build(
    model: Model,
    pairs: Sequence[Mapping[str, Any]],
    settings: Settings,
    output: Path,
    log: Log,
    report_to: Sequence[str] = (),
) -> Any:
    """TRL's trainer for the adapter "default" as it is now; checked: it is told what we state, trains float32
    weights, and with a loss that has one, TRL's reference is a copy of them."""
    model.for_training()
    import transformers
    from datasets import Dataset, disable_progress_bars

    loss = LOSSES[settings.loss]
    config, base = loss.classes()
    cuda = model.device.type == "cuda"
    values = told(model, settings, len(pairs))
    weights = {name: p.data for name, p in model.model.named_parameters() if p.requires_grad}
    if loss.has_reference:
        log.first = Start(settings.beta, FLOAT32_NOISE if model.computed_in == "float32" else BFLOAT16_NOISE)
    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # it reports that special tokens were aligned
    trainer = _resumable(base, log)(
        model=model.model,
        args=config(
            output_dir=str(output / checkpoints.DIRECTORY),
            use_cpu=not cuda,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would log the mean of earlier losses in place of a NaN
            save_strategy="no",  # the callback says when
            report_to=list(report_to),
            run_name=output.name,
            disable_tqdm=True,
            # In this process: Unsloth takes None for "as many as fit", datasets 1 for a pool of one.
            dataset_num_proc=1 if cuda else None,
            **values,
        ),
        train_dataset=Dataset.from_list([training_pair(p) for p in pairs]),
        processing_class=model.tokenizer,
        callbacks=[callback(log, model)],
    )
    model.tokenizer.padding_side = "left"  # Unsloth's trainers turn it; the collators pad by themselves
    trainer.remove_callback(transformers.PrinterCallback)
    check_told(trainer.args, values)
    keep_float32(model.model, weights)
    if loss.has_reference:
        check_reference(model.model)
    return trainer


def check_told(args: Any, told: Mapping[str, Any]) -> None:
    """Raises UserError for a trainer that has made something else of what it was told."""
    other = {
        key: getattr(args, key, None) for key, value in told.items() if getattr(args, key, None) != value
    }
    if other:
        changed = ", ".join(f"{key} {told[key]!r} became {value!r}" for key, value in other.items())
        raise UserError(f"the trainer does not take what it is told ({changed}): install the pinned packages")


def keep_float32(model: Any, weights: Mapping[str, Any]) -> None:
    """Undoes TRL's cast of a 4-bit model's adapter to bfloat16, in which a step of 5e-6 on a weight of 0.01
    is rounded away (Unsloth's trainers on CUDA leave it out). Raises UserError for weights that are not
    float32."""
    import torch

    for name, weight in model.named_parameters():
        if name in weights:
            weight.data = weights[name]
            if weight.dtype != torch.float32:
                raise UserError(
                    f"{name} is trained in {str(weight.dtype).removeprefix('torch.')}, where small steps "
                    "are rounded away: install the pinned packages (bash setup_environment.sh)"
                )


def _resumable(base: type, log: Log) -> type:
    """A TRL trainer whose checkpoints hold the policy and not the frozen reference: transformers, finding the
    reference's directory in a checkpoint, would load that alone and go on with an untrained policy. The log
    sees what the first step trains on."""

    class Resumable(base):
        def training_step(self, model, inputs, *args, **kwargs):
            if log.first is not None and self.state.global_step == 0:
                log.first.see(inputs["completion_mask"])
            return super().training_step(model, inputs, *args, **kwargs)

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
            if not torch.equal(frozen.detach(), weight.detach()):
                raise UserError(
                    f"training does not start from its reference: {name} differs from the reference's copy"
                )
