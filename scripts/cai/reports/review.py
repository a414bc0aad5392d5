"""The review page: report.html, on which a person reads and marks a run's examples, and review.jsonl, the
marks that the page exports.

What a model wrote reaches the page as data in an element that no browser executes, and from there the screen
as text alone, in which what does not show is a token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import display_path, write_whole
from cai.core.run import Run, manifest_in
from cai.core.schema import check
from cai.core.text import HIDDEN
from cai.evaluation.marks import json_digest, texts_digest
from cai.generation.filters import final_reasons
from cai.generation.records import read_records
from cai.reports.pages import render_page

CRITIQUE_KEYS = {"principle_id": str, "principle": str, "critique": str}
# The page has these from other keys: the pair is revision against first answer, the two others are joined.
LEFT_OUT = ("preference_pair", "principle", "critique")
FACTS = (
    *"model revision bits engine precision caveat adapter seed constitution started".split(),
    *"commit device gate counts totals settings".split(),
)
SCRIPTS = ("review_diff.js", "review_marks.js", "review.js")


def write_report(run_dir: Path) -> Path:
    """Writes run_dir/report.html from run.json and records*.jsonl, whole or not at all; gives back its path.

    Raises UserError for a directory that holds no run, and for records that do not fit their schema.
    """
    manifest = manifest_in(run_dir)
    if manifest is None:
        raise UserError(f"{run_dir / 'run.json'}: there is no such file, so there is no run to report on")
    path = run_dir / "report.html"
    write_whole(path, render(manifest, read_records(run_dir)))
    return path


def publish(run: Run) -> None:
    """Writes an open run's page and says where it is."""
    path = display_path(write_report(run.data))
    run.log(f"\nread and judge the examples: {path} (put the exported review.jsonl beside it)")


def render(manifest: dict[str, Any], records: list[dict[str, Any]]) -> bytes:
    """The page in UTF-8. manifest: a run.json; records: rows of the schema RECORD_KEYS."""
    against = final_reasons(records)
    examples = [_example(record, against[record["id"]]) for record in records]
    settings = manifest.get("settings", {})
    data = {
        "run": manifest["run"],
        # A browser keeps its marks for these examples with these texts, in whatever file and order they are.
        "hash": json_digest(sorted(e["texts"] for e in examples)),
        "facts": {k: manifest.get(k, settings.get(k)) for k in FACTS if k in manifest or k in settings},
        "hidden": HIDDEN,
        "examples": examples,
    }
    data = json.loads(json.dumps(data), parse_constant=str)  # NaN, which browsers refuse, becomes a text
    page = render_page("review", f"{manifest['run']}: review", scripts=SCRIPTS, data=data)
    # A lone surrogate, which UTF-8 cannot hold, becomes its \udXXX, which JSON reads back as what it was.
    return page.encode("utf-8", "backslashreplace")


def _example(record: dict[str, Any], against: list[str]) -> dict[str, Any]:
    """A record as the page shows it, with all reasons against it, those that only the whole run shows
    included, and the digest of the texts that a person judges."""
    for number, critique in enumerate(record["critiques"], 1):
        check(critique, CRITIQUE_KEYS, f"record {record['id']}, critique {number}")
    shown = {k: v for k, v in record.items() if k not in LEFT_OUT}
    return {**shown, "kept": not against, "rejected_because": against, "texts": texts_digest(record)}
