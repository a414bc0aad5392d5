"""The registry of losses: what TRL is told of each, and what each must start at."""

from cai.core.cli import parser
from cai.models.registry import REGISTRY
from cai.training.losses import DPO, LOSSES
from cai.training.settings import Settings


def test_trl_gets_the_terms_of_a_loss_with_their_weights():
    settings = Settings.of(REGISTRY["sandbox"], steps=1, nll_weight=0.5)
    assert {name: loss.config(settings) for name, loss in LOSSES.items()} == {
        "dpo": {"loss_type": ["sigmoid"], "loss_weights": [1.0]} | DPO,
        "dpo+nll": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]} | DPO,
        "orpo": {},
    }


def test_every_models_loss_is_in_the_registry():
    assert {spec.loss for spec in REGISTRY.values()} <= LOSSES.keys()


def test_the_flag_offers_and_explains_each():
    flags = parser("doc", "loss", choices={"loss": LOSSES})
    assert flags.parse_args(["--loss", "orpo"]).loss == "orpo"
    told = " ".join(flags.format_help().split())
    assert all(f"{name}: {loss.says}" in told for name, loss in LOSSES.items())
