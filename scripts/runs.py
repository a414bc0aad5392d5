"""Runs: all in a table, the gates of some, and runs of an older format made readable.

    python scripts/runs.py                       # every run: decision, n, loss, parent, engine, model, cost
    python scripts/runs.py single batch mvp      # the gates of these runs, and where the last one's page is
    python scripts/runs.py --convert mvp         # from format 1, whose pairs are rendered, to this one

Reads data/<run>/{run.json,records*.jsonl} and checkpoints/<run>/{training.json,training.jsonl}. --convert
writes data/<run>/ anew and keeps the old one as data/<run>~1. Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from cai.core.cli import GO, cli, parser
from cai.core.errors import UserError
from cai.core.files import directories, display_path
from cai.core.run import read_manifest
from cai.core.text import printable


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("runs", nargs="*", metavar="RUN", help="names of runs")
    flags.add_argument("--convert", nargs="+", default=[], metavar="RUN", help="runs of an older format")
    args = flags.parse_args()
    from cai.generation.convert import convert
    from cai.reports.run_table import table

    if not args.runs and not args.convert:
        print(table() or f"there are no runs in {display_path(directories('')[0])}/ yet")
    for name in args.convert:
        kept = convert(name)
        print(f"{display_path(directories(name)[0])} is of this program's format; the old one: {kept}")
    page = None
    manifests = {name: manifest_of(name) for name in args.runs}  # all are there before one is told
    for name, manifest in manifests.items():
        for text in gates_of(name, manifest):
            print(printable(text, sys.stdout.encoding))
        found = directories(name)[0] / "report.html"
        page = found if found.exists() else page
    if page:
        print(f"read and judge the examples: {display_path(page)}")
    return GO


def manifest_of(name: str) -> dict[str, Any]:
    manifest = read_manifest(name)
    if manifest is None:
        raise UserError(f"there is no run {name!r}: python scripts/runs.py lists all of them")
    return manifest


def gates_of(name: str, manifest: dict[str, Any]) -> Iterator[str]:
    """The gates of a run's data and of what it trained, with their criteria."""
    from cai.evaluation.gates import lines, of_another_adapter

    gates = {f"{name}, its data": "data_gate", name: "gate"}
    found = {of: manifest[key] for of, key in gates.items() if key in manifest}
    try:
        for of, gate in (found or {name: {"decision": "no decision", "criteria": []}}).items():
            if why := of_another_adapter(name, gate):
                yield f"no decision for {of}: its gate said {gate['decision']}, but {why}"
            else:
                yield "\n".join([f"{gate['decision']} for {of}", *lines(gate["criteria"])])
    except (KeyError, TypeError, ValueError, AttributeError):
        path = display_path(directories(name)[0] / "run.json")
        raise UserError(f"{path} is damaged: its gate is not what a run writes; restore the file") from None


if __name__ == "__main__":
    cli(main)
