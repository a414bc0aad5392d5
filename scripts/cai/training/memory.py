"""How many pairs go through the model at once: by a forecast of GPU memory, then by what the GPU says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cai.core.errors import UserError
from cai.models.device import GB
from cai.models.model import Model
from cai.models.registry import REGISTRY, ModelSpec
from cai.training.losses import LOSSES
from cai.training.settings import Settings

# Assumed from the shapes, not yet measured on a GPU.
SHARE = 0.9  # of the free memory: the allocator's holes
HEAD_GB = 2.0  # the head in tiles: logits of a tile in float32, and their gradient
STATE_BYTES = 10  # of an adapter's weight: gradient 4, two 8-bit moments 2, TRL's frozen copy 4
LOGIT_BYTES = 10  # of a logit where all are kept: 2 as computed, 4 in float32, 4 their gradient


def training_gb(
    config: Any, adapter_weights: int, settings: Settings, batch_size: int, longest: int
) -> float:
    """GPU memory that a training step takes beside the model and its adapter, in GB.

    config: transformers' of the model; longest: tokens of the longest pair. Both texts of a pair go through
    at once. Unsloth keeps what the layers hand on in the host's memory, so that one layer's activations
    count, its values and their gradients."""
    tokens = 2 * batch_size * min(longest, settings.max_length)
    layer = 2 * (24 * config.hidden_size + 8 * config.intermediate_size)
    head = 0 if LOSSES[settings.loss].fused_head else LOGIT_BYTES * config.vocab_size
    return (tokens * (layer + head) + STATE_BYTES * adapter_weights) / GB + HEAD_GB


def smaller(settings: Settings) -> Settings:
    """Half as many pairs at once, as many a step."""
    batch = settings.batch_size // 2 if settings.batch_size % 2 == 0 else 1
    return replace(
        settings,
        batch_size=batch,
        gradient_accumulation=settings.gradient_accumulation * settings.batch_size // batch,
    )


def fitting(model: Model, settings: Settings, longest: int, say: Callable[[str], None]) -> Settings:
    """The settings with as many pairs at once as a GPU's memory holds by the forecast. A number that is not
    the registry's is somebody's choice and stays."""
    if model.device.type != "cuda" or settings.batch_size != _registry_batch(model.spec):
        return settings
    import torch

    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = (torch.cuda.mem_get_info()[0] + unused) / GB

    def need(batch_size: int) -> float:
        return training_gb(model.model.config, trained, settings, batch_size, longest)

    fit = settings
    while fit.batch_size > 1 and need(fit.batch_size) > SHARE * free:
        fit = smaller(fit)
    if fit != settings:
        say(
            f"      batches of {_shape(fit)} pairs instead of {_shape(settings)}: for texts of {longest} "
            f"tokens these would need about {need(settings.batch_size):.0f} GB of GPU memory, "
            f"{free:.0f} GB are free"
        )
    return fit


def after_out_of_memory(settings: Settings, pairs: int, step: int, say: Callable[[str], None]) -> Settings:
    """The settings to go on with where so many pairs are trained on. Raises UserError where one at once is
    too much."""
    tried = replace(settings, batch_size=min(settings.batch_size, pairs))
    if tried.batch_size == 1:
        raise out_of_memory(step, 1)
    fit = smaller(tried)
    say(
        f"      out of GPU memory at step {step} with {tried.batch_size} pairs at once: "
        f"goes on with batches of {_shape(fit)}, as many pairs a step"
    )
    return fit


def out_of_memory(step: int, pairs: int) -> UserError:
    return UserError(
        f"out of GPU memory at step {step} with {pairs} pair{'s' if pairs > 1 else ''} at once: use fewer "
        "--bits, a smaller --set max_seq_length=..., or a larger GPU "
        "(nvidia-smi says whether another process holds memory)"
    )


def forget_embeddings() -> None:
    """Transformers tells bitsandbytes' 8-bit optimizers to leave a model's embeddings alone, and these keep
    what they were told, with the weights, as long as the process lives: 1.6 GB of the 32B's for each time
    that it was loaded and trained, where the next model or a server is to be."""
    if optim := sys.modules.get("bitsandbytes.optim"):
        optim.GlobalOptimManager.get_instance().module_weight_config_triple.clear()


def _registry_batch(spec: ModelSpec) -> int:
    return REGISTRY[spec.name].batch_size if spec.name in REGISTRY else ModelSpec.batch_size


def _shape(settings: Settings) -> str:
    return f"{settings.batch_size} x {settings.gradient_accumulation}"
