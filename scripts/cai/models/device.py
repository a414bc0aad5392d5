"""Which machine this is: GPUs, disk, the model cache, what an hour costs. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cai.core.cli import DOLLARS_PER_HOUR

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
    status, text = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
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


def gpus_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES leaves no GPU: CUDA reads its list up to the first number that is none."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1")


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use."""
    return [] if gpus_hidden() else gpus()[0]


def this_device() -> str:
    """The GPU's name, or "cpu", found without loading torch. The default model, guard and hourly rate follow
    from it, and the ledger's rates are looked up by it."""
    found = visible_gpus()
    return found[0].name if found else "cpu"


def hourly_rate(asked: float | None, device: str | None = None) -> float:
    """Dollars per hour: what was asked for, else a rented GPU's price, else nothing for one's own machine.

    device: a name as this_device() gives it, this machine's if there is none."""
    if asked is not None:
        return asked
    return 0.0 if (device or this_device()) == "cpu" else DOLLARS_PER_HOUR


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


def cached(repo: str, revision: str | None = None) -> bool:
    """Whether the cache holds weights of a hub repository, with no download of them cut short.

    revision: a commit; None, and the name of a branch or tag, stand for any."""
    place, commit = _place(repo), revision if re.fullmatch(r"[0-9a-f]{40}", revision or "") else "*"
    return any(place.glob(f"snapshots/{commit}/*.safetensors")) and not any(place.glob("blobs/*.incomplete"))


def cached_bytes(repo: str) -> int:
    """What the cache holds of a hub repository, parts of files included: a download goes on from there."""
    return sum(path.stat().st_size for path in _place(repo).glob("blobs/*"))


def _place(repo: str) -> Path:
    return cache_dir() / f"models--{repo.replace('/', '--')}"


def disk_free(path: Path) -> float:
    """Free bytes of the disk that holds a path, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def output_of(*command: str) -> tuple[int, str]:
    """(exit status, output) of a short command; a driver that hangs counts as one that does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr
