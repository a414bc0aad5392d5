"""Models: loading, adapters, saving, merging. The only importer of unsloth.

The same code runs on CPU and GPU. Weights are safetensors only, and code from a hub is never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.hardware import settle_cache
from cai.registry import ModelSpec
from cai.run import ROOT, UserError, sha256_file

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# What a checkpoint may bring: weights as safetensors, configuration and tokenizer as text; no pickles or
# code.
SAFE_FILES = (
    "*.safetensors",
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
GB = 1e9


# ---- a loaded model ----


@dataclass
class Model:
    """A loaded model, its tokenizer, and the LoRA adapters that it carries by name."""

    spec: ModelSpec
    model: Any  # a transformers CausalLM, a PeftModel once it has an adapter
    tokenizer: Any  # pads on the left
    bits: int
    revision: str | None  # the commit of a hub model, the weights' sha256 of a directory
    adapters: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # name -> hash ("" while it is being trained)

    @property
    def device(self):
        return self.model.device

    def describe(self) -> str:
        dtype = str(next(p.dtype for p in self.model.parameters() if p.is_floating_point())).removeprefix(
            "torch."
        )
        return (
            f"{self.spec.name} ({self.spec.kind}), {self.bits} bits, computed in {dtype}, on {self.device}, "
            f"revision {(self.revision or 'unknown')[:12]}"
        )

    def for_inference(self) -> None:
        _unsloth().FastLanguageModel.for_inference(self.model)
        self.tokenizer.padding_side = "left"

    def for_training(self) -> None:
        _unsloth().FastLanguageModel.for_training(self.model)

    def add_adapter(self, *, r: int, alpha: int, seed: int) -> None:
        """A new trainable LoRA adapter named "default" on every linear layer; B starts at 0, so that nothing
        changes yet."""
        if r < 1 or alpha < 1:
            raise UserError(f"LoRA rank {r}, alpha {alpha}: both must be at least 1")
        if self.adapters:
            raise UserError(f"{self.spec.name} already carries the adapters {', '.join(self.adapters)}")
        self.model = _unsloth().FastLanguageModel.get_peft_model(
            self.model,
            r=r,
            lora_alpha=alpha,
            target_modules=list(LORA_TARGETS),
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing="unsloth" if self.device.type == "cuda" else False,
            random_state=seed,
        )
        self.adapters["default"] = ""

    def load_adapter(self, path: Path, name: str) -> None:
        """Loads a saved adapter under a name. Raises UserError if it is missing, not safetensors, or of
        another base."""
        fact = check_adapter(path, self.spec, self.revision)
        if name in self.adapters:
            raise UserError(f"an adapter named {name!r} is loaded already: {', '.join(self.adapters)}")
        from peft import PeftModel

        if self.adapters:
            self.model.load_adapter(str(path), adapter_name=name, use_safetensors=True)
        else:
            self.model = PeftModel.from_pretrained(
                self.model, str(path), adapter_name=name, use_safetensors=True
            )
        self.adapters[name] = fact["sha256"]

    @contextlib.contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Swaps the named adapter in, or all of them out (None: the base model itself)."""
        if adapter is None:
            with self.model.disable_adapter() if self.adapters else contextlib.nullcontext():
                yield
            return
        if adapter not in self.adapters:
            raise UserError(
                f"no adapter {adapter!r} is loaded; there are: {', '.join(self.adapters) or 'none'}"
            )
        before = self.model.active_adapter
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.model.set_adapter(adapter)
        try:
            yield
        finally:
            self.model.set_adapter(before)
            for p in trainable:
                p.requires_grad_(True)

    def save_adapter(self, path: Path) -> str:
        """Writes the adapter "default", the tokenizer with the chat template of the training format, and
        base.json; its hash."""
        from safetensors import SafetensorError

        from cai.prompts import TRAINING_CHAT_TEMPLATE

        scratch = path.with_name(path.name + ".part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        config = self.model.peft_config["default"]
        config.base_model_name_or_path = self.spec.repo  # a hub id, not this machine's cache
        try:
            self.model.save_pretrained(str(scratch), selected_adapters=["default"], safe_serialization=True)
        except SafetensorError as error:  # the disk's errors come wrapped
            raise UserError(
                f"the adapter cannot be written to {path} ({error}): free some disk space, then rerun"
            ) from None
        if self.spec.kind == "base":
            self.tokenizer.chat_template = TRAINING_CHAT_TEMPLATE
        self.tokenizer.save_pretrained(str(scratch))
        fact = {
            "model": self.spec.name,
            "repo": self.spec.repo,
            "revision": self.revision,
            "bits": self.bits,
            "sha256": sha256_file(scratch / "adapter_model.safetensors"),
        }
        (scratch / "base.json").write_text(json.dumps(fact, indent=1) + "\n", encoding="utf-8")
        path.mkdir(parents=True, exist_ok=True)
        for file in scratch.iterdir():
            os.replace(file, path / file.name)
        scratch.rmdir()
        self.adapters["default"] = fact["sha256"]
        return fact["sha256"]


def load(spec: ModelSpec, bits: int | None = None) -> Model:
    """Loads weights and tokenizer through Unsloth in 4 (NF4), 8 or 16 bits.

    On a GPU 16 bits are bfloat16; on a CPU the 16-bit weights compute in float32, whose rounding lets a row's
    text not depend on its batch. Raises UserError where the machine or the network cannot.
    """
    bits = spec.bits if bits is None else bits
    if bits not in (4, 8, 16):
        raise UserError(f"--bits {bits}: choose 4, 8 or 16")
    import torch

    cuda = torch.cuda.is_available()
    if bits == 8 and not cuda:
        raise UserError(
            "--bits 8 needs a CUDA GPU (bitsandbytes has no 8-bit training on a CPU): use --bits 4 or "
            "--bits 16"
        )
    if cuda:
        check_gpu_memory(spec, bits, torch.cuda.mem_get_info()[0])
    path, revision = fetch(spec, bits)
    dtype = None if cuda else torch.float32
    unsloth = _unsloth()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with _quiet():
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
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
            f"--bits {bits}: the weights came up in {found} bits, so bitsandbytes does not work on this "
            "machine: "
            f"rerun with --bits 16, or repair bitsandbytes (bash setup_environment.sh)"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Model(spec, model, tokenizer, bits, revision)


def merge(spec: ModelSpec, adapter: Path, target: Path) -> None:
    """Merges an adapter into 16-bit weights and saves them. Never into 4-bit ones: rounding would eat the
    update."""
    loaded = load(spec, 16)
    loaded.load_adapter(adapter, "merged")
    whole = loaded.model.merge_and_unload()
    import torch

    whole.to(torch.bfloat16).save_pretrained(str(target), safe_serialization=True)
    loaded.tokenizer.save_pretrained(str(target))


def fetch(spec: ModelSpec, bits: int) -> tuple[Path, str | None]:
    """(directory, revision) of the weights: a local directory as it is, a hub repository from the cache or
    the network."""
    repo, revision = spec.source(bits)
    local = Path(repo) if Path(repo).is_absolute() else ROOT / repo
    if local.is_dir():
        return local, _check_directory(local)
    if spec.repo.startswith("models/"):
        raise UserError(
            f"{local} is missing: restore it (git checkout -- {repo}), or build it with python "
            "scripts/make_sandbox.py"
        )
    import httpx
    settle_cache()  # before huggingface_hub is imported
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str):
        check_disk(spec, bits)
    try:
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=list(SAFE_FILES)))
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
            f"{repo} is not in the cache and the model hub cannot be reached: connect this machine to the "
            "network, "
            f"copy the model here and give --model its directory, or use --model sandbox"
        ) from None
    except (HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        raise UserError(
            f"downloading {repo} failed ({type(error).__name__}): rerun the same command, the download goes "
            "on"
        ) from None
    _check_directory(path, hashed=False)
    return path, path.name  # snapshots/<commit>


def check_disk(spec: ModelSpec, bits: int) -> None:
    """Raises UserError when the model cache's disk is too small for the download."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    free, need = shutil.disk_usage(place).free / GB, spec.download_gb(bits) * 1.05
    if free < need:
        raise UserError(
            f"{spec.name} in {bits} bits needs {need:.0f} GB in the model cache {HF_HUB_CACHE}, where "
            f"{free:.0f} GB are "
            f"free: set HF_HOME to a larger disk (on RunPod: export HF_HOME=/workspace/huggingface)"
        )


def check_gpu_memory(spec: ModelSpec, bits: int, free_bytes: int) -> None:
    """Raises UserError when the weights do not fit into the free GPU memory."""
    need, free = spec.memory_gb(bits), free_bytes / GB
    if spec.parameters and free < need:
        smaller = [b for b in (4, 8) if b < bits and spec.memory_gb(b) <= free]
        way_out = f"use --bits {max(smaller)}" if smaller else "choose a smaller --model or a larger GPU"
        raise UserError(
            f"{spec.name} in {bits} bits needs about {need:.0f} GB of GPU memory, {free:.0f} GB are free: "
            f"{way_out}, "
            f"and see with nvidia-smi whether another process holds memory"
        )


def check_adapter(path: Path, spec: ModelSpec, revision: str | None = None) -> dict[str, Any]:
    """The facts of a saved adapter (base.json). Raises UserError if it is missing, damaged, or of another
    base."""
    weights = path / "adapter_model.safetensors"
    try:
        fact = json.loads((path / "base.json").read_text(encoding="utf-8"))
        digest = sha256_file(weights)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no adapter of ours ({Path(error.filename).name} is missing): train one first"
        ) from None
    except json.JSONDecodeError:
        raise UserError(f"{path / 'base.json'} is damaged: train the adapter again") from None
    if fact.get("sha256") != digest:
        raise UserError(
            f"{weights} is not the file that was saved (its hash differs): train the adapter again"
        )
    if fact.get("model") != spec.name or (
        fact.get("bits")
        and revision
        and spec.repo_4bit is None
        and fact.get("revision") not in (None, revision)
    ):
        raise UserError(
            f"the adapter {path} belongs to {fact.get('model')} (revision {str(fact.get('revision'))[:12]}), "
            f"not to {spec.name} (revision {str(revision)[:12]}): give the model it was trained on"
        )
    return fact


def _check_directory(path: Path, *, hashed: bool = True) -> str | None:
    """A model directory must hold a config and safetensors; its weights' hash stands for its revision."""
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise UserError(
            f"{path} is no model directory: it needs config.json and *.safetensors (pickled weights are not "
            "loaded)"
        )
    return sha256_file(weights[0]) if hashed and len(weights) == 1 else None


def _bits_of(model) -> int:
    """The precision that the linear layers really have."""
    kinds = {type(m).__name__ for m in model.modules()}
    return 4 if "Linear4bit" in kinds else 8 if "Linear8bitLt" in kinds else 16


def _unsloth():
    """Unsloth patches trl, peft and transformers when it is imported, so it comes before them, and only
    here."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # on a CPU it warns of a faster kernel that Unsloth must not use
    with _quiet():
        import unsloth

    return unsloth


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds a library's banners back; shows them if it fails."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held):
            yield
    except BaseException:
        print(held.getvalue(), end="")
        raise
