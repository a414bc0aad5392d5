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
import sys

from cai.core.cli import BAD_INPUT, GO, cli
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.models import device
from cai.models.device import GB, cache_dir, cached, disk_free, gpus, machine_kind, output_of, settle_cache
from cai.models.fit import disk_fit, memory_fit
from cai.models.registry import ModelSpec, choose, resolve
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN, Row, failed, table
from cai.preflight.packages import misfits, pins, torch_suits

CUDA_NEEDED = 13  # the CUDA version that the pinned torch is built for
DRIVER_NEEDED = 580  # the first driver that runs it

# Free space in GB that an installation needs: the environment, and pip's downloads of it. Measured for the
# CPU set (2.0 + 0.5), estimated from its wheels for the CUDA set (12 + 5).
INSTALL_GB = {"cpu": 3, "cuda": 17}


def cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, as nvidia-smi's header says it."""
    said = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", output_of("nvidia-smi")[1])
    return (int(said[1]), int(said[2])) if said else None


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
    """A row for each GPU, then bf16 and the driver; one row that says why where there is none."""
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
    return [*rows, driver_row(found[0].driver)]


def driver_row(driver: str) -> Row:
    cuda = cuda_version()
    major = re.match(r"\d+", driver)
    fits = cuda[0] >= CUDA_NEEDED if cuda else int(major[0] if major else 0) >= DRIVER_NEEDED
    found = f"{driver}, CUDA {cuda[0]}.{cuda[1]}" if cuda else driver
    do = (
        f"the pinned torch needs CUDA {CUDA_NEEDED} (driver {DRIVER_NEEDED} or newer): rent one with it "
        f"(RunPod: filter by CUDA version {CUDA_NEEDED}.0)"
    )
    return Row("driver", OK, found) if fits else Row("driver", FAIL, found, do)


def cache_row() -> Row:
    place = cache_dir()
    if place.is_relative_to(device.VOLUME):
        return Row("model cache", OK, f"{place}: on the volume, which outlives the pod's container")
    if device.VOLUME.is_dir() or os.environ.get("RUNPOD_POD_ID"):
        do = f"attach a volume and export HF_HOME={device.VOLUME}/huggingface"
        return Row("model cache", WARN, f"{place}: on the container's disk, lost when the pod stops", do)
    return Row("model cache", OK, str(place))


def space_row(kind: str) -> Row:
    need, free = INSTALL_GB[kind], disk_free(ROOT) / GB
    found = f"{free:.1f} GB free at {ROOT}; installing the {kind} set takes {need} GB"
    do = "" if free >= need else "free some space there"
    return Row("disk for packages", FAIL if do else OK, found, do)


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


def report(spec: ModelSpec | None = None, bits: int | None = None, *, must_fit: bool = False) -> list[Row]:
    """The whole table for this machine, with its default model unless one is given."""
    kind, spec = machine_kind(), spec or choose("auto")[0]
    machine = [python_row(), packages_row(kind), *gpu_rows(), cache_row(), runs_row()]
    return machine + model_rows(spec, bits or spec.bits, must_fit=must_fit)


def main() -> int:
    p = argparse.ArgumentParser(description="What machine this is, as a table.", allow_abbrev=False)
    p.add_argument("--model", help="the model that must fit (default: this machine's own, which only warns)")
    p.add_argument("--bits", type=int, help="4, 8 or 16 (default: the model's own)")
    ask = p.add_mutually_exclusive_group()
    ask.add_argument("--kind", action="store_true", help="print cpu or cuda, nothing else")
    ask.add_argument("--versions", choices=INSTALL_GB, help="status 0 if the packages are as pinned, else 1")
    ask.add_argument("--torch-suits", choices=INSTALL_GB, help="status 0 if torch is missing or fits, else 1")
    ask.add_argument("--before-install", choices=INSTALL_GB, help="only what makes an installation pointless")
    args = p.parse_args()
    if args.kind:
        print(machine_kind())
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
