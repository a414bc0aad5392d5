"""What vLLM is told: the precision that fits, its command line, its environment (specs/serving.md has the
reasons)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from cai.core.errors import UserError
from cai.core.files import write_json
from cai.models.device import GB, Gpu, environment_as_given
from cai.models.registry import ModelSpec
from cai.models.server_key import is_loopback, server_key
from cai.prompts.markers import CHAT_TOKENS

MOST_OF_A_GPU = 0.92  # the rest is for log-probabilities of prompts, which vLLM's own measurement leaves out
OVERHEAD_GB = 3.0  # a LoRA adapter, CUDA graphs, activations of one step
# Of the 16-bit weights' size: how large the key-value cache must be. 16 bits are taken by themselves only
# where many rows fit beside them: a row's tokens cost what the weights' bytes cost, shared by all rows.
CACHE = {16: 0.3, 8: 0.05, 4: 0.05}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes
LOGPROBS = 20  # alternatives of a token that a request may ask for
BATCH_INVARIANT = (8, 0)  # the compute capability that vLLM's batch-invariant kernels begin with
NO_TEMPLATE = "{{ raise_exception('a base model has no chat template: use /v1/completions') }}"
SECRETS = ("_TOKEN", "_KEY", "_SECRET", "_PASSWORD")  # how names of what a child need not know end


def serving_bits(spec: ModelSpec, bits: int | None, gpu_memory_gb: float, *, beside_gb: float = 0.0) -> int:
    """The precision to serve in: what is asked for, else 16 with room for many rows, else 8 (FP8), else 4.

    gpu_memory_gb: free memory of the GPU. beside_gb: what another model needs of it. Raises UserError where
    it does not fit."""
    room = gpu_memory_gb * MOST_OF_A_GPU - beside_gb
    least = {b: need_gb(spec, b, CACHE[8]) for b in CACHE}
    if bits is None:
        fits = [b for b in CACHE if need_gb(spec, b, CACHE[b]) <= room]
        if fits:
            return fits[0]
        bits = 4
    elif least[bits] <= room:
        return bits
    smaller = [b for b in CACHE if b < bits and least[b] <= room]
    beside = f" beside {beside_gb:.0f} GB for another model" if beside_gb else ""
    raise UserError(
        f"{spec.name} in {bits} bits needs about {least[bits]:.0f} GB of GPU memory with vLLM, "
        f"{room:.0f} GB can be had{beside}: "
        + (f"use {smaller[0]} bits" if smaller else "use --engine local, a smaller --model or a larger GPU")
        + ", and see with nvidia-smi whether another process holds memory"
    )


def need_gb(spec: ModelSpec, bits: int, cache: float) -> float:
    return spec.memory_gb(bits) + OVERHEAD_GB + cache * 2 * spec.parameters if spec.parameters else 0.0


def utilization(gpu: Gpu, beside_gb: float) -> float:
    """The share of the whole GPU that vLLM may take: of what is free, less what another model needs."""
    share = min(MOST_OF_A_GPU, (gpu.free - beside_gb * GB - 0.5 * GB) / gpu.memory)
    return math.floor(share * 100) / 100


def serving_precision(bits: int, gpu: Gpu | None) -> str:
    """In words, as the engine's records say it."""
    if gpu is None:
        return "float32"
    computed = "bfloat16" if gpu.bf16 else "float16"
    return {4: f"NF4, {computed}", 8: f"FP8 weights, {computed}"}.get(bits, computed)


def check_deterministic(bits: int, gpu: Gpu | None) -> None:
    """Raises UserError where vLLM has no batch-invariant kernels."""
    if gpu is None:
        raise UserError(
            "--deterministic: vLLM has batch-invariant kernels for CUDA GPUs alone; "
            "leave it out, or use --engine local"
        )
    if gpu.capability is not None and gpu.capability < BATCH_INVARIANT:
        raise UserError(
            f"--deterministic: vLLM's batch-invariant kernels begin with compute capability 8.0, "
            f"{gpu.name} has {gpu.capability[0]}.{gpu.capability[1]}; leave it out, or use --engine local"
        )
    if bits != 16:  # FP8's Marlin kernel declines, what is taken then has weights that the fallback misreads
        raise UserError(
            f"--deterministic: vLLM's batch-invariant kernels take 16-bit weights, not {bits} bits: "
            "use --engine-bits 16 (serve.py: --bits 16), or leave it out"
        )


