"""Experiment trackers, each by a flag and none by default. A tracker gets numbers and settings, never
texts."""

from __future__ import annotations

import importlib.util
import netrc
import os
from pathlib import Path

from cai.core.errors import UserError

TRACKERS = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "tensorboard"}  # name -> package


def check(name: str) -> None:
    """Raises UserError if a tracker's package is missing."""
    if name != "none" and importlib.util.find_spec(TRACKERS[name]) is None:
        raise UserError(f"--tracker {name}: the package is missing; run: pip install {TRACKERS[name]}")


def prepare(name: str, output: Path) -> list[str]:
    """What TRL's report_to takes. Files go beside the checkpoint; wandb stays offline unless the user is
    logged in or has set WANDB_MODE."""
    if name == "none":
        return []
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output / "tensorboard"))
    os.environ.setdefault("TRACKIO_DIR", str(output / "trackio"))
    os.environ.setdefault("WANDB_DIR", str(output))
    os.environ.setdefault("WANDB_PROJECT", "a-base-model-aligns-itself")
    if name == "wandb" and not _wandb_login():
        os.environ.setdefault("WANDB_MODE", "offline")
    return [name]


def _wandb_login() -> bool:
    """Whether `wandb login` was run here or a key is set. Asking wandb itself would fix its mode for good."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].rstrip("/")
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        entry = None
    return bool(entry or os.environ.get("WANDB_API_KEY"))
