"""Checkpoints of a training in progress: whole ones only, safetensors, resumable after a kill at any moment.

    checkpoints/<run>/steps/checkpoint-<step>/   weights, optimizer, scheduler, random states

A checkpoint counts once complete.json is there and the hashes in it are those of the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from cai.core.errors import UserError
from cai.core.files import sha256_file, write_json
from cai.models.model import WEIGHTS

COMPLETE = "complete.json"
DIRECTORY = "steps"


def place(output: Path, step: int) -> Path:
    return output / DIRECTORY / f"checkpoint-{step}"


def save_weights(model, path: Path) -> None:
    """The adapter "default" of a PEFT model, alone: TRL's frozen copy of the start is made anew from the
    start."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(str(path), selected_adapters=["default"], safe_serialization=True)
    except SafetensorError as error:  # the disk's errors come wrapped
        raise disk_error(path, error) from None


def disk_error(path: Path, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint {path} cannot be written ({str(error).splitlines()[0]}): free some disk space, "
        "then rerun the same command; it goes on from the checkpoint before"
    )


def load_weights(model, path: Path) -> None:
    """Puts a checkpoint's weights into the adapter "default", in place. Raises UserError if they do not fit
    it."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(str(path / WEIGHTS)), adapter_name="default")
    missing = [k for k in result.missing_keys if "lora_" in k and ".default." in k]
    if missing or result.unexpected_keys:
        raise UserError(
            f"{path / WEIGHTS} does not fit the model ({len(missing)} weights missing, "
            f"{len(result.unexpected_keys)} unknown): was it trained with other LoRA settings?"
        )


def complete(path: Path) -> None:
    """Declares a checkpoint whole."""
    files = {f.name: sha256_file(f) for f in sorted(path.iterdir()) if f.is_file() and f.name != COMPLETE}
    write_json(path / COMPLETE, {"files": files})


def is_complete(path: Path) -> bool:
    """Whether every file is there as it was written. A crash leaves half a checkpoint, which is not."""
    try:
        files = json.loads((path / COMPLETE).read_text(encoding="utf-8"))["files"]
        return all(sha256_file(path / name) == digest for name, digest in files.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def steps(output: Path) -> list[int]:
    """Steps of the whole checkpoints, ascending."""
    numbers = (p.name.removeprefix("checkpoint-") for p in (output / DIRECTORY).glob("checkpoint-*"))
    return sorted(int(n) for n in numbers if n.isdecimal() and is_complete(place(output, int(n))))


def prune(output: Path, keep: Iterable[int]) -> None:
    """Removes all checkpoints but some: one of a 32B model takes gigabytes."""
    kept = {place(output, step) for step in keep}
    for path in (output / DIRECTORY).glob("checkpoint-*"):
        if path not in kept:
            shutil.rmtree(path)
