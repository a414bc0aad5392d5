"""A small run's records by an engine of servers, as a process that can be killed.

CAI_OUTPUT=DIR python tests/served_records.py LIMIT URL [URL ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from cai.core.cli import cli  # noqa: E402
from cai.core.files import ROOT  # noqa: E402
from cai.core.prompt_files import load_seeds  # noqa: E402
from cai.core.run import Run  # noqa: E402
from cai.core.schema import content_id  # noqa: E402
from cai.generation.example import examples_of  # noqa: E402
from cai.generation.loop import Loop  # noqa: E402
from cai.generation.records import make_records  # noqa: E402
from cai.models.registry import REGISTRY  # noqa: E402
from cai.models.server_engine import FixedServers, ServerEngine  # noqa: E402
from cai.models.session import prompter_of  # noqa: E402
from cai.prompts.constitution import load  # noqa: E402


def make(limit: int, urls: list[str]) -> list[dict]:
    from transformers import AutoTokenizer

    spec = REGISTRY["sandbox"]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / spec.repo)
    own = {"bits": 16, "precision": "float32", "revision": None, "device": "cpu", "rows": 8}
    engine = ServerEngine(spec, FixedServers(urls), tokenizer, **own)
    seeds = load_seeds(ROOT / spec.seeds)[:limit]
    rows = [
        {"id": content_id(s.instruction), "instruction": s.instruction, "task": s.task, "source": "file"}
        for s in seeds
    ]
    with Run.open("served", {"seed": 0}) as run:
        loop = Loop(engine, prompter_of(engine), load(ROOT / "constitution.yaml"))
        return make_records(run, loop, examples_of(rows))


def main() -> None:
    make(int(sys.argv[1]), sys.argv[2:])


if __name__ == "__main__":
    cli(main)
