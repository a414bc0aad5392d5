"""Is this machine fit for the job? Run it first on a rented GPU, before 20 GB are downloaded.

    python scripts/preflight.py                           # the machine, then Milestone 0 on the sandbox
    python scripts/preflight.py --skip-sandbox

Looks at GPU, driver, memory, bf16, disk, model cache, packages and the model hub; runs Milestone 0 on the
sandbox in 4 bits with the real libraries. How fast the machine is, benchmark.py gpu measures. What cannot be
looked at on this machine is "not checked". Writes logs/preflight-<time>.json. Exit status: 0 when nothing
failed, 2 when something did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path

from cai.core import cli, files
from cai.core.cli import GO, NO_GO
from cai.core.files import ROOT
from cai.models import device
from cai.models.registry import resolve
from cai.preflight import hardware
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN, Report, Row

HUB_SECONDS = 5  # how long the model hub may take to answer
SANDBOX_SECONDS = 900


def main() -> int:
    flags = cli.parser(__doc__, "model", "bits", "threads")
    flags.add_argument("--skip-sandbox", action="store_true", help="leave Milestone 0 on the sandbox out")
    flags.add_argument("--json", help="the report's path (logs/preflight-<time>.json)")
    args = flags.parse_args()
    spec = resolve(args.model) if args.model != "auto" else None
    device.settle_cache()
    device.settle_allocator()
    cuda = device.this_device() != "cpu"

    report = Report(gpus=[asdict(g) for g in device.gpus()[0]])
    report.head("machine")
    report.add(*hardware.report(spec, args.bits, must_fit=spec is not None), hub_row())
    if cuda:
        report.check("torch", torch_row)
    report.head("Milestone 0 on the sandbox, in 4 bits")
    if args.skip_sandbox:
        report.add(Row("sandbox", UNCHECKED, "left out by --skip-sandbox"))
    else:
        report.check("sandbox", sandbox_row)
    name = time.strftime("preflight-%Y%m%d-%H%M%S.json")
    return report.finish(Path(args.json) if args.json else files.directories("preflight")[2] / name)


def hub_row() -> Row:
    """Whether the model hub answers; a machine that has its models needs none."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Row("model hub", UNCHECKED, "HF_HUB_OFFLINE is set: only models in the cache load")
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    start = time.perf_counter()
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=HUB_SECONDS).close()
    except (OSError, ValueError) as error:
        refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
        if not refused:  # to refuse a HEAD is to answer
            do = "connect this machine to the network, or copy models into its cache; the sandbox needs none"
            return Row("model hub", WARN, f"{hub} does not answer ({getattr(error, 'reason', error)})", do)
    return Row("model hub", OK, f"{hub} answers in {time.perf_counter() - start:.1f} s")


def torch_row() -> Row:
    import torch

    if not torch.cuda.is_available():
        do = "see the driver's row; bash setup_environment.sh"
        return Row("torch", FAIL, f"{torch.__version__} sees no GPU", do)
    ones = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    found = f"{torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"
    if float((ones @ ones)[0, 0]) != 64.0:
        return Row("torch", FAIL, f"{found}: a bf16 matrix product came out wrong", "rent another machine")
    return Row("torch", OK, found)


def sandbox_row() -> Row:
    """The real script, its outputs in a directory that is removed. GO and NO-GO both went the whole way."""
    command = [sys.executable, str(ROOT / "scripts/test_single.py"), "--model", "sandbox", "--bits", "4"]
    do = "see all of it: python scripts/test_single.py --model sandbox --bits 4 --run sandbox-4bit"
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "CAI_OUTPUT": scratch}
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=scratch,
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SANDBOX_SECONDS,
        )
        seconds = time.perf_counter() - start
        manifest = Path(scratch, "data/single/run.json")
        trained = manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("training")
    if done.returncode not in (GO, NO_GO):
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit status {done.returncode}"]
        return Row("sandbox", FAIL, said[-1], do)
    if not trained:
        return Row("sandbox", FAIL, f"no preference pair in {seconds:.0f} s, so no DPO step", do)
    losses = f"{trained['before']['loss']:.4f} -> {trained['after']['loss']:.4f}"
    found = f"load, generate, one DPO step: {seconds:.0f} s, imports included; loss {losses}"
    return Row("sandbox", OK, found)


if __name__ == "__main__":
    cli.cli(main)
