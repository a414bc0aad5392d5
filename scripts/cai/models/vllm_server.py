"""What a forecast needs to know of a vLLM server before one is started."""

from __future__ import annotations

from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models.registry import ModelSpec

ENVIRONMENT_GB = 12.0  # assumed
START_SECONDS = 240.0  # assumed: 65 GB read from the disk and rounded, then compiled
ROOM_GB = {"asked": 3.0, "chosen": 10.0}  # beside the weights: what it computes in, and cache for some rows
USED = 0.92  # of the GPU's memory, that a server may take


def environment_ready() -> bool:
    return (ROOT / ".venv-vllm/bin/vllm").exists()


def serving_bits(spec: ModelSpec, bits: int | None, gpu_memory_gb: float, *, beside_gb: float = 0.0) -> int:
    room = gpu_memory_gb * USED - beside_gb - ROOM_GB["asked" if bits else "chosen"]
    for each in (bits,) if bits else (16, 8, 4):
        if spec.parameters * {16: 2.0, 8: 1.03, 4: 0.6}[each] <= room:
            return each
    asked = f"in {bits} bits" if bits else "in any precision"
    raise UserError(
        f"{spec.name} {asked} and its cache do not fit into {gpu_memory_gb:.0f} GB: take --engine local"
    )


def download_gb(spec: ModelSpec, bits: int) -> float:
    return spec.download_gb(bits)
