"""Loads a model through Unsloth: what is checked before, where its weights come from, and what came up.

The same code runs on CPU and GPU. Weights are safetensors only, and code from a hub is never run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT, from_json, sha256_file
from cai.core.terminal import say
from cai.models import pins
from cai.models.device import (
    CpuTime,
    cache_dir,
    cached,
    changing_environment,
    choose_threads,
    hub_token,
    settle_allocator,
    settle_cache,
    short_waits,
    visible_gpus,
)
from cai.models.fit import disk_fit, memory_fit
from cai.models.model import Model, import_unsloth, quiet
from cai.models.registry import ModelSpec

# What a checkpoint may bring: safetensors, and text for configuration and tokenizer; no pickles, no code.
WEIGHTS = "*.safetensors"
SAFE_FILES = (
    WEIGHTS,
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


@changing_environment()
def load(spec: ModelSpec, bits: int | None = None) -> Model:
    """Loads weights and tokenizer through Unsloth in 4 (NF4), 8 or 16 bits.

    On a GPU 16 bits are bfloat16; on a CPU the 16-bit weights compute in float32, whose rounding lets a row's
    text not depend on its batch. Raises UserError where the machine or the network cannot.
    """
    bits = spec.bits if bits is None else bits
    if bits not in (4, 8, 16):
        raise UserError(f"--bits {bits}: choose 4, 8 or 16")
    short_waits()
    settle_allocator()
    started = CpuTime.now()
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and (listed := visible_gpus()):
        raise UserError(
            f"nvidia-smi lists a GPU ({listed[0].name}), but torch {torch.__version__} cannot use it: "
            "run bash setup_environment.sh, which checks driver and packages, "
            "or set CUDA_VISIBLE_DEVICES=-1 to work on the CPU"
        )
    check_bits(bits, gpu=cuda)
    if cuda:
        check_gpu_memory(spec, bits, torch.cuda.mem_get_info()[0])
    path, revision = fetch(spec, bits)
    dtype = None if cuda else torch.float32
    unsloth = import_unsloth()
    import transformers

    threads = None if cuda else choose_threads(started)
    if threads:
        torch.set_num_threads(threads.number)  # OpenMP's and MKL's; eager code has no use for others

    transformers.utils.logging.disable_progress_bar()
    with quiet():
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(path),
            max_seq_length=spec.max_seq_length,
            dtype=dtype,
            load_in_4bit=bits == 4,
            load_in_8bit=bits == 8,
            load_in_16bit=bits == 16,
            use_exact_model_name=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    found = _bits_of(model)
    if found != bits:  # Unsloth's CPU backend falls back to 16 bits with a printed line; we do not
        raise UserError(
            f"--bits {bits}: the weights came up in {found} bits, "
            "so bitsandbytes does not work on this machine: "
            "rerun with --bits 16, or repair bitsandbytes (bash setup_environment.sh)"
        )
    return Model(spec, model, own_tokenizer(path, model), bits, revision, threads=threads)


def own_tokenizer(path: Path, model: Any) -> Any:
    """The tokenizer as the checkpoint has it, padding on the left; the model pads with its token.

    On CUDA, and only there, Unsloth mends what it takes for a fault: a model whose pad is its end of text
    gets another pad, the sandbox even a new token, and every adapter would be saved with it. Attention masks,
    and the trainers' masks of completions, tell a pad from an end of text here.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def check_bits(bits: int, *, gpu: bool) -> None:
    if bits == 8 and not gpu:
        raise UserError(
            "--bits 8 needs a CUDA GPU (bitsandbytes has no 8-bit training on a CPU): "
            "use --bits 4 or --bits 16"
        )


def load_tokenizer(spec: ModelSpec, bits: int) -> tuple[Any, str | None]:
    """(tokenizer, revision) of the weights that a server has: these alone are needed here.

    What must come before torch and transformers does so here, too: the same process may load weights later,
    to train, and Unsloth patches nothing in a module that others have imported."""
    short_waits()
    settle_allocator()
    path, revision = fetch(spec, bits, weights=False)
    import_unsloth()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False), revision


