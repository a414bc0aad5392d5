"""Serves a model with vLLM on this machine's GPU, for runs with --engine URL, for bootstrap, for curl.

    python scripts/serve.py                                    # Qwen2.5-32B, in the precision that fits
    python scripts/serve.py --model Qwen/Qwen2.5-7B --adapter mvp=mvp --port 8001
    python scripts/serve.py --beside meta-llama/Llama-Guard-3-8B      # leave room for a guard model
    python scripts/serve.py --stop                             # from another terminal; here Ctrl-C does

A run with --engine vllm starts and stops a server by itself: this one is for what is to outlive a run.
Installs vLLM into .venv-vllm at first use. Writes logs/vllm-<port>.log, and logs/vllm.json while it runs. It
listens on loopback only, unless --host says otherwise; then it wants a key, from CAI_API_KEY. Exit status: 0
when it was asked to end, 2 when it cannot serve, with the reason.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from cai.core.cli import GO, WHOLE, cli, parser
from cai.core.errors import UserError


def main() -> int:
    flags = parser(__doc__, "model", "bits", "instruct", "set", "deterministic")
    flags.add_argument("--port", **WHOLE, help="where it listens (default: the first free one from 8000 on)")
    flags.add_argument("--host", default="127.0.0.1", help="the address that it listens at (127.0.0.1)")
    flags.add_argument(
        "--adapter",
        nargs="+",
        default=[],
        metavar="NAME=RUN",
        help="serve a run's trained adapter under a name, too",
    )
    flags.add_argument("--beside", metavar="MODEL", help="leave GPU memory for this model, such as a guard")
    flags.add_argument("--stop", action="store_true", help="end the server that runs, and nothing else")
    args = flags.parse_args()
    if args.port is not None and not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: must be from 1 to 65535")

    from cai.models.vllm_process import stop_running

    if args.stop:
        stopped = stop_running()
        print(f"ended the server at {stopped}" if stopped else "no vLLM server of ours runs here")
        return GO

    server = make_server(args)
    url = server.urls()[0]
    try:
        print(f"\nserving {server.spec.name} at {url}; Ctrl-C ends it. Use it with, for example:")
        print(f"  python scripts/generate_mvp.py --model {server.spec.name} --engine {url}", flush=True)
        while server.runs():
            time.sleep(1)
    except KeyboardInterrupt:
        server.stop()
        print("\nended the server; its memory is free")
        return GO
    ended = not server.is_recorded()
    server.stop()
    if not ended:
        raise UserError(f"the server has ended by itself: see {server.log_file}, then start it again")
    print("the server was ended")
    return GO


def make_server(args: argparse.Namespace):
    """Says what will be served, and what that takes; checks it before anything starts."""
    from cai.core.files import ROOT
    from cai.core.text import format_table
    from cai.models.device import GB, disk_free
    from cai.models.fit import beside_gb, disk_fit
    from cai.models.loader import check_disk
    from cai.models.registry import choose, resolve, with_values
    from cai.models.vllm_environment import ENVIRONMENT_GB, environment, environment_ready
    from cai.models.vllm_server import VllmServer, gpu_to_serve_on, precision_of
    from cai.models.vllm_settings import serving_bits

    spec, why = choose(args.model, instruct=args.instruct)
    spec = with_values(spec, args.set)
    beside = resolve(args.beside, flag="--beside") if args.beside else None
    left = beside_gb(beside)
    gpu = gpu_to_serve_on()
    bits = serving_bits(spec, args.bits, gpu.free / GB, beside_gb=left) if gpu else args.bits or 16
    server = VllmServer(
        spec,
        bits,
        beside_gb=left,
        deterministic=args.deterministic,
        port=args.port,
        host=args.host,
    )
    for served, path in adapters(args.adapter, spec):
        server.load_adapter(path, served)
    fit = disk_fit(spec, bits)
    weights = f"{fit.need:.0f} GB to download, {fit.free:.0f} GB free"
    if fit.need < 0.5:
        weights = "here already"
    there = "ready" if environment_ready() else f"to be installed: {ENVIRONMENT_GB:.0f} GB"
    rows = [
        ("model", f"{spec.name} - {why}"),
        ("precision", precision_of(bits)),
        ("weights", weights if spec.parameters else "their size is not in the registry"),
        ("environment", f"{environment()}: {there}, {disk_free(ROOT) / GB:.0f} GB free"),
        ("GPU", f"{gpu.name}, {gpu.free / GB:.0f} GB free" if gpu else "none: vLLM's CPU build, for tests"),
        *([("beside", f"{beside.name}: {left:.0f} GB are left to it")] if beside else []),
        ("adapters", ", ".join(args.adapter) or "none"),
        ("context", f"{spec.max_seq_length} tokens"),
    ]
    print(format_table(rows, numbers=()), flush=True)
    if spec.parameters:
        check_disk(spec, bits)
    return server


def adapters(given: list[str], spec) -> list[tuple[str, Path]]:
    """(name, directory) of each --adapter. Raises UserError for one that is not there or not the model's."""
    from cai.core.cli import check_name
    from cai.core.files import directories
    from cai.models.model import check_adapter

    found: dict[str, Path] = {}
    for text in given:
        name, equals, run = text.partition("=")
        if not equals or not name or not run or name in found or name == spec.name:
            raise UserError(
                f"--adapter {text[:200]!r}: write NAME=RUN, each name once, with the name of a run"
            )
        check_name(name, "--adapter")
        check_name(run, "--adapter NAME=")
        found[name] = directories(run)[1]
        check_adapter(found[name], spec)
    return list(found.items())


if __name__ == "__main__":
    cli(main)
