"""Whether a model fits into this machine: its weights into memory, its download onto the disk."""

from __future__ import annotations

from dataclasses import dataclass

from cai.models.device import GB, cache_dir, cached, cached_bytes, disk_free
from cai.models.registry import ModelSpec

# Of a model beside a server: its batches, and the CUDA contexts of both, which vLLM does not count.
BATCHES_GB = 2.0
DISK_MARGIN = 1.05  # of a download: tokenizer, configuration, the file system's own


@dataclass(frozen=True)
class Fit:
    """What is needed and what is free, in GB. smaller: the most bits below those asked for that would fit."""

    need: float
    free: float
    smaller: int | None = None

    @property
    def ok(self) -> bool:
        return self.need <= self.free


def memory_fit(spec: ModelSpec, bits: int, free_bytes: float, *, gpu: bool) -> Fit:
    """The weights against free memory. A model of unknown size needs nothing.

    gpu: without one 16-bit weights compute in float32, so that they need twice as much."""

    def need(bits: int) -> float:
        return spec.memory_gb(bits) * (2 if bits == 16 and not gpu else 1) if spec.parameters else 0.0

    free = free_bytes / GB
    return Fit(need(bits), free, max((b for b in (4, 8) if b < bits and need(b) <= free), default=None))


def beside_gb(spec: ModelSpec | None) -> float:
    """GPU memory that a server leaves to another model, in GB."""
    return spec.memory_gb(spec.bits) + BATCHES_GB if spec else 0.0


def disk_fit(spec: ModelSpec, bits: int) -> Fit:
    """What is still to be fetched of the weights against the free disk of the model cache."""
    repo, revision = spec.source(bits)
    need = 0.0
    if not cached(repo, revision):
        need = max(0.0, spec.download_gb(bits) * DISK_MARGIN - cached_bytes(repo) / GB)
    return Fit(need, disk_free(cache_dir()) / GB)
