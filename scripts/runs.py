"""Runs: their gates, and runs of an older format made readable.

    python scripts/runs.py single batch mvp      # the gates of these runs, and where the last one's page is
    python scripts/runs.py --convert mvp         # from format 1, whose pairs are rendered, to this one

Reads data/<run>/run.json. --convert writes data/<run>/ anew and keeps the old one as data/<run>~1. Exit
status: 0 done, 2 bad input.
"""

from __future__ import annotations

import sys

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
    if not args.runs and not args.convert:
        raise UserError("no run is named: give names of runs, as in python scripts/runs.py single batch mvp")
    from cai.evaluation.gates import lines
    from cai.generation.convert import convert

    for name in args.convert:
        kept = convert(name)
        print(f"{display_path(directories(name)[0])} is of this program's format; the old one: {kept}")
    page = None
    for name in args.runs:
        manifest = read_manifest(name)
        if manifest is None:
            raise UserError(
                f"there is no run {name!r}: look for names in {display_path(directories('')[0])}/"
            )
        gates = {f"{name}, its data": "data_gate", name: "gate"}
        found = {of: manifest[key] for of, key in gates.items() if key in manifest}
        for of, gate in (found or {name: {"decision": "no decision", "criteria": []}}).items():
            table = "\n".join([f"{gate['decision']} for {of}", *lines(gate["criteria"])])
            print(printable(table, sys.stdout.encoding))
        found = directories(name)[0] / "report.html"
        page = found if found.exists() else page
    if page:
        print(f"read and judge the examples: {display_path(page)}")
    return GO


if __name__ == "__main__":
    cli(main)
