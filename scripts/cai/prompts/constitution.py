"""The constitution: written principles, loaded from YAML and checked."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cai.core.errors import UserError
from cai.core.text import kind
from cai.core.yaml_files import read_yaml
from cai.prompts import markers


@dataclass(frozen=True)
class Principle:
    id: str
    title: str
    principle: str
    critique_request: str
    revision_request: str


KEYS = tuple(f.name for f in fields(Principle))
TOP_KEYS = ("version", "name", "principles")


@dataclass(frozen=True)
class Constitution:
    """`hash` covers the principles, every text and their order; comments, layout and name may change."""

    name: str
    principles: tuple[Principle, ...]
    hash: str
    path: str

    def pick(self, seed: int | str, k: int) -> tuple[Principle, ...]:
        """k distinct principles, the same for the same seed (a row's own), whatever was picked before."""
        if not 1 <= k <= len(self.principles):
            raise UserError(
                f"cannot pick {k} principles: {self.path} has {len(self.principles)}; "
                f"ask for 1 to {len(self.principles)}"
            )
        return tuple(random.Random(seed).sample(self.principles, k))

    def by_id(self, id: str) -> Principle:
        for principle in self.principles:
            if principle.id == id:
                return principle
        known = ", ".join(p.id for p in self.principles)
        raise UserError(f"there is no principle {id!r} in {self.path}; choose one of: {known}")


def load(path: str | Path) -> Constitution:
    """Reads and checks a constitution. Whatever is wrong is a UserError that names the file and the entry."""
    path = Path(path)
    content = read_yaml(path, "constitution", "constitution.yaml")
    _check_keys(content, TOP_KEYS, str(path))
    if content["version"] != 1 or isinstance(content["version"], bool):
        raise UserError(f"{path}: version is {content['version']!r}; this program reads 'version: 1'")
    name = _text(content["name"], f"{path}: name")
    if not isinstance(content["principles"], list) or not content["principles"]:
        raise UserError(
            f"{path}: no principles; 'principles' must be a list of entries with the keys {', '.join(KEYS)}"
        )
    principles: dict[str, Principle] = {}
    for number, entry in enumerate(content["principles"], 1):
        principle = _principle(entry, number, path)
        if principle.id in principles:
            raise UserError(
                f"{path}: entry {number} has the id {principle.id!r}, which an earlier entry has; "
                "give it one of its own"
            )
        principles[principle.id] = principle
    canonical = json.dumps([asdict(p) for p in principles.values()], sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Constitution(name, tuple(principles.values()), digest, str(path))


def _check_keys(entry: object, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {kind(entry)}; it must be a mapping with the keys {', '.join(keys)}")
    unknown = [str(key) for key in entry if key not in keys]
    if unknown:
        raise UserError(
            f"{where} has the unknown key {unknown[0]!r}; remove it or make it one of: {', '.join(keys)}"
        )
    missing = [key for key in keys if key not in entry]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}; it needs: {', '.join(keys)}")


def _principle(entry: object, number: int, path: Path) -> Principle:
    id = entry.get("id") if isinstance(entry, dict) else None
    where = f"{path}: entry {number}" + (f" ({id})" if isinstance(id, str) and id else "")
    _check_keys(entry, KEYS, where)
    principle = Principle(**{key: _text(entry[key], f"{where}: {key}") for key in KEYS})
    if not re.fullmatch(r"[a-z0-9_]+", principle.id):
        raise UserError(
            f"{where}: the id {principle.id!r} may hold only lower-case letters, digits and underscores; "
            "rename it"
        )
    return principle


def _text(value: object, where: str) -> str:
    """One line of plain text that cannot be mistaken for a part of a prompt."""
    if not isinstance(value, str):
        raise UserError(f"{where} is {kind(value)}; it must be a text (put quotes around it)")
    text = value.strip()
    if not text:
        raise UserError(f"{where} is empty; write a text or remove the whole entry")
    if len(text.splitlines()) > 1:
        raise UserError(f"{where} has a line break; write it on one line, or put '>-' before its lines")
    for token in ("<|", markers.SEPARATOR, *markers.MARKERS):  # "<|" begins the tokens of chat formats
        if token in text:
            raise UserError(f"{where} holds {token!r}, which marks parts of prompts; say it in other words")
    return text
