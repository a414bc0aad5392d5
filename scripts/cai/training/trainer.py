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


def build(
    model: Model,
    pairs: Sequence[Mapping[str, Any]],
    settings: Settings,
    output: Path,
    log: Log,
    report_to: Sequence[str] = (),
) -> Any:
    """TRL's trainer for the adapter "default" as it is now; checked: with a loss that has one, TRL's
    reference is a copy of it."""
    model.for_training()
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars

    loss = LOSSES[settings.loss]
    config, base = loss.classes()
    cuda = model.device.type == "cuda"
    batch = min(settings.batch_size, len(pairs))
    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # it reports that special tokens were aligned
    trainer = _resumable(base)(
        model=model.model,
        args=config(
            output_dir=str(output / checkpoints.DIRECTORY),
            max_steps=settings.steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=min(settings.gradient_accumulation, math.ceil(len(pairs) / batch)),
            learning_rate=settings.learning_rate,
            beta=settings.beta,
            max_length=settings.max_length,
            lr_scheduler_type="cosine",
            warmup_steps=int(settings.warmup * settings.steps),
            optim="adamw_8bit" if cuda else "adamw_torch",
            bf16=cuda and torch.cuda.is_bf16_supported(),
            fp16=False,
            gradient_checkpointing=cuda,
            use_cpu=not cuda,
            seed=settings.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # it would log the mean of earlier losses in place of a NaN
            save_strategy="no",  # the callback says when
            report_to=list(report_to),
            run_name=output.name,
            disable_tqdm=True,
            dataset_num_proc=None,
            **loss.config(settings),
        ),
        train_dataset=Dataset.from_list([training_pair(p) for p in pairs]),
        processing_class=model.tokenizer,
        callbacks=[callback(log, model)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if loss.has_reference:
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
