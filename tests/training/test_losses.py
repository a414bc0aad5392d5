"""The registry of losses: what TRL is told of each, and what each must start at."""

import math

import pytest
from cai.core.cli import parser
from cai.core.errors import UserError
from cai.models.registry import REGISTRY
from cai.training.callbacks import check_start
from cai.training.losses import LOSSES
from cai.training.settings import Settings


def test_trl_gets_the_terms_of_a_loss_with_their_weights():
    settings = Settings.of(REGISTRY["sandbox"], steps=1, nll_weight=0.5)
    assert {name: loss.config(settings) for name, loss in LOSSES.items()} == {
        "dpo": {"loss_type": ["sigmoid"], "loss_weights": [1.0]},
        "dpo+nll": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        "orpo": {},
    }


def test_every_models_loss_is_in_the_registry():
    assert {spec.loss for spec in REGISTRY.values()} <= LOSSES.keys()


def test_the_flag_offers_and_explains_each():
    flags = parser("doc", "loss", choices={"loss": LOSSES})
    assert flags.parse_args(["--loss", "orpo"]).loss == "orpo"
    told = " ".join(flags.format_help().split())
    assert all(f"{name}: {loss.says}" in told for name, loss in LOSSES.items())


@pytest.mark.parametrize(("loss", "row"), [
    ("dpo", {"loss": 0.60, "margins": 0.0}),
    ("dpo", {"loss": 0.6931, "margins": 0.5}),
    ("dpo+nll", {"loss": 1.2, "margins": 0.5}),
    ("dpo+nll", {"loss": 1.2, "margins": 0.0, "chosen": 0.1, "rejected": 0.1}),
])  # fmt: skip
def test_a_start_elsewhere_than_at_the_reference_is_refused(loss, row):
    with pytest.raises(UserError, match="does not start from its reference"):
        check_start(row, LOSSES[loss])


def test_a_start_at_the_reference_passes():
    check_start({"loss": math.log(2), "margins": 0.0}, LOSSES["dpo"])
    check_start({"loss": 1.2, "margins": 0.0}, LOSSES["dpo+nll"])
    check_start({"loss": 1.2, "margins": 0.3}, LOSSES["orpo"])  # it has none
