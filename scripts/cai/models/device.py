"""Which machine this is: GPUs, cores, disk, the model cache, what an hour costs. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cai.core.cli import DOLLARS_PER_HOUR

GB = 1e9
BF16_CAPABILITY = (8, 0)  # Ampere
VOLUME = Path("/workspace")  # where RunPod mounts the disk that outlives a pod's container
CGROUP, STAT = Path("/sys/fs/cgroup"), Path("/proc/stat")


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


# ---- threads ----


@dataclass(frozen=True)
class Threads:
    """How many threads the CPU computes with, and why that many."""

    number: int
    why: str

    def __str__(self) -> str:
        return f"{self.number} thread{'s' if self.number > 1 else ''}{self.why}"


@dataclass(frozen=True)
class CpuTime:
    """Seconds: of the clock; that this process's cores were busy, if the system says; that it computed."""

    clock: float
    busy: float | None
    own: float

    @classmethod
    def now(cls) -> CpuTime:
        return cls(time.monotonic(), _busy_seconds(), time.process_time())

    def busy_since(self) -> float:
        """How many cores others have kept busy since then; by the load average where only that is known."""
        now = CpuTime.now()
        passed = now.clock - self.clock
        if passed <= 0 or self.busy is None or now.busy is None or now.busy == self.busy:
            return os.getloadavg()[0]
        return max(0.0, (now.busy - self.busy - (now.own - self.own)) / passed)


LOOK_SECONDS = 0.3  # over which the load is measured at least: the system counts in hundredths


def short_waits() -> None:
    """Threads that wait for each other give their core up soon: with OpenMP's long waits two threads on two
    cores that others need are many times slower than one. Read once, when torch is imported; it also serves
    where a machine becomes busy later."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def choose_threads(since: CpuTime) -> Threads:
    """As many as OMP_NUM_THREADS (--threads) says, else as many as there are cores that others leave free."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return Threads(int(asked), ", as asked for")
    time.sleep(max(0.0, since.clock + LOOK_SECONDS - time.monotonic()))
    cores = usable_cores()
    busy = min(since.busy_since(), len(_own_cores()))
    number = max(1, min(cores, int(len(_own_cores()) - busy + 0.5)))
    return Threads(number, f": {busy:.1f} of {len(_own_cores())} cores are busy" if number < cores else "")


def usable_cores() -> int:
    """The cores that this process may use, within a container's quota."""
    quota = len(_own_cores())
    for limit, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            cells = (CGROUP / limit).read_text().split()
            cells += (CGROUP / period).read_text().split() if period else []
            if int(cells[0]) > 0:
                quota = min(quota, int(int(cells[0]) / int(cells[1]) + 0.5))
        except (OSError, ValueError, IndexError):  # another version of cgroups; "max"
            continue
    return max(1, quota)


def _own_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """All the time that the cores of this process have been busy (user, nice, system, interrupts, stolen)."""
    try:
        rows = [line.split() for line in STAT.read_text().splitlines()]
        of = {int(row[0][3:]): row for row in rows if re.fullmatch(r"cpu\d+", row[0])}
        ticks = sum(int(of[core][i]) for core in _own_cores() for i in (1, 2, 3, 6, 7, 8))
    except (OSError, ValueError, LookupError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


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
    return shutil.disk_usage(_existing(path)).free


def same_disk(one: Path, other: Path) -> bool:
    """Whether two paths, which need not exist yet, lie on one disk."""
    return _existing(one).stat().st_dev == _existing(other).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def output_of(*command: str) -> tuple[int, str]:
    """(exit status, output) of a short command; a driver that hangs counts as one that does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr
