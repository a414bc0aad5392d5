"""Is this machine fit for the job? Run it first on a rented GPU, before 19 GB are downloaded.

    python scripts/preflight.py                           # the machine, then Milestone 0 on the sandbox
    python scripts/preflight.py --shape Qwen/Qwen2.5-32B  # and a random model of the 32B's exact shape
    python scripts/preflight.py --shape tiny --skip-sandbox    # the same at a size for any CPU

Looks at GPU, driver, memory, bf16, disk, model cache, packages and the model hub; runs Milestone 0 on the
sandbox in 4 bits with the real libraries. --shape writes a 4-bit checkpoint of random weights (19 GB for the
32B) to --scratch, loads it through Unsloth, measures memory, generation and one DPO step, and removes it.
What cannot be looked at on this machine is "not checked". Writes logs/preflight-<time>.json. Exit status: 0
when nothing failed, 2 when something did.
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
from typing import Any

from cai.core import cli, files
from cai.core.cli import GO, NO_GO
from cai.core.errors import UserError
from cai.core.files import ROOT
from cai.core.text import format_bytes
from cai.models import device
from cai.models.registry import resolve
from cai.preflight import hardware
from cai.preflight.checkup import FAIL, OK, UNCHECKED, WARN, Report, Row
from cai.preflight.random_weights import shape_of

HUB_SECONDS = 5  # how long the model hub may take to answer
SANDBOX_SECONDS = 900
MOST_TOKENS = 4096
CPU_PARAMETERS = 1e8  # the largest shape that is worth a CPU's time


def main() -> int:
    flags = cli.parser(__doc__, "model", "bits", "threads", "seed", "batch-sizes", batch_sizes=[1, 8, 32, 64])
    flags.add_argument("--shape", help="measure a random model of this shape (Qwen/Qwen2.5-32B, ..., tiny)")
    flags.add_argument("--new-tokens", **cli.WHOLE, default=128, help="tokens generated a row (128)")
    flags.add_argument("--skip-sandbox", action="store_true", help="leave Milestone 0 on the sandbox out")
    flags.add_argument("--scratch", help="where the random checkpoint goes (checkpoints/preflight)")
    flags.add_argument("--json", help="the report's path (logs/preflight-<time>.json)")
    args = flags.parse_args()
    if args.shape and args.bits not in (None, 4):
        raise UserError(f"--shape with --bits {args.bits}: random models are built in 4 bits")
    if not 1 <= args.new_tokens <= MOST_TOKENS:
        raise UserError(f"--new-tokens {args.new_tokens}: must be at least 1, and at most {MOST_TOKENS}")
    shape = shape_of(args.shape) if args.shape else None
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
    report.head("random model")
    if not shape:
        report.add(Row("shape", UNCHECKED, "no --shape asked for", "--shape Qwen/Qwen2.5-32B measures one"))
    elif not cuda and shape.parameters > CPU_PARAMETERS:
        size = f"{shape.parameters / 1e9:.1f} billion parameters"
        report.add(
            Row("shape", UNCHECKED, f"{args.shape}: {size}, and no GPU here", "rent a GPU, or --shape tiny")
        )
    else:
        scratch = Path(args.scratch) if args.scratch else files.directories("preflight")[1]
        measure(report, args.shape, args.batch_sizes, args.new_tokens, args.seed, scratch)
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


def measure(report: Report, name: str, sizes: list[int], new_tokens: int, seed: int, scratch: Path) -> None:
    """Builds a random model and measures it; a row and an entry of the JSON for each measurement."""
    from cai.preflight import measurements

    facts, model = report.facts.setdefault("shape", {}), None

    def build() -> Row:
        nonlocal model
        model, made = measurements.random_model(name, scratch, seed, max(sizes), print_progress)
        facts.update(made, generation=[])
        where = f"{format_bytes(made['weights_bytes'])} on the GPU" if made["weights_bytes"] else "on the CPU"
        found = f"{made['parameters'] / 1e9:.3g} billion in NF4, {format_bytes(made['checkpoint_bytes'])}, "
        found += f"{where}: written in {made['write_seconds']:.0f} s, loaded in {made['load_seconds']:.0f} s"
        return Row("weights", OK, found)

    def generate(rows: int) -> Row:
        made = measurements.generation(model, rows, new_tokens, seed)
        facts["generation"].append(made)
        rate = f"{made['tokens_per_second']:.1f} tokens/s"
        found = f"{rate}: {made['tokens']} tokens in {made['seconds']:.1f} s"
        return Row(f"generate {rows}", OK, found + peak(made))

    def train() -> Row:
        made = facts["dpo"] = measurements.dpo_step(model, seed)
        found = f"{made['step_seconds']:.2f} s a step of one pair of {made['answer_tokens']} tokens each, "
        found += f"LoRA r {made['lora_r']}; the first {made['first_seconds']:.1f} s; loss {made['loss']:.4f}"
        return Row("dpo step", OK, found + peak(made))

    if report.check("weights", build):
        for rows in sizes:
            report.check(f"generate {rows}", lambda rows=rows: generate(rows))
        report.check("dpo step", train)


def print_progress(done: int, total: int) -> None:
    if done % 16 == 0 or done == total:
        print(f"  {done} of {total} files written", flush=True)


def peak(found: dict[str, Any]) -> str:
    return f", peak {format_bytes(found['peak_bytes'])}" if found["peak_bytes"] else ""


if __name__ == "__main__":
    cli.cli(main)
