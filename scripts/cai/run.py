"""A run: its name, its directories, its lock, its manifest (run.json), its log and its steps.

The name is the hand-off between scripts: data/<run>/, checkpoints/<run>/, logs/<run>.log. A run of the same
name and the same settings resumes; other settings stop it, and name what differs; `fresh` moves the old run
aside.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GO, BAD_INPUT, NO_GO, BUDGET, INTERRUPTED = 0, 2, 3, 4, 130  # exit statuses of every script
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "unsloth",
    "unsloth_zoo",
)


class UserError(Exception):
    """Something that a user can mend: one sentence that says what is wrong and what to do."""


class BudgetReached(Exception):
    """What comes next would pass the budget: a clean stop with an exit status of its own, to resume later."""


def cli(main: Callable[[], int | None]) -> None:
    """Runs a script's main: its status is the exit status, a user's error is a sentence and not a
    traceback."""
    try:
        sys.exit(main() or GO)
    except UserError as error:
        sys.exit(_complain(str(error)))
    except BudgetReached as stop:
        print(f"budget: {stop}", file=sys.stderr, flush=True)
        sys.exit(BUDGET)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing finished is lost, the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has seen enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        sys.exit(_complain(sentence))


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return BAD_INPUT


def explain_os_error(error: OSError) -> str | None:
    """A sentence for the errors of the operating system that a user can mend, None for the others."""
    where = f" ({error.filename})" if error.filename else ""
    space = "free some space, then rerun the same command; finished rows are kept"
    permission = f"no permission to write or read{where}: change its owner or mode, or use another checkout"
    return {
        errno.ENOSPC: f"the disk is full{where}: {space}",
        errno.EDQUOT: f"the disk quota is used up{where}: {space}",
        errno.EACCES: permission,
        errno.EPERM: permission,
        errno.EEXIST: f"something else is in the way{where}: move it, or run in another checkout",
        errno.ENOTDIR: f"a file is where a directory should be{where}: move it, or run in another checkout",
        errno.EFBIG: f"the file would be too large for this user{where}: raise ulimit -f, then rerun",
        errno.EROFS: f"the file system is read-only{where}: run in a checkout that can be written to",
    }.get(error.errno)


# ---- flags: one concept, one name, in every script ----

COMMON_FLAGS: dict[str, dict[str, Any]] = {
    "run": dict(help="the run's name: data/<run>/, checkpoints/<run>/, logs/<run>.log"),
    "model": dict(
        default="auto",
        help="sandbox, a name of the registry, a hub id or a directory; auto: Qwen/Qwen2.5-32B "
        "on a CUDA GPU, sandbox elsewhere",
    ),
    "bits": dict(
        type=int, default=None, help="load the weights in 4, 8 or 16 bits (default: the model's own)"
    ),
    "seed": dict(type=int, default=0, help="every random choice derives from this and from the row's own id"),
    "limit": dict(type=int, default=None, help="how many examples"),
    "constitution": dict(default="constitution.yaml", help="the principles, a YAML file"),
    "hourly-rate": dict(
        type=float, default=None, help="dollars per hour of this machine (default: 1.74 with a GPU, else 0)"
    ),
    "fresh": dict(action="store_true", help="move an earlier run of this name aside and start anew"),
    "force": dict(action="store_true", help="go on although an earlier gate said NO-GO"),
}


def parser(doc: str, *common: str, **defaults: Any) -> argparse.ArgumentParser:
    """An argument parser with a script's docstring as its help and the common flags named."""
    p = argparse.ArgumentParser(
        description=doc, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in common:
        p.add_argument(f"--{name}", **COMMON_FLAGS[name])
    p.set_defaults(**defaults)
    return p


# ---- small files ----


def write_whole(path: Path, content: bytes) -> None:
    """Whole or not at all: written beside, synced, then renamed over the old one."""
    scratch = path.with_name(path.name + ".part")
    with open(scratch, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def git_commit() -> str | None:
    """The commit of the code, with "+changes" where the tree differs from it; None outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changes = subprocess.run(
            ["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if changes else "")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# ---- the run ----


class Run:
    """One run, open and locked. Use `Run.open`, and as a context manager, so that the lock goes with it.

    settings: what the rows depend on; a rerun must have the same. Everything else (versions, seconds) is only
    recorded.
    """

    def __init__(self, name: str, settings: dict[str, Any], manifest: dict[str, Any], lock):
        self.name, self.settings, self.manifest, self._lock = name, settings, manifest, lock
        self.data, self.checkpoints, self.logs = directories(name)
        self.hourly_rate = 0.0

    @classmethod
    def open(cls, name: str, settings: dict[str, Any], *, fresh: bool = False) -> Run:
        """Raises UserError: a bad name, another process on the run, settings that differ from the run's."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?", name):
            raise UserError(
                f"--run {name!r}: use letters, digits, '.', '_' and '-' "
                f"(and one '/' between a plan and its stage)"
            )
        if name.split("/")[0] in ("constitutions", "prompts"):
            raise UserError(f"--run {name!r}: data/{name} holds committed inputs; choose another name")
        data, checkpoints, logs = directories(name)
        lock = _lock(name, logs)
        try:
            if fresh:
                move_aside(data, checkpoints)
            settings = json.loads(json.dumps(settings))  # as they will be read back
            manifest = _earlier_manifest(name, data, settings)
            data.mkdir(parents=True, exist_ok=True)
        except BaseException:
            lock.close()
            raise
        run = cls(name, settings, manifest or {"run": name, "settings": settings, "started": _now()}, lock)
        run.record(argv=sys.argv, commit=git_commit(), versions=versions(), python=sys.version.split()[0])
        return run

    @classmethod
    def reopen(cls, name: str) -> Run:
        """A run that is there, locked, its settings as they are. Raises UserError if there is none."""
        manifest = read_manifest(name)
        if manifest is None:
            raise UserError(
                f"there is no run {name!r} ({shown(directories(name)[0])}/run.json): generate it first, or "
                "give --run the name of one that is there"
            )
        return cls(name, manifest["settings"], manifest, _lock(name, directories(name)[2]))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc) -> None:
        self._lock.close()

    def record(self, **facts: Any) -> None:
        """Adds facts to run.json, at once."""
        self.manifest.update(facts)
        write_json(self.data / "run.json", self.manifest)

    def pin(self, **facts: Any) -> None:
        """Facts that are known only once something is loaded, and that a rerun must find the same."""
        for key, value in facts.items():
            old = self.manifest.get(key, value)
            if old != value:
                raise UserError(
                    f"run {self.name!r} was begun with {key} {old}, now it is {value}: "
                    f"--run another-name keeps both, --fresh moves the old one aside"
                )
        self.record(**facts)

    def say(self, text: str = "") -> None:
        """To the terminal and to logs/<run>.log."""
        print(text, flush=True)
        self.log(text)

    def log(self, text: str) -> None:
        """To logs/<run>.log alone."""
        with open(self.logs / f"{self.name.replace('/', '-')}.log", "a", encoding="utf-8") as f:
            f.write(text + "\n")

    @contextlib.contextmanager
    def step(self, name: str, *, quiet: bool = False) -> Iterator[Step]:
        """Times a step, prints its seconds, tokens and dollars (unless quiet), and adds a row to
        logs/ledger.jsonl. What an error or Ctrl-C cut short has cost money too: it is marked `interrupted`,
        so that no rate is taken from it."""
        step = Step(self)
        start = time.perf_counter()
        interrupted = True
        try:
            yield step
            interrupted = False
        finally:
            self._account(step, name, time.perf_counter() - start, interrupted, quiet)

    def _account(self, step: Step, name: str, seconds: float, interrupted: bool, quiet: bool) -> None:
        """Adds a step to the ledger and to the run's totals."""
        dollars = seconds / 3600 * self.hourly_rate
        row = {
            "time": _now(),
            "run": self.name,
            "step": name,
            "examples": step.examples,
            "seconds": round(seconds, 3),
            "prompt_tokens": step.prompt_tokens,
            "completion_tokens": step.completion_tokens,
            "dollars": round(dollars, 6),
            "model": self.manifest.get("model"),
            "bits": self.settings.get("bits") or self.manifest.get("bits"),
            "principles": self.settings.get("principles"),
            "device": self.manifest.get("device"),
        }
        if interrupted:
            row["interrupted"] = True
        from cai.records import append

        append(self.logs / "ledger.jsonl", [row])
        if not quiet:
            tokens = f", {step.prompt_tokens} + {step.completion_tokens} tokens" if step.prompt_tokens else ""
            self.say(f"      [{name}: {seconds:.1f} s{tokens}, ${dollars:.4f}]")
        zero = {"seconds": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "dollars": 0.0}
        totals = self.manifest.get("totals", zero)
        self.record(totals={k: round(totals[k] + row[k], 6) for k in totals})


class Step:
    """What a step has used so far; see Run.step."""

    def __init__(self, run: Run):
        self.run, self.examples, self.prompt_tokens, self.completion_tokens = run, None, 0, 0

    def count(self, completions, examples: int | None = None) -> None:
        """Adds completions, and says how many examples they were for, by which later runs are forecast."""
        if examples is not None:
            self.examples = (self.examples or 0) + examples
        for c in completions:
            self.prompt_tokens += c.prompt_tokens
            self.completion_tokens += c.tokens


def directories(name: str) -> tuple[Path, Path, Path]:
    """(data/<run>, checkpoints/<run>, logs). CAI_OUTPUT moves all three to another disk."""
    root = Path(os.environ.get("CAI_OUTPUT", ROOT))
    return root / "data" / name, root / "checkpoints" / name, root / "logs"


def shown(path: Path) -> str:
    """A path as a person types it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def read_manifest(name: str) -> dict[str, Any] | None:
    """run.json of an earlier run, None where there is none."""
    return _read_manifest(directories(name)[0] / "run.json")


def _earlier_manifest(name: str, data: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest from which a run of these settings goes on. Raises UserError if it began with others."""
    manifest = _read_manifest(data / "run.json")
    if manifest is None or manifest["settings"] == settings:
        return manifest
    if not any(data.glob("*.jsonl")):
        return None  # before its first row a run may still change its mind
    old = manifest["settings"]
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    changes = "; ".join(f"{k} was {_show(old.get(k))}, now {_show(settings.get(k))}" for k in differing)
    raise UserError(
        f"run {name!r} exists with other settings: {changes}. Give the old settings to resume it, "
        f"--run another-name to keep both, or --fresh to move it aside"
    )


def move_aside(*paths: Path) -> None:
    """Renames what is there to <name>~1, ~2, ...: nothing is ever deleted."""
    number = 1
    while any(p.with_name(f"{p.name}~{number}").exists() for p in paths):
        number += 1
    for p in paths:
        if p.exists():
            p.rename(p.with_name(f"{p.name}~{number}"))


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
        raise UserError(f"{path} is not a run's manifest: restore it, or use --fresh to move the run aside")
    return manifest


def _lock(name: str, logs: Path):
    """An advisory lock that the kernel drops with the process, so that a crash leaves none behind."""
    logs.mkdir(parents=True, exist_ok=True)
    lock = open(logs / f".{name.replace('/', '-')}.lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        owner = lock.read().strip()
        lock.close()
        raise UserError(
            f"run {name!r} is in use by another process ({owner or 'unknown'}): wait for it, stop it, "
            f"or give this one another --run name"
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    return lock


def _show(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
