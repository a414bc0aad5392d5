"""A loaded model and the LoRA adapters that it carries. The only importer of unsloth."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import sha256_file, write_json
from cai.core.schema import misfit
from cai.core.terminal import say
from cai.models.device import Threads
from cai.models.registry import ModelSpec
from cai.prompts.training_format import TRAINING_CHAT_TEMPLATE

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# How the names of a tokenizer's files begin.
TOKENIZER = ("tokenizer", "special_tokens_map.", "added_tokens.", "vocab.", "merges.", "spiece.")
NOT_HASHED = ("base_model_name_or_path", "peft_version", "name_or_path", "is_local", "local_files_only")
TEXT, LORA = (str, type(None)), "LORA"
BASE_KEYS = {"sha256": str, "bits": int, "files?": {str: str}}
BASE_KEYS |= dict.fromkeys(("model?", "repo?", "revision?"), TEXT)
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# ---- a loaded model ----


@dataclass
class Model:
    """A loaded model, its tokenizer, and the LoRA adapters that it carries by name."""

    spec: ModelSpec
    model: Any  # a transformers CausalLM, a PeftModel once it has an adapter
    tokenizer: Any  # pads on the left
    bits: int
    revision: str | None  # the commit of a hub model, the weights' sha256 of a directory
    # name -> hash ("" while it is being trained)
    adapters: dict[str, str] = dataclasses.field(default_factory=dict)
    threads: Threads | None = None  # on a CPU

    @property
    def device(self):
        return self.model.device

    @property
    def device_name(self) -> str:
        """As models.device.this_device names it."""
        import torch

        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def source(self) -> tuple[str, str | None]:
        """(repository or directory, revision) of the weights that were really loaded."""
        return self.spec.source(self.bits)[0], self.revision

    @property
    def computed_in(self) -> str:
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        return str(dtype).removeprefix("torch.")

    @property
    def precision(self) -> str:
        return {4: "NF4, ", 8: "LLM.int8, "}.get(self.bits, "") + self.computed_in

    def describe(self) -> str:
        return (
            f"{self.spec.name} ({self.spec.kind}), {self.bits} bits, computed in {self.computed_in}, "
            f"on {self.device}, "
            f"revision {(self.revision or 'unknown')[:12]}" + (f", {self.threads}" if self.threads else "")
        )

    def for_inference(self) -> None:
        import_unsloth().FastLanguageModel.for_inference(self.model)
        self.tokenizer.padding_side = "left"

    def for_training(self) -> None:
        import_unsloth().FastLanguageModel.for_training(self.model)

    def add_adapter(self, *, r: int, alpha: int, seed: int) -> None:
        """A new trainable LoRA adapter named "default" on every linear layer; B starts at 0, so that nothing
        changes yet."""
        if r < 1 or alpha < 1:
            raise UserError(f"LoRA rank {r}, alpha {alpha}: both must be at least 1")
        if self.adapters:
            raise UserError(f"{self.spec.name} already carries the adapters {', '.join(self.adapters)}")
        self.model = import_unsloth().FastLanguageModel.get_peft_model(
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
        fact = check_adapter(path, self.spec, self.source)
        if name in self.adapters:
            raise UserError(f"an adapter named {name!r} is loaded already: {', '.join(self.adapters)}")
        from peft import PeftModel

        lora_of(path)
        try:
            if self.adapters:
                self.model.load_adapter(str(path), adapter_name=name, use_safetensors=True)
            else:
                self.model = PeftModel.from_pretrained(
                    self.model, str(path), adapter_name=name, use_safetensors=True
                )
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, RuntimeError) and "size mismatch" not in str(error):
                raise
            # An old one, whose configuration has no hash.
            raise UserError(
                f"the adapter {path} cannot be loaded by its {CONFIG} ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}): train it again"
            ) from None
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

        scratch = path / ".part"  # inside, where no other run can be meant
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
        for file in scratch.iterdir():
            os.replace(file, path / file.name)
        scratch.rmdir()
        repo, revision = self.source
        fact = {"model": self.spec.name, "repo": repo, "revision": revision, "bits": self.bits}
        fact |= adapter_hash(path)
        write_json(path / "base.json", fact)  # last: what was saved in part is known by it
        self.adapters["default"] = fact["sha256"]
        return fact["sha256"]

    def save_merged(self, path: Path) -> None:
        """Writes the weights with the loaded adapter merged into them, and the tokenizer; the model is of no
        use afterwards. Only in 16 bits: the rounding of fewer would eat the update."""
        if self.bits != 16:
            raise UserError(f"{self.spec.name} is loaded in {self.bits} bits: merge an adapter in 16 bits")
        import torch

        whole = self.model.merge_and_unload()
        whole.to(torch.bfloat16).save_pretrained(str(path), safe_serialization=True)
        self.tokenizer.save_pretrained(str(path))


# ---- a saved adapter ----


def adapter_hash(path: Path) -> dict[str, Any]:
    """{"files": hashes of all files that an adapter is made of, "sha256": theirs together}: its weights, its
    configuration, the tokenizer, the chat template. Another alpha is another adapter.

    Left out is what says where or with which version files were written (NOT_HASHED), and the order of the
    layers' names, which is a set's."""
    found = {file.name: _hash(file) for file in path.iterdir() if _is_part(file.name)}
    files = dict(sorted(found.items()))
    return {"files": files, "sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest()}


def _is_part(name: str) -> bool:
    return name in (WEIGHTS, CONFIG) or name.startswith(TOKENIZER) or name.endswith(".jinja")


def _hash(file: Path) -> str:
    if file.name not in (CONFIG, "tokenizer_config.json"):
        return sha256_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kept = {k: v for k, v in content.items() if k not in NOT_HASHED}
    except (ValueError, AttributeError, RecursionError):
        return sha256_file(file)
    if isinstance(layers := kept.get("target_modules"), list):
        kept["target_modules"] = sorted(map(str, layers))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def saved_adapter(path: Path) -> dict[str, Any]:
    """The facts of a saved adapter (base.json), whose files are those that were saved. Raises UserError if it
    is missing, damaged or changed. One saved before the other files had hashes is known by its weights."""
    fact = _base_facts(path)
    digest = sha256_file(path / WEIGHTS)
    now = adapter_hash(path) if "files" in fact else {"files": {WEIGHTS: digest}, "sha256": digest}
    if fact["sha256"] != now["sha256"]:
        saved = fact.get("files", {})
        changed = sorted(k for k in saved.keys() | now["files"].keys() if saved.get(k) != now["files"].get(k))
        raise UserError(
            f"{path / (changed or ['base.json'])[0]} is not the file that was saved (its hash differs): "
            "restore it, or train the adapter again"
        )
    return fact


def _base_facts(path: Path) -> dict[str, Any]:
    """base.json as it is. Raises UserError if it or the weights are missing, or if it is damaged."""
    try:
        fact = json.loads((path / "base.json").read_text(encoding="utf-8"))
        (path / WEIGHTS).stat()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no adapter of ours ({Path(error.filename).name} is missing): train one first"
        ) from None
    except (ValueError, RecursionError):
        fact = None
    if misfit(fact, BASE_KEYS):
        raise UserError(f"{path / 'base.json'} is damaged: train the adapter again")
    return fact


def saved_hash(path: Path, *, as_recorded: bool = False) -> str:
    """An adapter's hash, also where it has lost its base.json and cannot be loaded any more. as_recorded: by
    what base.json says, for a list of many: their weights may be gigabytes."""
    if not (path / "base.json").exists() and (path / WEIGHTS).exists():
        return sha256_file(path / WEIGHTS)
    return (_base_facts if as_recorded else saved_adapter)(path)["sha256"]


def lora_of(path: Path) -> tuple[int, int]:
    """(rank, alpha) of a saved adapter. Raises UserError for a configuration that has none."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path / CONFIG} is missing: restore it, or train the adapter again") from None
    except (ValueError, RecursionError):
        config = None
    wrong = misfit(config, {"r": int, "lora_alpha": (int, float), "peft_type?": str})
    if not wrong and (min(config["r"], config["lora_alpha"]) <= 0 or config.get("peft_type", LORA) != LORA):
        wrong = f"r {config['r']}, lora_alpha {config['lora_alpha']}, {config.get('peft_type', LORA)}"
    if wrong:
        raise UserError(
            f"{path / CONFIG} is no configuration of a LoRA adapter ({wrong}): "
            "restore it, or train the adapter again"
        )
    return config["r"], config["lora_alpha"]


