"""A run: its name, its directories, its lock, its manifest (run.json), its log and its steps.

The name is the hand-off between scripts: data/<run>/, checkpoints/<run>/, logs/<run>.log. A run of the same
name and the same settings resumes; other settings stop it, and name what differs; `fresh` moves the old run
aside.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from cai.core.cli import check_name
from cai.core.errors import UserError
from cai.core.files import ROOT, directories, display_path, from_json, move_aside, write_json
from cai.core.jsonl import append
from cai.core.ledger import Usage
from cai.core.schema import FORMAT, check, check_format
from cai.core.terminal import say
from cai.core.text import one_line, printable

NUMBER, TEXT = (int, float), (str, type(None))
ZERO = {"seconds": 0.0, "prompt_tokens": 0, "completion_tokens": 0, "dollars": 0.0}
# What run.json must have, and what must be of a kind where it stands there ("?").
MANIFEST_KEYS = {
    "run": str,
    "settings": {
        **{"seed?": int, "held_out?": NUMBER, "data?": str, "model?": str, "kind?": str},
        **{"bits?": (int, type(None)), "principles?": (int, type(None))},
    },
    "totals?": {f"{key}?": NUMBER for key in ZERO},
    **dict.fromkeys(("model?", "adapter?", "revision?", "device?", "engine?", "started?"), TEXT),
    **dict.fromkeys(("gate?", "data_gate?"), {"decision?": str, "criteria?": [dict]}),
    **dict.fromkeys(("counts?", "training?", "forecast?", "instructions?"), dict),
    "bits?": (int, type(None)),
    "pairs?": {"count?": int, "sha256?": str},
}
# Settings that older runs do not name, and what they went by: they go on as they began.
SINCE_ADDED = {"judge_rule": "both orders"}
# What a run makes in data/<run>/ and checkpoints/<run>/: no run of its own can lie there.
OWN_DIRECTORIES = ("evaluation", "steps", "tensorboard")
OWN_FILES = (".json", ".jsonl", ".html", ".md", ".png", ".safetensors", ".jinja", ".txt", ".yaml")
PACKAGES = "torch transformers trl peft accelerate bitsandbytes datasets unsloth unsloth_zoo".split()


def git_commit(tell: Callable[[str], None] = lambda why: None) -> str | None:
    """The commit of the code, with "+changes" where the tree differs from it. Where git does not tell, None,
    and tell is told why."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise OSError(next(iter(done.stderr.splitlines()), f"git ends with status {done.returncode}"))
        return done.stdout

    try:
        changes = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD").strip() + changes
    except OSError as error:
        owner = f"; git config --global --add safe.directory {ROOT}" if "dubious owner" in str(error) else ""
        tell(f"commit: unknown ({one_line(error)}{owner})")
        return None


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
        self.at_work: Mapping[str, Any] = {}  # the engine that its steps use now
        self.budget: Any = None  # a costs.budget.Budget, which each step asks before it begins
        self._began: float | None = None  # the step that is under way
        self._held: list[str] | None = None  # what is held back of the log

    @classmethod
    def open(cls, name: str, settings: dict[str, Any], *, fresh: bool = False) -> Run:
        """Raises UserError: a bad name, another process on the run, settings that differ from the run's."""
        data, checkpoints, _ = directories(name)
        lock = lock_run(name)
        try:
            if fresh:
                move_aside(data, checkpoints)
            settings = json.loads(json.dumps(settings))  # as they will be read back
            manifest = _earlier_manifest(name, data, settings)
            data.mkdir(parents=True, exist_ok=True)
        except BaseException:
            lock.close()
            raise
        begun = {"format": FORMAT, "run": name, "settings": settings, "started": _now()}
        run = cls(name, settings, manifest or begun, lock)
        commit = git_commit(run.log)
        run.record(argv=sys.argv, commit=commit, versions=versions(), python=sys.version.split()[0])
        return run

    @classmethod
    def reopen(cls, name: str) -> Run:
        """A run that is there, locked, its settings as they are. Raises UserError if there is none."""
        if read_manifest(name) is None:
            raise UserError(
                f"there is no run {name!r} ({display_path(directories(name)[0])}/run.json): "
                "generate it first, or give --run the name of one that is there"
            )
        lock = lock_run(name)
        manifest = read_manifest(name)  # as it is now that nobody else writes it
        return cls(name, manifest["settings"], manifest, lock)

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
                    "--run another-name keeps both, --fresh moves the old one aside"
                )
        self.record(**facts)

    def log(self, text: str = "") -> None:
        """To the terminal and to logs/<run>.log."""
        if self._held is not None:
            self._held.append(text)
            return
        say(text)
        self.log_only(text)

    def log_only(self, text: str) -> None:
        """To logs/<run>.log alone."""
        with open(self.logs / f"{file_name(self.name)}.log", "a", encoding="utf-8") as f:
            f.write(printable(text) + "\n")

    @contextlib.contextmanager
    def holding(self) -> Iterator[list[str]]:
        """Holds back what is logged until it is known whether it is worth telling: what stays in the list
        is."""
        self._held = held = []
        try:
            yield held
        finally:
            self._held = None
            for text in held:
                self.log(text)

    @contextlib.contextmanager
    def step(self, name: str, *, quiet: bool = False) -> Iterator[Step]:
        """Times a step, prints its seconds, tokens and dollars (unless quiet), and adds a row to
        logs/ledger.jsonl. What an error or Ctrl-C cut short has cost money too: it is marked `interrupted`,
        so that no rate is taken from it. Raises BudgetReached, before it begins, where it might pass the
        run's budget."""
        if self.budget is not None:
            self.budget.begin_step(name)
        step, start, cut_short = Step(), time.perf_counter(), {"interrupted": True}
        self._began = start
        try:
            yield step
            cut_short = {}
        finally:
            step.used.seconds, self._began = time.perf_counter() - start, None
            row = self._row(name, step.used, step.examples) | cut_short
            self._enter([row])
            if self.budget is not None:
                self.budget.end_step(name, row["dollars"])
            if not quiet:
                read, generated = step.used.prompt_tokens, step.used.completion_tokens
                tokens = f", {read} + {generated} tokens" if read else ""
                self.log(f"      [{name}: {step.used.seconds:.1f} s{tokens}, ${row['dollars']:.4f}]")

    def bill(self, usage: Mapping[str, Usage], seconds: float, examples: Mapping[str, int]) -> None:
        """Adds steps that ran side by side to the ledger: the seconds by the clock, shared as the engine was
        used. examples: step -> how many were finished, by which later runs are forecast."""
        at_work = sum(used.seconds for used in usage.values())
        rows = []
        for step, used in usage.items():
            share = used.seconds / at_work if at_work else 1 / len(usage)
            shared = Usage(seconds * share, used.prompt_tokens, used.completion_tokens)
            rows.append(self._row(step, shared, examples.get(step, 0)))
        self._enter(rows)

    def _row(self, step: str, used: Usage, examples: int | None) -> dict[str, Any]:
        at_work = self.manifest | self.at_work
        return {
            "time": _now(),
            "run": self.name,
            "step": step,
            "examples": examples,
            "seconds": round(used.seconds, 3),
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "dollars": round(used.seconds / 3600 * self.hourly_rate, 6),
            "model": at_work.get("model"),
            "engine": at_work.get("engine") or "local",
            "bits": at_work.get("bits") or self.settings.get("bits"),
            "principles": self.settings.get("principles"),
            "device": at_work.get("device"),
        }

    def _enter(self, rows: list[dict[str, Any]]) -> None:
        """Rows into the ledger, and into the run's totals."""
        if rows:
            append(self.logs / "ledger.jsonl", rows)
            totals = ZERO | self.manifest.get("totals", {})
            self.record(totals={k: round(totals[k] + sum(row[k] for row in rows), 6) for k in ZERO})

    @property
    def dollars(self) -> float:
        """What the run has cost so far, in all its processes."""
        return self.manifest.get("totals", {}).get("dollars", 0.0)

    @property
    def under_way(self) -> float:
        """Dollars of the step that has begun, so far."""
        seconds = 0.0 if self._began is None else time.perf_counter() - self._began
        return seconds / 3600 * self.hourly_rate


