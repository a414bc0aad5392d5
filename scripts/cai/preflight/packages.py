"""The pinned packages of this project, and whether this Python has them.

Standard library only: set-up asks before anything is installed.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys

from cai.core.files import ROOT

# The builds of torch that suit a kind of machine, by their local versions; PyPI's, for CUDA 13, has none.
BUILDS = {"cpu": ("cpu",), "cuda": ("", "cu130"), "cuda12": ("cu126",)}

# What set-up installs beside requirements-cpu.txt.
BESIDE_THE_CPU_FILE = ("torch", "unsloth", "unsloth-zoo")


def pins(kind: str) -> dict[str, str]:
    """Package -> pinned version of the set that a kind of machine ("cuda", "cuda12" or "cpu") installs."""
    pinned = _pins_of("requirements.txt")
    if kind != "cpu":
        linux_x86 = platform.machine() == "x86_64" and sys.platform == "linux"
        return {name: version for name, version in pinned.items() if name != "xformers" or linux_x86}
    text = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8")
    names = {_plain(name) for name in re.findall(r"(?m)^([A-Za-z][\w.-]*)", text)} | set(BESIDE_THE_CPU_FILE)
    return {k: v for k, v in (pinned | _pins_of("requirements-cpu.txt")).items() if k in names}


def misfits(kind: str) -> list[str]:
    """What differs from the pins in this Python: one phrase a package."""
    found = []
    for name, wanted in pins(kind).items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} is missing")
            continue
        if installed.split("+")[0] != wanted:
            found.append(f"{name} is {installed}, pinned {wanted}")
    return found


def torch_suits(kind: str) -> bool:
    """Whether this Python's torch, if any, is the kind's build: all satisfy the same version pin."""
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        return True
    return sys.platform == "darwin" or build in BUILDS[kind]


def _plain(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins_of(file: str) -> dict[str, str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return {_plain(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==([\w.]+)", text)}