def lora_rank(ranks: list[int]) -> int:
    """The smallest that vLLM takes and that holds all of these."""
    if max(ranks) > RANKS[-1]:
        raise UserError(f"LoRA rank {max(ranks)}: vLLM serves at most {RANKS[-1]}; use --engine local")
    return next(rank for rank in RANKS if rank >= max(ranks))


def write_stops(weights: Path, spec: ModelSpec, place: Path) -> Path:
    """A generation configuration with the tokens that end a text, and no sampling defaults: those of the
    repository must not slip into ours. A base model's texts end at tokens of a chat, too."""
    ends = set()
    for name in ("config.json", "generation_config.json"):
        found = _json(weights / name).get("eos_token_id")
        ends |= set(found if isinstance(found, list) else [found])
    if spec.kind == "base":
        added = _json(weights / "tokenizer.json").get("added_tokens", [])
        ends |= {token["id"] for token in added if token["content"] in CHAT_TOKENS}
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "generation_config.json", {"eos_token_id": sorted(ends - {None})})
    return place


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def command(
    python: Path,
    spec: ModelSpec,
    weights: Path,
    bits: int,
    *,
    gpu: Gpu | None,
    beside_gb: float,
    host: str,
    port: int,
    rank: int,
    adapters: Mapping[str, Path],
    stops: Path,
    deterministic: bool,
) -> list[str]:
    """The command line of a server. gpu: None for vLLM's CPU build."""
    parts = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    parts += ["--model", str(weights), "--served-model-name", spec.name]
    parts += ["--host", host, "--port", str(port)]
    parts += ["--max-model-len", str(spec.max_seq_length), "--enable-prefix-caching"]
    parts += ["--generation-config", str(stops)]
    parts += ["--max-logprobs", str(LOGPROBS), "--logprobs-mode", "raw_logprobs"]
    parts += ["--chat-template", NO_TEMPLATE] if spec.kind == "base" else []
    # One adapter in a batch: rows of several could disturb each other. The others wait in main memory.
    parts += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "1", "--max-cpu-loras", "8"]
    if adapters:
        parts += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    parts += ["--max-num-seqs", "256", "--disable-uvicorn-access-log"]
    if gpu is None:  # with chunked prefill and seeds the CPU's engine dies
        return [
            *parts,
            *("--dtype", "float32", "--load-format", "safetensors", "--enforce-eager"),
            *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"),
        ]
    parts += ["--dtype", "bfloat16" if gpu.bf16 else "float16"]
    parts += ["--gpu-memory-utilization", f"{utilization(gpu, beside_gb):.2f}"]
    parts += ["--max-num-batched-tokens", "2048"]  # its prompt's log-probabilities are in memory at once
    if bits == 4:
        parts += ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    else:
        parts += ["--load-format", "safetensors"]
    if bits == 8:  # Marlin on every GPU: weights alone are FP8, what they are multiplied with is not
        parts += ["--quantization", "fp8_per_block", "--linear-backend", "marlin"]
    # The output layer's sums as they are, not rounded to bfloat16, in which logits from 16 to 32 are 0.125
    # apart. Its batch-invariant kernel has no such variant.
    if deterministic:
        parts += ["--attention-backend", "FLASH_ATTN"]
    else:
        parts += ["--hf-overrides", json.dumps({"head_dtype": "float32"})]
    return parts


def child_environment(*, gpu: Gpu | None, host: str, deterministic: bool) -> dict[str, str]:
    """The user's without what belongs to this process and without secrets, but for the servers' key, which
    the server asks its clients for where it is set."""
    env = {
        name: value
        for name, value in environment_as_given().items()
        if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV") and not name.upper().endswith(SECRETS)
    }
    if key := server_key():
        env["VLLM_API_KEY"] = key
    env |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    # Kernels for top-k and top-p, which nobody asks for: nvcc, if there is one, compiles them at the start.
    env["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if is_loopback(host):  # whoever can reach it could make it read any directory
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    env.pop("VLLM_BATCH_INVARIANT", None)
    if deterministic:
        env["VLLM_BATCH_INVARIANT"] = "1"
    if gpu is None:
        env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        env.setdefault("OMP_NUM_THREADS", "1")  # several that wait for each other on busy cores are slower
    return env