def check_adapter(
    path: Path, spec: ModelSpec, source: tuple[str, str | None] | None = None
) -> dict[str, Any]:
    """The facts of a saved adapter (base.json). Raises UserError if it is missing, damaged, or of another
    base.

    source: (repository, revision) of the weights that it is to be used on, if they are known: the revision
    must be the one it was trained on. Only a model's ready 4-bit and its 16-bit repository have commits that
    say nothing about each other; between these two an adapter is accepted, with a note."""
    fact = saved_adapter(path)
    if (path / CONFIG).exists():
        lora_of(path)
    trained, used = (fact.get("repo"), fact.get("revision")), source or (spec.repo, None)
    other_precision = trained[0] != used[0] and {trained[0], used[0]} == {spec.repo, spec.repo_4bit}
    same_weights = source is None or other_precision or trained[1] == used[1]
    if fact.get("model") != spec.name or not same_weights:
        raise UserError(
            f"the adapter {path} belongs to {fact.get('model')} (revision {str(trained[1])[:12]}), "
            f"not to {spec.name} (revision {str(used[1])[:12]}): give the model it was trained on"
        )
    if source and other_precision:
        say(
            f"note: the adapter {path} was trained on {trained[0]} (revision {str(trained[1])[:12]}), "
            f"and is used on {used[0]} (revision {str(used[1])[:12]}): the same model in another precision",
            error=True,
        )
    return fact


def import_unsloth():
    """Unsloth patches trl, peft and transformers when it is imported, so it comes before them, and only
    here."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    # On a CPU it warns of a faster kernel that Unsloth must not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with quiet():
        import unsloth

    return unsloth


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds a library's banners back; shows them if it fails."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stdout(held):
            yield
    except BaseException:
        say(held.getvalue())
        raise


def free_memory() -> None:
    """Gives the GPU what nothing refers to any more: after the last reference to a model is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
