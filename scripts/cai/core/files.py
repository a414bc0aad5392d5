"""Where a run's files lie, and small files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

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
    write_whole(path, encode(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))


def encode(text: str) -> bytes:
    """JSON in UTF-8. A lone surrogate, which UTF-8 cannot hold, becomes its \\udXXX, which JSON reads back as
    what it was."""
    return text.encode("utf-8", "backslashreplace")


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def directories(name: str) -> tuple[Path, Path, Path]:
    """(data/<run>, checkpoints/<run>, logs). CAI_OUTPUT moves all three to another disk."""
    root = Path(os.environ.get("CAI_OUTPUT", ROOT))
    return root / "data" / name, root / "checkpoints" / name, root / "logs"


def run_of(data: Path) -> str:
    """The name of the run whose data directory this is: directories' inverse."""
    root = directories("")[0]
    return str(data.relative_to(root)) if data.is_relative_to(root) else data.name


def display_path(path: Path) -> str:
    """A path as a person types it: relative to the repository where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


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