def fetch(spec: ModelSpec, bits: int, *, weights: bool = True) -> tuple[Path, str | None]:
    """(directory, revision) of a model: a local directory as it is, a hub repository from the cache or the
    network, without its weights if they are not asked for."""
    repo, revision = spec.source(bits)
    if local := _local(repo):
        return local, _check_directory(local)
    import httpx

    settle_cache()  # before huggingface_hub is imported
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if weights:
        check_disk(spec, bits)
    files = [name for name in SAFE_FILES if weights or name != WEIGHTS]
    fresh = not cached(repo, revision)
    try:
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=files))
    except GatedRepoError:
        raise UserError(
            f"{repo} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(
            f"the hub has no {repo}" + (f" at revision {revision}" if revision else "") + ": check --model"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.ConnectError, httpx.ConnectTimeout):
        raise UserError(
            f"{repo} is not in the cache and the model hub cannot be reached: "
            "connect this machine to the network, copy the model here and give --model its directory, "
            "or use --model sandbox"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise UserError(
            f"downloading {repo} failed ({type(error).__name__}): "
            "rerun the same command, the download goes on"
        ) from None
    if weights:
        _check_directory(path, hashed=False)
        if revision in (None, pins.pinned_commit(repo)) and (said := pins.settle(repo, path, fresh=fresh)):
            say(said)
    return path, path.name  # snapshots/<commit>


def _local(repo: str) -> Path | None:
    """The directory that a model is in; None for one of the hub. Raises UserError for a sandbox that is not
    there."""
    local = Path(repo) if Path(repo).is_absolute() else ROOT / repo
    if local.is_dir():
        return local
    if repo.startswith("models/"):
        raise UserError(
            f"{local} is missing: restore it (git checkout -- {repo}), "
            "or build it with python scripts/make_sandbox.py"
        )
    return None


def check_local(spec: ModelSpec, bits: int, *, context_is_set: bool = False) -> None:
    """Raises UserError for a directory that is no model's, or whose model reads less than the context that
    was set: before anything is written. Of a model of the hub that shows when it has been fetched."""
    local = _local(spec.source(bits)[0])
    if not local:
        return
    _check_directory(local, hashed=False)
    path = local / "config.json"
    try:
        config = from_json(path.read_bytes())
        made_for = config.get("max_position_embeddings")
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: copy the model anew") from None
    if context_is_set and isinstance(made_for, int) and spec.max_seq_length > made_for:
        raise UserError(
            f"--set max_seq_length={spec.max_seq_length}: {spec.name} reads at most {made_for} tokens"
        )


def check_access(spec: ModelSpec, bits: int) -> None:
    """Raises UserError for a gated repository that is not in the cache, where there is no token to get it."""
    settle_cache()
    repo, revision = spec.source(bits)
    if spec.gated and not cached(repo, revision) and not hub_token():
        raise UserError(
            f"{repo} is gated, and there is no token of the model hub: accept its terms on "
            f"https://huggingface.co/{repo}, then log in with `hf auth login`"
        )


def check_disk(spec: ModelSpec, bits: int) -> None:
    """Raises UserError when the model cache's disk is too small for the download."""
    fit = disk_fit(spec, bits)
    if not fit.ok:
        raise UserError(
            f"{spec.name} in {bits} bits needs {fit.need:.0f} GB in the model cache {cache_dir()}, "
            f"where {fit.free:.0f} GB are free: "
            "set HF_HOME to a larger disk (on RunPod: export HF_HOME=/workspace/huggingface)"
        )


def check_gpu_memory(spec: ModelSpec, bits: int, free_bytes: int) -> None:
    """Raises UserError when the weights do not fit into the free GPU memory."""
    fit = memory_fit(spec, bits, free_bytes, gpu=True)
    if not fit.ok:
        way_out = f"use --bits {fit.smaller}" if fit.smaller else "choose a smaller --model or a larger GPU"
        raise UserError(
            f"{spec.name} in {bits} bits needs about {fit.need:.0f} GB of GPU memory, "
            f"{fit.free:.0f} GB are free: "
            f"{way_out}, and see with nvidia-smi whether another process holds memory"
        )


def _check_directory(path: Path, *, hashed: bool = True) -> str | None:
    """A model directory must hold a config and safetensors; its weights' hash stands for its revision."""
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise UserError(
            f"{path} is no model directory: it needs config.json and *.safetensors "
            "(pickled weights are not loaded)"
        )
    return sha256_file(weights[0]) if hashed and len(weights) == 1 else None


def _bits_of(model) -> int:
    """The precision that the linear layers really have."""
    kinds = {type(m).__name__ for m in model.modules()}
    return 4 if "Linear4bit" in kinds else 8 if "Linear8bitLt" in kinds else 16
