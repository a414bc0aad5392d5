"""Step 0: how far policy and reference are apart at the first step, and how far rounding may put them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cai.core.errors import UserError
from cai.training.losses import Loss
from cai.training.settings import LN2

SIDES = ("chosen", "rejected")
# By how many nats a token's log-probability may differ between two forwards of the same weights, as a
# standard deviation. In float32 it is below 1e-5. In bfloat16 a logit between 16 and 32 is rounded to 0.125,
# which is off by 0.036 (a uniform error), in each of two forwards: 0.05. Through the same kernels it is 0.
FLOAT32_NOISE, BFLOAT16_NOISE = 1e-4, 0.05
SIGMAS = 4


@dataclass
class Start:
    """What the first step sees. beta: of the loss; noise: one of the above; pairs, tokens: seen so far, of
    chosen and rejected texts with their ends."""

    beta: float
    noise: float
    pairs: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))

    def see(self, completion_mask: Any) -> None:
        """A batch of TRL's: the chosen texts, then the rejected ones."""
        for side, mask in zip(SIDES, completion_mask.chunk(2), strict=True):
            self.tokens[side] += int(mask.sum())
        self.pairs += len(completion_mask) // 2

    def bound(self, side: str) -> float:
        """Nats a token that rounding explains: a mean of independent errors shrinks with the root of n."""
        return SIGMAS * self.noise / math.sqrt(self.tokens[side])

    def loss_bound(self) -> float:
        """What such errors make of the loss: half the mean margin, and an eighth of its mean square."""
        margin = self.beta * sum(self.bound(side) * self.tokens[side] for side in SIDES) / self.pairs
        return margin / 2 + (self.beta * self.noise) ** 2 * sum(self.tokens.values()) / self.pairs / 2

    def check(self, row: dict[str, Any], loss: Loss) -> str:
        """Adds to the first step's row what policy and reference are apart, in nats a token; what to print.
        Raises UserError where rounding does not explain it: the policy starts as its own reference."""
        apart = {side: row[side] / self.beta * self.pairs / self.tokens[side] for side in SIDES}
        row |= {f"log ratio per token/{side}": value for side, value in apart.items()}
        off = row["loss"] - LN2 if loss.starts_at_ln2 else 0.0
        said = f"chosen {apart['chosen']:+.6f}, rejected {apart['rejected']:+.6f} nats a token"
        within = max(map(self.bound, SIDES))
        # not "any above", which a NaN never is
        if not (all(abs(apart[s]) <= self.bound(s) for s in SIDES) and abs(off) <= self.loss_bound()):
            raise UserError(
                f"training does not start from its reference: at step 0 the loss is {row['loss']:.6f} "
                f"(ln 2 is {LN2:.6f}) and the margin {row['margins']:.6f} (0); policy against reference: "
                f"{said} (up to {within:.6f} is rounding): the adapter and the reference differ"
            )
        at_ln2 = f", ln 2 {off:+.6f}" if loss.starts_at_ln2 else ""
        return (
            f"step 0: loss {row['loss']:.6f}{at_ln2}; policy against reference: {said} "
            f"(up to {within:.6f} is rounding)"
        )
