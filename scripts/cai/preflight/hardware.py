"""What machine this is: Python, packages, GPU, disk, model cache, and whether a model fits.

Standard library only, so that set-up can ask it before anything is installed.
`python -m cai.preflight.hardware` prints the table (exit status 2 when a row failed); setup_environment.sh
uses its other flags.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from cai.core.cli import BAD_INPUT, GO, cli
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.costs.engine_choice import disk_short
from cai.models import device
from cai.models.device import (
    CUDA,
    DRIVER,
    GB,
    Gpu,
    cache_dir,
    cached,
    cuda_major,
    cuda_version,
    disk_free,
    environment_dir,
    gpus,
    hub_token,
    settle_cache,
)
from cai.models.fit import disk_fit, memory_fit
from cai.models.registry import REGISTRY, ModelSpec, choose, resolve
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN, Row, failed, table
from cai.preflight.packages import misfits, pins, torch_suits

BLACKWELL = (10, 0)  # the first compute capability that torch's build for CUDA 12.6 has no code for
SERVED_BITS = 8  # made of the 16-bit weights, as 16 bits are, so they need the same disk
COMPAT = Path("/usr/local/cuda-13.0/compat")  # where NVIDIA's package cuda-compat-13-0 puts its library
# GPUs that NVIDIA documents the package for, by name: those of data centres, not GeForce.
DATA_CENTRE = re.compile(r"\b([ABH][1-9]00|[HB]200|GH200|A10|A16|A2|A30|A40|L4|L40S?|T4)\b")

# Free space in GB that an installation needs: the environment, and pip's downloads of it. Measured for the
# CPU set (2.0 + 0.5), estimated from its wheels for the CUDA sets (12 + 5).
INSTALL_GB = {"cpu": 3, "cuda": 17, "cuda12": 17}


def package_set() -> str:
    """Which set of packages belongs on this machine: cpu, cuda (CUDA 13), or cuda12 for an older driver."""
    return "cpu" if not gpus()[0] else "cuda" if cuda_major() >= CUDA else "cuda12"


# ---- rows ----


def python_row() -> Row:
    fits = (3, 11) <= sys.version_info < (3, 15)
    do = "" if fits else "install Python 3.11 to 3.14, remove .venv, run setup_environment.sh again"
    return Row("python", OK if fits else FAIL, f"{platform.python_version()}, {sys.executable}", do)


def packages_row(kind: str) -> Row:
    wrong = misfits(kind) + ([] if torch_suits(kind) else [f"torch is not the {kind} build"])
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        return Row("packages", FAIL, "; ".join(wrong[:4]) + more, "bash setup_environment.sh")
    torch = importlib.metadata.version("torch")
    return Row("packages", OK, f"{len(pins(kind))} packages as pinned ({kind} set), torch {torch}")


def gpu_rows() -> list[Row]:
    """A row for each GPU, then bf16, driver and compiler; one row that says why where there is none."""
    found, reason = gpus()
    if not found and "does not answer" in reason:
        return [Row("gpu", WARN, reason, "repair the driver or rent another machine")]
    if not found:
        return [Row("gpu", UNCHECKED, reason, "none needed for the sandbox: all runs on the CPU")]
    rows = []
    for number, gpu in enumerate(found):
        capability = "unknown" if gpu.capability is None else "{}.{}".format(*gpu.capability)
        memory = f"{gpu.memory / GB:.0f} GB ({gpu.free / GB:.0f} free)"
        rows.append(Row(f"gpu {number}", OK, f"{gpu.name}, {memory}, compute capability {capability}"))
    if all(gpu.bf16 for gpu in found):
        rows.append(Row("bf16", OK, "yes"))
    else:
        do = "choose an A100, H100, L40S or newer"
        rows.append(Row("bf16", WARN, "no: it begins with compute capability 8.0", do))
    if device.gpus_hidden():
        do = "unset it to use them"
        rows.append(Row("gpu in use", WARN, "none: CUDA_VISIBLE_DEVICES hides all, so the CPU is used", do))
    return [*rows, driver_row(found[0]), compiler_row()]


def driver_row(gpu: Gpu) -> Row:
    """CUDA 13 is what the pins are built for; CUDA 12 gets its own builds of them, but no vLLM."""
    major, version = cuda_major(), cuda_version()
    found = f"{gpu.driver}, CUDA {version[0]}.{version[1]}" if version else gpu.driver
    if major >= CUDA:
        return Row("driver", OK, found)
    rent = f"rent a machine with driver {DRIVER} or newer (RunPod: filter by CUDA version {CUDA}.0)"
    if major < 12 or (gpu.capability or (0, 0)) >= BLACKWELL:
        return Row("driver", FAIL, f"{found}: too old for every build of torch that runs on {gpu.name}", rent)
    in_use = str(COMPAT) in os.environ.get("LD_LIBRARY_PATH", "").split(":")
    use = f"export LD_LIBRARY_PATH={COMPAT}:$LD_LIBRARY_PATH and run bash setup_environment.sh again"
    if in_use:
        do = f"NVIDIA's compatibility library ({COMPAT}) is in LD_LIBRARY_PATH, and is not used here: {rent}"
    elif (COMPAT / "libcuda.so.1").exists():
        do = f"NVIDIA's compatibility library is here and not used: {use}; or {rent}"
    elif DATA_CENTRE.search(gpu.name):
        do = f"for vLLM {rent}; or apt-get install cuda-compat-13-0 (from NVIDIA's package source), {use}"
    else:
        do = f"for vLLM {rent}"
    return Row("driver", WARN, f"{found}: torch's build for CUDA 12 is taken, and vLLM does not run", do)


def compiler_row() -> Row:
    """Triton compiles as it runs: with CC, gcc or clang, against the headers of .venv's Python."""
    compiler = next(filter(shutil.which, (os.environ.get("CC") or "gcc", "clang")), None)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file()
    missing = [] if compiler else ["a C compiler"]
    missing += [] if headers else [f"{python}'s headers (Python.h)"]
    if not missing:
        return Row("compiler", OK, f"{compiler}, with {python}'s headers")
    wanted = ["gcc"] * (not compiler) + [f"{python}-dev"] * (not headers)
    do = f"apt-get update && apt-get install -y {' '.join(wanted)}"
    return Row("compiler", FAIL, f"Triton needs {' and '.join(missing)} on a GPU", do)


