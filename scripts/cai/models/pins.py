"""models/pins.json: at which commits repositories of the model hub are taken, where the registry names none.

The first download of a repository that nothing pins writes its commit there, with size and sha256 of each
file of weights; the file is committed, so that every later run takes the same weights, and checks them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import ROOT, display_path, from_json, locked, output_root, sha256_file, write_json

COMMITTED = ROOT / "models/pins.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def pinned_commit(repo: str) -> str | None:
    entry = _entry(repo)
    return entry["commit"] if entry else None


def settle(repo: str, snapshot: Path, *, fresh: bool) -> str | None:
    """Pins a repository to the snapshot that was taken, unless it is pinned, and checks it against its pin:
    sizes always, hashes of a fresh download. What is to be said of it. Raises UserError for another commit or
    for files that are not those of the pin."""
    entry, said = _entry(repo), None
    if entry is None:
        entry, said = _pin(repo, snapshot)
    if entry["commit"] != snapshot.name:
        raise UserError(
            f"{repo} was taken at {snapshot.name[:12]}, while another process has pinned it to "
            f"{entry['commit'][:12]}: rerun the same command, it takes the pinned one"
        )
    if said is None:
        _check(repo, snapshot, entry["files"], hashed=fresh)
    return said


def _pin(repo: str, snapshot: Path) -> tuple[dict[str, Any], str | None]:
    """(the repository's entry, what is to be said): ours, or that of a process that was quicker."""
    at_home = output_root() == ROOT  # a run with CAI_OUTPUT writes nothing into the checkout
    target = COMMITTED if at_home else output_root() / "pins.json"
    ours = {
        "commit": snapshot.name,
        "checked": f"{time.strftime('%Y-%m-%d')}, as first downloaded",
        "files": {file.name: _facts(file) for file in _weights(snapshot)},
    }
    what = f"{repo} is pinned to {ours['commit']} from now on"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent):
            if entry := _entry(repo):
                return entry, None
            write_json(target, _read(target) | {repo: ours})
    except OSError as error:
        return ours, (
            f"{repo} is taken at {ours['commit']}, but not pinned: {display_path(target)} cannot be written "
            f"({error.strerror})"
        )
    do = "commit this file" if at_home else f"copy its entry into {display_path(COMMITTED)} and commit that"
    return ours, f"{what}, in {display_path(target)}: {do}"


def _check(repo: str, snapshot: Path, files: dict[str, dict[str, Any]], *, hashed: bool) -> None:
    for name, facts in files.items():
        file = snapshot / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"] or (hashed and sha256_file(file) != facts["sha256"]):
            raise UserError(
                f"{repo} at {snapshot.name[:12]}: {name} is not the file that is pinned in "
                f"{display_path(COMMITTED)}: remove {snapshot.parent.parent} and download it again, "
                "and do not use it if it differs again"
            )


def _weights(snapshot: Path) -> list[Path]:
    return sorted(file for pattern in WEIGHTS for file in snapshot.glob(pattern))


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _entry(repo: str) -> dict[str, Any] | None:
    places = (COMMITTED, output_root() / "pins.json")
    return next((pins[repo] for pins in map(_read, places) if repo in pins), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        pins = from_json(path.read_bytes())
        right = all(_is_entry(entry) for entry in pins.values())
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError):
        right = False
    if not right:
        restore = f" (git checkout -- {display_path(path)})" if path == COMMITTED else ""
        raise UserError(f"{display_path(path)} is damaged: restore it{restore}")
    return pins


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and bool(re.fullmatch(r"[0-9a-f]{40}", str(entry.get("commit"))))
        and isinstance(entry.get("files"), dict)
        and all(isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in entry["files"].values())
    )
