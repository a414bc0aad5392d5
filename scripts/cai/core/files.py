"""Where a run's files lie, and small files written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.core.errors import ELSEWHERE, UserError
from cai.core.text import one_line

ROOT = Path(__file__).resolve().parents[3]


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
    write_whole(path, encode(to_json(value, path, indent=1) + "\n"))


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time, where the file system has locks: the directory's own, so that no file stays."""
    place = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def to_json(value: Any, path: Path, **layout: Any) -> str:
    """The text of a value that is to stand in a file. Raises UserError for NaN and infinities, which JSON
    does not know: what was not measured is null, anything else is a number gone wrong."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        where = next(_not_finite(value), None)
        if where is None:  # it holds itself: a defect
            raise
        raise UserError(
            f"{display_path(path)} is not written: {where}, and JSON holds no such number; "
            "something before it went wrong, so lower the learning rate if this was a training"
        ) from None


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is none: NaN and infinities, too, however they are
    written."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number of JSON")
    return number


def _not_finite(value: Any, name: str = "it") -> Iterator[str]:
    """Where a value holds numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{name} is {value}"
    parts = value.items() if isinstance(value, dict) else []
    parts = enumerate(value) if isinstance(value, (list, tuple)) else parts
    for key, part in parts:
        yield from _not_finite(part, str(key) if isinstance(value, dict) else name)


def encode(text: str) -> bytes:
    """JSON in UTF-8. A lone surrogate, which UTF-8 cannot hold, becomes its \\udXXX, which JSON reads back as
    what it was."""
    return text.encode("utf-8", "backslashreplace")


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def directories(name: str) -> tuple[Path, Path, Path]:
    """(data/<run>, checkpoints/<run>, logs). CAI_OUTPUT moves all three to another disk."""
    root = output_root()
    return root / "data" / name, root / "checkpoints" / name, root / "logs"


def output_root() -> Path:
    """The directory of all outputs: CAI_OUTPUT, from the current directory where it is relative, with ~ as a
    shell has it; not set, and empty, it is the repository's."""
    asked = os.environ.get("CAI_OUTPUT", "").strip()
    return Path(os.path.abspath(os.path.expanduser(asked))) if asked else ROOT


def check_output(*, writable: bool) -> str | None:
    """What is to be said of CAI_OUTPUT. Raises UserError where nothing can be read or written there."""
    asked, root = os.environ.get("CAI_OUTPUT", ""), output_root()
    if asked.strip() and os.path.expanduser(asked.strip()).startswith("~"):
        raise UserError(f"CAI_OUTPUT={one_line(asked)}: there is no such user; give the whole path")
    there = next(p for p in (root, *root.parents) if os.path.lexists(p))
    of = f"CAI_OUTPUT={one_line(asked)}" if asked.strip() else f"the repository's directory {one_line(root)}"
    if not there.is_dir():
        raise UserError(f"{of}: {one_line(there)} is no directory; give CAI_OUTPUT the path of one")
    if writable and not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{of}: {one_line(there)} cannot be written to; {ELSEWHERE}")
    if "CAI_OUTPUT" in os.environ and not asked.strip():
        return f"CAI_OUTPUT is empty, so it counts as not set: outputs go to {one_line(root)}"
    if asked.strip() and str(root) != os.path.normpath(asked.strip()):
        return f"CAI_OUTPUT={one_line(asked)} is {one_line(root)}"
    return None


def run_of(data: Path) -> str:
    """The name of the run whose data directory this is: directories' inverse."""
    root = directories("")[0]
    return str(data.relative_to(root)) if data.is_relative_to(root) else data.name


def display_path(path: Path) -> str:
    """A path as a person types it: relative to the repository where it lies inside. On one line."""
    return one_line(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def move_aside(*paths: Path) -> Path:
    """Renames what is there to <name>~1, ~2, ...: nothing is ever deleted. Gives back what the first path is
    called now."""
    number = 1
    while any(p.with_name(f"{p.name}~{number}").exists() for p in paths):
        number += 1
    for p in paths:
        if p.exists():
            p.rename(p.with_name(f"{p.name}~{number}"))
    return paths[0].with_name(f"{paths[0].name}~{number}")
