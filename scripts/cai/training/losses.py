"""The losses that can be trained with: a new one is an entry here, which feeds --loss and its help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


def _dpo() -> tuple[type, type]:
    from trl import DPOConfig, DPOTrainer

    return DPOConfig, DPOTrainer


def _orpo() -> tuple[type, type]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOConfig, ORPOTrainer


# TRL's own values of DPO, stated because Unsloth has defaults of its own (training/trainer.py).
DPO = {
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "padding_free": False,
    "precompute_ref_log_probs": False,
    "sync_ref_model": False,
    "use_weighting": False,
}


@dataclass(frozen=True)
class Loss:
    """A loss as TRL has it. says: for --help. classes: TRL's configuration and trainer, imported when called.
    terms: TRL's loss_type, each with its weight, a number or the name of a setting; none where the trainer
    knows one loss only. has_reference: it compares with a frozen copy of the start. starts_at_ln2: so its
    first value is ln 2. renamed: keys of TRL's log that mean something else than with the other losses."""

    says: str
    classes: Callable[[], tuple[type, type]] = _dpo
    terms: Mapping[str, float | str] = field(default_factory=dict)
    has_reference: bool = True
    starts_at_ln2: bool = True
    fused_head: bool = True
    renamed: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=lambda: dict(DPO))

    def config(self, settings: Any) -> dict[str, Any]:
        """What TRL's configuration is told of the loss itself."""
        weights = [getattr(settings, w) if isinstance(w, str) else w for w in self.terms.values()]
        terms = {"loss_type": list(self.terms), "loss_weights": weights} if self.terms else {}
        return terms | dict(self.stated)


LOSSES = {
    "dpo": Loss("direct preference optimization", terms={"sigmoid": 1.0}),
    "dpo+nll": Loss(
        "DPO, and the likelihood of the chosen texts",  # Pal et al. 2024, arXiv:2402.13228
        terms={"sigmoid": 1.0, "sft": "nll_weight"},
        starts_at_ln2=False,
    ),
    "orpo": Loss(
        "odds ratios, without a reference",  # Hong et al. 2024, arXiv:2403.07691
        classes=_orpo,
        has_reference=False,
        starts_at_ln2=False,
        fused_head=False,  # Unsloth has one, and falls back to whole logits without a word
        stated={},
        renamed={f"logps/{side}": f"logps per token/{side}" for side in ("chosen", "rejected")},
    ),
}
