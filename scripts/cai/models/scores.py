"""Log-probabilities of tokens in float32, from the hidden states at the positions that matter.

A model's own logits have its precision: those of Unsloth's Qwen2 on a GPU are bfloat16, 0.125 apart between
16 and 32, so that small differences vanish in them. And of every position of a long text they would take
gigabytes in float32. So a block of positions at a time is projected to a slice of the vocabulary at a time.

All rows of the output layer are counted, those too that no token of the tokenizer has: training's
log-probabilities (TRL's fused head) and vLLM's count them, and a reward is a difference between two of these.
Only sampling leaves them out.
"""

from __future__ import annotations

from typing import Any

from cai.core.errors import UserError

POSITIONS, IDS = 1024, 16_384  # of a block, of a slice


def hidden_states(model, **inputs: Any):
    """(states before the output layer, (rows, tokens, hidden size); the model's own logits at each row's last
    token). By the model's own forward, so that masks and adapters are what they always are: Unsloth's differs
    from transformers' inside."""
    found = []
    hook = model.get_decoder().register_forward_hook(lambda module, given, out: found.append(out[0]))
    try:
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        hook.remove()
    return found[-1], logits


class OutputLayer:
    """A model's projection to logits, and what its architecture does to these, as TRL reads it."""

    def __init__(self, model):
        import torch

        self._layer, config = model.get_output_embeddings(), model.config.get_text_config()
        kind, dtype = type(self._layer).__name__, self._layer.weight.dtype
        if not (dtype.is_floating_point and isinstance(self._layer, torch.nn.Linear)):
            raise UserError(
                f"the output layer of this model is a {kind} in {dtype}, and only plain weights score texts: "
                "use --bits 16, or a checkpoint whose output layer is neither quantised nor adapted"
            )
        self._cap = getattr(config, "final_logit_softcapping", None)
        given = (getattr(config, n, None) for n in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
        self._scale = next((scale for scale in given if scale is not None), 1.0)
        if divisor := getattr(config, "logits_scaling", None):  # Granite's
            self._scale /= divisor

    @property
    def block_bytes(self) -> int:
        """What a block takes: its logits, two copies of them on the way, the weights of its slice."""
        ids, width = self._layer.weight.shape
        return 4 * min(ids, IDS) * (3 * POSITIONS + width)

    def log_probabilities(self, hidden, ids):
        """Of ids[i] after hidden[i]; hidden: (n, hidden size), ids: (n,)."""
        import torch

        device = self._layer.weight.device
        blocks = zip(hidden.to(device).split(POSITIONS), ids.to(device).split(POSITIONS), strict=True)
        return torch.cat([self._block(*block) for block in blocks])

    def _block(self, hidden, ids):
        import torch

        hidden = hidden.float()
        own, total = hidden.new_zeros(len(ids)), hidden.new_full((len(ids),), -torch.inf)
        for start in range(0, len(self._layer.weight), IDS):
            logits = self._logits(hidden, slice(start, start + IDS))
            total = torch.logaddexp(total, logits.logsumexp(-1))
            at = (ids - start).clamp(0, logits.shape[1] - 1)
            here = (ids >= start) & (ids < start + IDS)
            own = torch.where(here, logits.gather(1, at[:, None])[:, 0], own)
        return own - total

    def _logits(self, hidden, rows: slice):
        logits = hidden @ self._layer.weight[rows].float().T
        if self._layer.bias is not None:
            logits += self._layer.bias[rows].float()
        if self._scale != 1:
            logits *= self._scale
        return logits if self._cap is None else (logits / self._cap).tanh_() * self._cap

    def check(self, hidden, logits) -> None:
        """Raises UserError if a model's own logits at a position are not those of this projection, but for
        rounding: an architecture that does more to them would be scored wrongly, and nobody would see it."""
        own = logits.float().log_softmax(-1)
        ids = own.sort().indices[[-1, len(own) // 2, 0]]  # the likeliest, one in between, the least likely
        off = (self.log_probabilities(hidden.expand(3, -1), ids) - own[ids].to(ids.device)).abs().max()
        allowed = 0.05 + 0.02 * logits.float().abs().max()
        if off > allowed:
            raise UserError(
                f"log-probabilities from this model's hidden states differ from its own by {off:.2f} nats "
                f"({allowed:.2f} are rounding): its architecture is one that texts cannot be scored with, "
                "choose another --model"
            )
