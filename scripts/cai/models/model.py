"""A loaded model and the LoRA adapters that it carries. The only importer of unsloth."""

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

from cai.core.errors import UserError
from cai.core.files import sha256_file
from cai.core.terminal import say
from cai.models.device import Threads
from cai.models.registry import ModelSpec
from cai.prompts.training_format import TRAINING_CHAT_TEMPLATE

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

    def describe(self) -> str:
        computed = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        dtype = str(computed).removeprefix("torch.")
        return (
            f"{self.spec.name} ({self.spec.kind}), {self.bits} bits, computed in {dtype}, on {self.device}, "
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
        repo, revision = self.source
        fact = {
            "model": self.spec.name,
            "repo": repo,
            "revision": revision,
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

    def save_merged(self, path: Path) -> None:
        """Writes the weights with the loaded adapter merged into them, and the tokenizer; the model is of no
        use afterwards. Only in 16 bits: the rounding of fewer would eat the update."""
        if self.bits != 16:
            raise UserError(f"{self.spec.name} is loaded in {self.bits} bits: merge an adapter in 16 bits")
        import torch

        whole = self.model.merge_and_unload()
        whole.to(torch.bfloat16).save_pretrained(str(path), safe_serialization=True)
        self.tokenizer.save_pretrained(str(path))


def check_adapter(
    path: Path, spec: ModelSpec, source: tuple[str, str | None] | None = None
) -> dict[str, Any]:
    """The facts of a saved adapter (base.json). Raises UserError if it is missing, damaged, or of another
    base.

    source: (repository, revision) of the weights that it is to be used on, if they are known: the revision
    must be the one it was trained on. Only a model's ready 4-bit and its 16-bit repository have commits that
    say nothing about each other; between these two an adapter is accepted, with a note."""
    weights = path / "adapter_model.safetensors"
    try:
        fact = json.loads((path / "base.json").read_text(encoding="utf-8"))
        if not isinstance(fact, dict):
            raise ValueError
        digest = sha256_file(weights)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} holds no adapter of ours ({Path(error.filename).name} is missing): train one first"
        ) from None
    except ValueError:
        raise UserError(f"{path / 'base.json'} is damaged: train the adapter again") from None
    if fact.get("sha256") != digest:
        raise UserError(
            f"{weights} is not the file that was saved (its hash differs): train the adapter again"
        )
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
