"""Step 0: what is tolerated between policy and reference, by the tokens that were seen."""

import math

import pytest
import torch
from cai.core.errors import UserError
from cai.training.losses import LOSSES
from cai.training.start import BFLOAT16_NOISE, FLOAT32_NOISE, Start

AT_REFERENCE = {"margins": 0.0, "chosen": 0.0, "rejected": 0.0}


def start(noise=FLOAT32_NOISE, pairs=4, tokens=100):
    """Of so many pairs whose texts have as many tokens, the prompts as many again."""
    first = Start(beta=0.1, noise=noise)
    mask = torch.zeros(2 * pairs, 2 * tokens, dtype=torch.long)
    mask[:, tokens:] = 1
    first.see(mask)
    return first


def apart(a_token, first):
    """The row of a first step whose chosen texts are so many nats a token above the reference."""
    reward = first.beta * a_token * first.tokens["chosen"] / first.pairs
    loss = -math.log(1 / (1 + math.exp(-reward)))
    return {"loss": loss, "margins": reward, "chosen": reward, "rejected": 0.0}


def test_batches_of_a_step_add_up_to_its_pairs_and_tokens():
    first = start()
    first.see(torch.tensor([[0, 1, 1], [0, 1, 0]]))
    assert (first.pairs, first.tokens) == (5, {"chosen": 402, "rejected": 401})


@pytest.mark.parametrize(("loss", "row"), [
    ("dpo", {"loss": 0.60}), ("dpo", {"loss": 0.6942}), ("dpo", {"loss": math.nan}),
    ("dpo", {"chosen": 0.5, "margins": 0.5}), ("dpo+nll", {"chosen": math.nan}),
    ("dpo+nll", {"loss": 1.2, "chosen": 0.1, "rejected": 0.1}),
])  # fmt: skip
def test_a_start_elsewhere_than_at_the_reference_is_refused(loss, row):
    with pytest.raises(UserError, match="does not start from its reference: at step 0 the loss is"):
        start().check({"loss": math.log(2)} | AT_REFERENCE | row, LOSSES[loss])


def test_a_start_at_the_reference_is_said_to_six_digits_and_a_token():
    row = {"loss": math.log(2) + 2e-6} | AT_REFERENCE | {"chosen": 1e-5}
    said = start().check(row, LOSSES["dpo"])
    assert "step 0: loss 0.693149, ln 2 +0.000002; policy against reference: chosen +0.000001," in said
    assert row["log ratio per token/chosen"] == pytest.approx(1e-6)
    assert row["log ratio per token/rejected"] == 0
    assert "ln 2" not in start().check({"loss": 1.2} | AT_REFERENCE, LOSSES["dpo+nll"])


@pytest.mark.parametrize("tokens", [10, 500, 4000])
def test_what_bfloat16_rounds_is_tolerated_and_a_trained_adapter_is_not(tokens):
    """Rounding is 0.05 a token, and its mean over n of them 0.05 / sqrt(n). An adapter that has moved the
    chosen texts by 0.1 nats a token is seen from ten texts of ten tokens on."""
    first = start(BFLOAT16_NOISE, pairs=10, tokens=tokens)
    rounding = BFLOAT16_NOISE / math.sqrt(10 * tokens)
    first.check(apart(3 * rounding, first), LOSSES["dpo"])
    for a_token in (5 * rounding, 0.1):
        with pytest.raises(UserError, match="does not start from its reference"):
            first.check(apart(a_token, first), LOSSES["dpo"])


def test_independent_errors_of_that_size_pass():
    """Drawn: a thousand first steps of bfloat16 forwards through other kernels."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(1000):
        first = start(BFLOAT16_NOISE, pairs=8, tokens=300)
        errors = BFLOAT16_NOISE * torch.randn(2, 8, 300, generator=draw, dtype=torch.float64)
        chosen, rejected = 0.1 * errors.sum(-1)
        row = {
            "loss": -torch.nn.functional.logsigmoid(chosen - rejected).mean().item(),
            "margins": (chosen - rejected).mean().item(),
            "chosen": chosen.mean().item(),
            "rejected": rejected.mean().item(),
        }
        first.check(row, LOSSES["dpo"])