def environment_row() -> Row:
    place = environment_dir(".venv")
    if kind := device.network_disk(place):
        do = "move .venv away and run bash setup_environment.sh again, with VENV_DIR=/a/local/disk if need be"
        return Row("environment", WARN, f"{place}: on a network disk ({kind}), slow for many small files", do)
    if place == ROOT / ".venv":
        return Row("environment", OK, str(place))
    return Row("environment", OK, f"{place}, by the link .venv: built again by set-up when that disk is gone")


def cache_row() -> Row:
    place = cache_dir()
    if place.is_relative_to(device.VOLUME):
        return Row("model cache", OK, f"{place}: on the volume, which outlives the pod's container")
    if device.VOLUME.is_dir() or os.environ.get("RUNPOD_POD_ID"):
        do = f"attach a volume and export HF_HOME={device.VOLUME}/huggingface"
        return Row("model cache", WARN, f"{place}: on the container's disk, lost when the pod stops", do)
    return Row("model cache", OK, str(place))


def token_row() -> Row:
    """Of a gated model there is more than enough time to ask for access before milestone 3 needs it."""
    shut = [spec.name for spec in REGISTRY.values() if spec.gated and not cached(*spec.source(spec.bits))]
    if not shut or hub_token():
        return Row("hub token", OK, "there" if shut else "not needed: gated models are in the cache")
    do = f"accept the terms on https://huggingface.co/{shut[0]}, then hf auth login; or --guard sandbox"
    return Row("hub token", WARN, f"none: {', '.join(shut)}, milestone 3's guard, is gated", do)


def space_row(kind: str) -> Row:
    place = environment_dir(".venv")
    need, free = INSTALL_GB[kind], disk_free(place) / GB
    found = f"{free:.1f} GB free at {place.parent}; installing the {kind} set takes {need} GB"
    do = "free some space there (RunPod: a larger container disk), or use another: VENV_DIR=/a/local/disk"
    return Row("disk for packages", OK, found) if free >= need else Row("disk for packages", FAIL, found, do)


def runs_row() -> Row:
    free = disk_free(ROOT) / GB
    do = "" if free >= 1 else "free some space, or set CAI_OUTPUT to a directory on another disk"
    return Row("disk for runs", WARN if do else OK, f"{free:.1f} GB free at {ROOT}", do)


def model_rows(spec: ModelSpec, bits: int, *, must_fit: bool) -> list[Row]:
    """Disk for the download, memory for the weights. must_fit: too little of either fails, else it warns."""
    short = FAIL if must_fit else WARN
    repo, revision = spec.source(bits)
    what = f"{spec.name} in {bits} bits"
    if any((ROOT / repo).glob("*.safetensors")):
        disk = Row("disk for model", OK, f"{what}: here already, {repo}")
    elif repo.startswith("models/"):
        do = f"git checkout -- {repo}, or python scripts/make_sandbox.py"
        disk = Row("disk for model", short, f"{what}: {repo} is not in this checkout", do)
    elif cached(repo, revision):
        disk = Row("disk for model", OK, f"{what}: {repo} is in the cache already")
    elif not spec.parameters:
        disk = Row("disk for model", UNCHECKED, f"{what}: its size is not in the registry")
    else:
        fit = disk_fit(spec, bits)
        smaller = ", or ask for --bits 4" if bits > 4 and spec.repo_4bit else ""
        do = f"free some space, or set HF_HOME to a larger disk (RunPod: enlarge the volume){smaller}"
        found = f"{what}: {repo}, {fit.need:.0f} GB to fetch, {fit.free:.0f} GB free in {cache_dir()}"
        disk = Row("disk for model", OK if fit.ok else short, found, "" if fit.ok else do)
    if not spec.parameters:
        return [disk, Row("memory for model", UNCHECKED, f"{what}: its size is not in the registry")]
    return [disk, memory_row(spec, bits, short)]


