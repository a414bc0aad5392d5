"""The engines there are, and the one place that builds them."""

from __future__ import annotations

from cai.models.engine import Engine
from cai.models.local_engine import LocalEngine
from cai.models.model import Model


def engine_of(model: Model, max_batch: int | None = None) -> Engine:
    """The engine that generates and scores with a loaded model's weights, as they are at each call.
    max_batch: rows of a batch at most (default: the registry's)."""
    return LocalEngine(model, max_batch=max_batch)
