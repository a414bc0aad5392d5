"""Adapters of the sandbox, for what has to tell them apart."""

import pytest
import torch
from cai.models.loader import load
from cai.models.registry import REGISTRY


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Saved ones: two that change every text, and one that changes nothing yet, as training begins."""
    model, found = load(REGISTRY["sandbox"]), {}
    model.add_adapter(r=4, alpha=8, seed=0)
    for name, scale in {"new": 0.0, "one": 0.1, "two": 0.2}.items():
        torch.manual_seed(1)
        for key, value in model.model.named_parameters():
            if "lora_B" in key and scale:
                value.data.normal_(0, scale)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_adapter(found[name])
    return found
