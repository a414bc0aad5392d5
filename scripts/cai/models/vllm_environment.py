"""vLLM's own virtual environment: whether it is there, and how it gets there.

Its pins clash with those that training needs, and not every run needs it: it is installed at first use."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cai.core.errors import UserError
from cai.core.files import ROOT, display_path
from cai.core.text import format_duration, one_line
from cai.models.device import CUDA, DRIVER, GB, cuda_major, disk_free, environment_dir

REQUIREMENTS = ROOT / "requirements-vllm.txt"
ENVIRONMENT_GB = 14.0  # on the disk: 4.0 GB of wheels (added up), and about 10 of them unpacked (estimated)
OWN = "CAI_VLLM_ENV"  # names an environment that somebody made by hand, as tests/vllm.sh does for CPUs
SAY_SECONDS = 20.0  # between two lines of progress


def environment() -> Path:
    own = os.environ.get(OWN, "").strip()
    return Path(os.path.abspath(os.path.expanduser(own))) if own else environment_dir(".venv-vllm")


def check_driver() -> None:
    """Raises UserError where the GPU's driver is older than vLLM's wheels and the torch that they want."""
    by_hand = os.environ.get(OWN, "").strip()
    if not by_hand and 0 < (major := cuda_major()) < CUDA:
        raise UserError(
            f"vLLM is built for CUDA {CUDA}, and this driver runs CUDA {major}: use --engine local, or rent "
            f"a machine with driver {DRIVER} or newer (set-up's table says what else may help)"
        )


def environment_ready() -> bool:
    """Whether vLLM is installed as pinned. Of an environment made by hand: whether it has a Python."""
    place = environment()
    if os.environ.get(OWN, "").strip():
        return os.access(place / "bin/python", os.X_OK)
    try:
        return (place / ".installed").read_text() == _pins() and os.access(place / "bin/python", os.X_OK)
    except OSError:
        return False


def ensure_environment(log: Callable[[str], None]) -> Path:
    """The environment's Python; installed if need be. Raises UserError: no disk, or what pip says."""
    check_driver()
    place = environment()
    python = place / "bin/python"
    if environment_ready():
        return python
    if os.environ.get(OWN, "").strip():
        raise UserError(f"{OWN}={one_line(place)}: there is no bin/python in it; unset it, or name another")
    free = disk_free(place) / GB
    if free < ENVIRONMENT_GB:
        raise UserError(
            f"vLLM's environment takes {ENVIRONMENT_GB:.0f} GB in {display_path(place)}, where {free:.1f} GB "
            "are free: free some space, or use --engine local"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(place.name + ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is installing vLLM into {display_path(place)}: wait for it, then rerun"
            ) from None
        log(
            f"installing vLLM into {display_path(place)}: 4 GB to download, {ENVIRONMENT_GB:.0f} GB of disk, "
            "some minutes, once"
        )
        # What an interruption leaves may look installed and not be whole; pip's cache keeps the downloads.
        said = place.with_name(place.name + ".log")
        with open(said, "wb") as out:
            _step([sys.executable, "-m", "venv", "--clear", str(place)], out, lock, said, log)
            pip = [
                str(python),
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--progress-bar",
                "off",
            ]
            _step([*pip, "-r", str(REQUIREMENTS)], out, lock, said, log)
        (place / ".installed").write_text(_pins())
    return python


def last_line(path: Path) -> str:
    """What a log says last, on one line and safe on a terminal."""
    lines = tail(path, 1)
    return lines[-1][:160] if lines else ""


def tail(path: Path, lines: int) -> list[str]:
    """A log's last lines that say something, each safe on a terminal."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - 64_000))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [one_line(line.strip()) for line in text.replace("\r", "\n").split("\n") if line.strip()][-lines:]


def _pins() -> str:
    """What was installed, and for which Python: another of either is another environment."""
    return f"{sys.version_info[:2]} {hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()}\n"


def _step(command: list[str], out, lock, said: Path, log: Callable[[str], None]) -> None:
    """One command, its output in a file, a line now and then. It holds the lock, too, so that what outlives
    us is not disturbed by a rerun."""
    began = spoken = time.monotonic()
    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),))
    try:
        while True:
            try:
                status = process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - spoken > SAY_SECONDS:
                    spoken = time.monotonic()
                    log(f"  {format_duration(spoken - began)}: {last_line(said)}")
    except BaseException:
        process.terminate()
        raise
    if status:
        lines = tail(said, 40)
        reasons = [line for line in lines if line.startswith("ERROR") or "No space" in line] or lines[-1:]
        why = reasons[0] if reasons else f"exit status {status}"
        raise UserError(
            f"vLLM could not be installed ({why[:300]}; all of it in {display_path(said)}): "
            "check the network and the free disk, then rerun, or use --engine local"
        )
