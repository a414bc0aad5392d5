"""What a training is told: steps, rates, the loss; and how long a set of pairs is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cai.core.cli import MOST
from cai.core.errors import UserError
from cai.models.registry import ModelSpec
from cai.training.likelihood_displacement import STOP_FALL
from cai.training.losses import LOSSES

LEAST_STEPS, MOST_STEPS_OF_FEW = 10, 100
FINISHED = "finished"  # how a training ended that was not stopped: see likelihood_displacement
LN2 = math.log(2)
START_TOLERANCE = 0.02  # of a loss around ln 2, where the tokens it is of are not counted (else: start.py)


@dataclass(frozen=True)
class Settings:
    """One training. steps: optimizer steps; a step sees batch_size * gradient_accumulation pairs. warmup: the
    share of them in which the learning rate rises. loss: a key of LOSSES; nll_weight: of the added term, per
    token. every: steps between two held-out measurements, each with a checkpoint (0: neither). patience: see
    Watch."""

    steps: int
    learning_rate: float
    warmup: float
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
    def of(
        cls, spec: ModelSpec, steps: int, seed: int = 0, *, loss: str | None = "dpo", **overrides: Any
    ) -> Settings:
        """The registry's values for a model. loss: None for the registry's, too."""
        values = dict(
            learning_rate=spec.learning_rate,
            warmup=spec.warmup,
            beta=spec.beta,
            lora_r=spec.lora_r,
            lora_alpha=spec.lora_alpha,
            batch_size=spec.batch_size,
            gradient_accumulation=spec.gradient_accumulation,
            max_length=spec.max_seq_length,
        )
        return cls(steps=steps, seed=seed, loss=loss or spec.loss, **(values | overrides))

    def checked(self) -> Settings:
        """These settings. Raises UserError for what cannot be trained with."""
        if self.loss not in LOSSES:
            raise UserError(f"loss {self.loss!r}: choose one of {', '.join(LOSSES)}")
        if not 1 <= self.steps <= MOST:
            raise UserError(f"{self.steps} training steps: at least 1 is needed, and {MOST:,} are the most")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"warmup {self.warmup}: a share of the steps, from 0 to 1")
        for name, value in (("learning rate", self.learning_rate), ("beta", self.beta)):
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value}: it must be above 0")
        if self.lora_r < 1 or self.lora_alpha < 1:
            raise UserError(f"LoRA rank {self.lora_r}, alpha {self.lora_alpha}: both must be at least 1")
        return self


def steps_of(spec: ModelSpec, pairs: int, passes: float) -> int:
    """The optimizer steps of so many passes over the pairs. A step sees no more batches than a pass has."""
    per_step = spec.batch_size * min(spec.gradient_accumulation, math.ceil(pairs / spec.batch_size))
    return math.ceil(passes * pairs / per_step)


def default_steps(spec: ModelSpec, pairs: int) -> int:
    """The model's passes over the pairs; a small set is seen more often: a step for each pair, from 10 up to
    100 steps."""
    return max(LEAST_STEPS, min(pairs, MOST_STEPS_OF_FEW), steps_of(spec, pairs, spec.passes))


def default_every(steps: int) -> int:
    """Ten measurements in a training, and at most 50 steps that a kill can cost."""
    return max(1, min(50, steps // 10))