class Step:
    """What a step has used so far; see Run.step."""

    def __init__(self) -> None:
        self.examples, self.used = None, Usage()

    def count(self, completions, examples: int | None = None) -> None:
        """Adds completions, and says how many examples they were for, by which later runs are forecast."""
        if examples is not None:
            self.examples = (self.examples or 0) + examples
        for c in completions:
            self.used.prompt_tokens += c.prompt_tokens
            self.used.completion_tokens += c.tokens


def read_manifest(name: str) -> dict[str, Any] | None:
    """run.json of an earlier run, None where there is none."""
    return manifest_in(directories(name)[0])


def _earlier_manifest(name: str, data: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest from which a run of these settings goes on. Raises UserError if it began with others."""
    manifest = manifest_in(data)
    if manifest is None:
        return None
    old = {k: v for k, v in SINCE_ADDED.items() if k in settings} | manifest["settings"]
    if old == settings:
        return manifest
    if not any(data.glob("*.jsonl")):
        return None  # before its first row a run may still change its mind
    differing = sorted(k for k in old.keys() | settings.keys() if old.get(k) != settings.get(k))
    changes = "; ".join(f"{k} was {_show(old.get(k))}, now {_show(settings.get(k))}" for k in differing)
    raise UserError(
        f"run {name!r} exists with other settings: {changes}. Give the old settings to resume it, "
        f"--run another-name to keep both, or --fresh to move it aside"
    )


def manifest_in(data: Path) -> dict[str, Any] | None:
    """run.json of a run's directory, None where there is none."""
    path = data / "run.json"
    try:
        manifest = from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        manifest = None  # which is none: see below
    way_out = "restore it, or use --fresh to move the run aside"
    try:
        check(manifest, MANIFEST_KEYS, f"{path} is not a run's manifest")
    except UserError as error:
        raise UserError(f"{error}; {way_out}") from None
    share = manifest["settings"].get("held_out", 0.0)
    if not 0 <= share <= 1:
        raise UserError(f"{path} is not a run's manifest: 'held_out' is {share}, no share; {way_out}")
    check_format(manifest.get("format"), str(path), manifest["run"])
    return manifest


def check_place(name: str) -> None:
    """Raises UserError for a run that would lie where another keeps its own files. Stages of a plan may be
    called as they like: its own run has none there."""
    first, _, second = name.partition("/")
    place = second.lower()  # some file systems do not tell A from a
    if place.endswith(OWN_FILES) or (place in OWN_DIRECTORIES and not _is_plan(first)):
        raise UserError(
            f"--run {name!r}: run {first!r} keeps files of its own there; choose another second part"
        )


def _is_plan(name: str) -> bool:
    """Whether a run has stages in its directories, and nothing of its own beside run.json and reports."""
    return "plan" in (read_manifest(name) or {})


def file_name(name: str) -> str:
    """A run's name as that of one file. No name holds a "~", so no two runs share one."""
    return name.replace("/", "~")


def lock_run(name: str) -> TextIO:
    """An advisory lock that the kernel drops with the process, so that a crash leaves none behind. Raises
    UserError: a bad name, another process on the run."""
    check_name(name)
    check_place(name)
    logs = directories(name)[2]
    logs.mkdir(parents=True, exist_ok=True)
    lock = open(logs / f".{file_name(name)}.lock", "a+", encoding="utf-8")
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
