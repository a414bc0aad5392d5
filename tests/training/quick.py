"""A training of seconds on the sandbox, and how to look at what it left."""

from __future__ import annotations

import json

from cai.models.registry import REGISTRY
from cai.training.likelihood_displacement import FEW
from cai.training.settings import Settings
from pairs_of_facts import pairs_of_facts

ROWS = pairs_of_facts(16, held_out=FEW)
TRAIN, HELD = ROWS[:16], ROWS[16:]
QUICK = Settings.of(REGISTRY["sandbox"], steps=4, every=2)


def new():
    from cai.models.loader import load

    return load(REGISTRY["sandbox"])


def rows_of(output):
    return [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]


def weights(path):
    from safetensors.torch import load_file

    return load_file(path / "adapter_model.safetensors")
