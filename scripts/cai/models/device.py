"""What this machine has: GPUs, disk, the model cache. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
BF16_CAPABILITY = (8, 0)  # Ampere
VOLUME = Path("/workspace")  # where RunPod mounts the disk that outlives a pod's container


@dataclass(frozen=True)
class Gpu:
    """memory and free in bytes; capability as (major, minor), None where the driver does not say."""

    name: str
    driver: str
    memory: float
    free: float
    capability: tuple[int, int] | None

    @property
    def bf16(self) -> bool:
        return self.capability is not None and self.capability >= BF16_CAPABILITY


def gpus() -> tuple[list[Gpu], str]:
    """The NVIDIA GPUs that nvidia-smi lists, or why there are none."""
    if shutil.which("nvidia-smi") is None:
        return [], "no nvidia-smi on this machine"
    fields = "name,driver_version,memory.total,memory.free,compute_cap"
    status, text = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    if status:
        said = text.strip().splitlines() or [f"exit status {status}"]
        return [], f"nvidia-smi is here but does not answer: {said[-1]}"
    found = [_gpu(line.split(",")) for line in text.splitlines() if line.count(",") == 4]
    return found, "" if found else "nvidia-smi lists no GPU"


def _gpu(cells: list[str]) -> Gpu:
    """One CSV line of nvidia-smi; memory comes in MiB, and what a driver does not know as [N/A]."""
    name, driver, total, free, capability = (cell.strip() for cell in cells)
    mib = [float(cell) if re.fullmatch(r"[\d.]+", cell) else 0.0 for cell in (total, free)]
    known = re.fullmatch(r"(\d+)\.(\d+)", capability)
    return Gpu(name, driver, *(m * 2**20 for m in mib), (int(known[1]), int(known[2])) if known else None)


def machine_kind() -> str:
    """ "cuda" where nvidia-smi lists a GPU, else "cpu": which set of packages belongs here."""
    return "cuda" if gpus()[0] else "cpu"


# ---- disk and the model cache ----


def cache_dir() -> Path:
    """Where huggingface_hub keeps models: the rule of its constants module, which is not imported here."""
    env = os.environ
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(hub).expanduser()


def settle_cache() -> None:
    """Puts the model cache on RunPod's volume unless the user has said where: 19 GB once, not once a pod.

    To be called before huggingface_hub is imported, which reads the variable once.
    """
    chosen = any(os.environ.get(k) for k in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"))
    if not chosen and VOLUME.is_dir() and os.access(VOLUME, os.W_OK):
        os.environ["HF_HOME"] = str(VOLUME / "huggingface")


def cached(repo: str) -> bool:
    """Whether the cache holds weights of a hub repository, with no download of them cut short."""
    place = cache_dir() / f"models--{repo.replace('/', '--')}"
    return any(place.glob("snapshots/*/*.safetensors")) and not any(place.glob("blobs/*.incomplete"))


def disk_free(path: Path) -> float:
    """Free bytes of the disk that holds a path, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _run(*command: str) -> tuple[int, str]:
    """(exit status, output) of a short command; a driver that hangs counts as one that does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def this_device() -> str:
    """The GPU's name, or "cpu": as the ledger has it, found without loading torch."""

    found, _ = gpus()
    return found[0].name if found else "cpu"
