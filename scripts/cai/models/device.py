"""Which machine this is: GPUs, cores, disk, the model cache, what an hour costs. Standard library only."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cai.core.cli import DOLLARS_PER_HOUR
from cai.core.files import ROOT

GB = 1e9
BF16_CAPABILITY = (8, 0)  # Ampere
CUDA, DRIVER = 13, 580  # what the pinned torch is built for, and the first driver that runs it
DRIVER_12 = 525  # the first driver that runs what is built for any CUDA 12
VOLUME = Path("/workspace")  # where RunPod mounts the disk that outlives a pod's container
CGROUP, STAT, MOUNTS = Path("/sys/fs/cgroup"), Path("/proc/stat"), Path("/proc/mounts")
# File systems behind a network, as /proc/mounts calls them (RunPod's network volumes are of the type fuse).
NETWORK_DISK = re.compile(
    r"(nfs|cifs|smb|9p|ceph|lustre|gluster|beegfs|gpfs|afs)|fuse(\.(?!fuse-overlayfs)|$)"
)


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


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver, or a compatibility library before it, runs: nvidia-smi's header."""
    said = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", output_of("nvidia-smi")[1])
    return (int(said[1]), int(said[2])) if said else None


def cuda_major() -> int:
    """The newest major version of CUDA that runs here, by the driver's number if nvidia-smi does not say it;
    0 without a GPU. Below CUDA there is no vLLM, and torch is another build."""
    found, _ = gpus()
    if not found:
        return 0
    if version := cuda_version():
        return version[0]
    number = int(re.match(r"\d*", found[0].driver)[0] or 0)
    return CUDA if number >= DRIVER else 12 if number >= DRIVER_12 else 11


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


# ---- the environment's variables ----

_CHANGED: dict[str, str | None] = {}  # by loading a model here: what each was before


@contextmanager
def changing_environment() -> Iterator[None]:
    """Around what sets variables for this process alone, such as importing Unsloth, which sets dozens."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in before.keys() | os.environ.keys():
            if before.get(name) != os.environ.get(name):
                _CHANGED.setdefault(name, before.get(name))


def environment_as_given() -> dict[str, str]:
    """For another program: a server that starts after a training is to be the one that was there before."""
    given = dict(os.environ) | _CHANGED
    return {name: value for name, value in given.items() if value is not None}


# ---- CUDA's allocator ----

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # torch 2.13 reads both, the older one first
EXPANDABLE = "expandable_segments:True"


def settle_allocator() -> None:
    """Lets torch's CUDA allocator grow its segments, unless the user has said how it is to work: texts of
    many lengths leave holes in segments of fixed size, into which no batch fits.

    To be called before torch is imported: it is read once, when CUDA is first used, and Unsloth, which sets
    it, too, comes later. Windows' Linux has no such segments.
    """
    if not any(os.environ.get(name) for name in ALLOCATOR) and "microsoft" not in os.uname().release.lower():
        os.environ[ALLOCATOR[0]] = EXPANDABLE


# ---- disk and the model cache ----


def cache_dir() -> Path:
    """Where huggingface_hub keeps models: the rule of its constants module, which is not imported here."""
    env = os.environ
    return Path(
        env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or _hub_home() / "hub"
    ).expanduser()


def _hub_home() -> Path:
    env = os.environ
    return Path(
        env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    ).expanduser()


def settle_cache() -> None:
    """Puts the model cache on RunPod's volume unless the user has said where: 19 GB once, not once a pod.

    To be called before huggingface_hub is imported, which reads the variable once. A token that `hf auth
    login` has put under the home directory is still found.
    """
    chosen = any(os.environ.get(k) for k in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"))
    if not chosen and VOLUME.is_dir() and os.access(VOLUME, os.W_OK):
        token, there = _token_file(), VOLUME / "huggingface"
        os.environ["HF_HOME"] = str(there)
        if token.is_file() and not (there / "token").is_file():
            os.environ["HF_TOKEN_PATH"] = str(token)


def hub_token() -> bool:
    """Whether there is a token of the model hub, where huggingface_hub looks for one."""
    in_environment = any(os.environ.get(k, "").strip() for k in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return in_environment or (_token_file().is_file() and _token_file().stat().st_size > 0)


def _token_file() -> Path:
    return Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()


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


def environment_dir(name: str) -> Path:
    """Where the virtual environment lies that the checkout calls by a name (.venv): below VENV_DIR, where a
    link of that name leads, in the checkout, or, where that is a network disk, below the home directory: an
    environment is tens of thousands of small files, which a network disk reads and writes slowly. What a
    container's disk loses when a pod stops, set-up builds again."""
    here, home = ROOT / name, Path(os.path.expanduser("~"))
    if asked := os.environ.get("VENV_DIR"):
        return Path(os.path.abspath(os.path.expanduser(asked))) / name
    if here.is_symlink():
        return Path(os.path.join(ROOT, os.readlink(here)))
    if here.exists() or not network_disk(ROOT) or network_disk(home):
        return here
    checkout = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:8]
    return home / ".local/share/align" / f"{ROOT.name}-{checkout}" / name


def network_disk(path: Path) -> str | None:
    """The type of the file system that a path lies on, if others reach it over a network, too."""
    try:
        mounts = [line.split(" ") for line in MOUNTS.read_text().splitlines()]
    except OSError:  # macOS
        return None
    path = Path(os.path.realpath(path))
    kinds = {m[1].replace("\\040", " "): m[2] for m in mounts if len(m) > 2}  # a later mount hides an earlier
    kind = next((kinds[str(place)] for place in (path, *path.parents) if str(place) in kinds), "")
    return kind if NETWORK_DISK.match(kind) else None


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