def memory_row(spec: ModelSpec, bits: int, short: str) -> Row:
    """The model's weights against the freest GPU, or against the main memory where there is no GPU."""
    found = device.visible_gpus()
    if found:
        free, kind = max(gpu.free for gpu in found), "GPU memory free"
    else:
        free, kind = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "main memory"
    fit = memory_fit(spec, bits, free, gpu=bool(found))
    text = f"{spec.name} in {bits} bits: about {fit.need:.0f} GB, {fit.free:.0f} GB of {kind}"
    if not fit.ok and found:
        do = f"use --bits {fit.smaller}" if fit.smaller else "use a smaller --model or a larger GPU"
        return Row("memory for model", short, text, f"{do}; nvidia-smi shows who holds memory")
    if not fit.ok:
        return Row("memory for model", short, text, "use a smaller --model or rent a GPU")
    if not found and spec.parameters > 1:
        return Row("memory for model", WARN, text, "it fits, but expect minutes an answer on a CPU")
    return Row("memory for model", OK, text)


def vllm_row(spec: ModelSpec) -> Row:
    """The disk that vLLM would need. With too little, or an older driver, runs stay with the local engine."""
    what, do = (
        f"vLLM for {spec.name}",
        "nothing, if --engine local will do; else a larger volume or container disk",
    )
    if short := disk_short(spec, SERVED_BITS):
        return Row("disk for vLLM", WARN, f"{what}: {short}", do)
    return Row("disk for vLLM", OK, f"{what}: room for its environment and its 16-bit weights")


def report(spec: ModelSpec | None = None, bits: int | None = None, *, must_fit: bool = False) -> list[Row]:
    """The whole table for this machine, with its default model unless one is given."""
    kind, spec = package_set(), spec or choose("auto")[0]
    machine = [python_row(), packages_row(kind), environment_row(), *gpu_rows(), cache_row(), runs_row()]
    if kind != "cpu":
        machine.append(token_row())
    if kind == "cuda" and spec.parameters and not spec.sandbox:
        machine.append(vllm_row(spec))
    return machine + model_rows(spec, bits or spec.bits, must_fit=must_fit)


def main() -> int:
    p = argparse.ArgumentParser(description="What machine this is, as a table.", allow_abbrev=False)
    p.add_argument("--model", help="the model that must fit (default: this machine's own, which only warns)")
    p.add_argument("--bits", type=int, help="4, 8 or 16 (default: the model's own)")
    ask = p.add_mutually_exclusive_group()
    ask.add_argument("--kind", action="store_true", help="print cpu, cuda or cuda12, nothing else")
    ask.add_argument("--environment", action="store_true", help="print where .venv lies, or is to lie")
    ask.add_argument("--versions", choices=INSTALL_GB, help="status 0 if the packages are as pinned, else 1")
    ask.add_argument("--torch-suits", choices=INSTALL_GB, help="status 0 if torch is missing or fits, else 1")
    ask.add_argument("--before-install", choices=INSTALL_GB, help="only what makes an installation pointless")
    args = p.parse_args()
    if args.kind:
        print(package_set())
        return GO
    if args.environment:
        place = environment_dir(".venv")
        print(".venv" if place == ROOT / ".venv" else place)
        return GO
    if args.versions:
        return int(bool(misfits(args.versions)))
    if args.torch_suits:
        return int(not torch_suits(args.torch_suits))
    if args.bits not in (None, 4, 8, 16):
        raise UserError(f"--bits {args.bits}: choose 4, 8 or 16")
    settle_cache()
    asked = args.model not in (None, "auto")
    rows = report(resolve(args.model) if asked else None, args.bits, must_fit=asked)
    if args.before_install:
        rows.append(space_row(args.before_install))
        rows = [row for row in rows if row.status == FAIL and row.what != "packages"]
    if rows:
        print(table(rows), file=sys.stderr if args.before_install else sys.stdout)
    return BAD_INPUT if failed(rows) else GO


if __name__ == "__main__":
    cli(main)
