"""The review page: report.html, on which a person reads and marks a run's examples, and review.jsonl, the
marks that the page exports.

The page is one file that asks nothing of any server. Its parts are review.html, review.css and review*.js
beside this module. What a model wrote reaches it as data in an element that no browser executes, and from
there the screen through textContent alone; a content security policy lets this script and this style run and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cai.records import check
from cai.run import UserError, write_whole
from cai.waves import read_records

CRITIQUE_KEYS = {"principle_id": str, "principle": str, "critique": str}
MARK_KEYS = {
    "id": str,
    "critique_meaningful": (bool, type(None)),
    "revision_better": (str, type(None)),
    "note": str,
    "time": str,
}
REVISION_BETTER = ("revision", "first", "tie", None)
# The page has these from other keys: the pair is revision against first answer, the two others are joined.
LEFT_OUT = ("preference_pair", "principle", "critique")
FACTS = (
    "model revision bits adapter seed constitution started commit device gate counts totals settings".split()
)
PARTS = ("review.html", "review.css")
SCRIPTS = ("review_diff.js", "review_marks.js", "review.js")


@dataclass(frozen=True)
class Marks:
    """What a person said of one example; None where a question was left open.

    revision_better: "revision", "first" (the first answer is better) or "tie". time: ISO 8601, of the last
    change.
    """

    critique_meaningful: bool | None
    revision_better: str | None
    note: str
    time: str


def write_report(run_dir: Path) -> Path:
    """Writes run_dir/report.html from run.json and records*.jsonl, whole or not at all; gives back its path.

    Raises UserError for a directory that holds no run, and for records that do not fit their schema.
    """
    page = render(_manifest(run_dir), read_records(run_dir))
    path = run_dir / "report.html"
    write_whole(path, page)
    return path


def render(manifest: dict[str, Any], records: list[dict[str, Any]]) -> bytes:
    """The page in UTF-8. manifest: a run.json; records: rows of the schema RECORD_KEYS."""
    template, style, *scripts = (
        Path(__file__).with_name(name).read_text(encoding="utf-8").strip() for name in (*PARTS, *SCRIPTS)
    )
    script = '"use strict";\n' + "\n\n".join(scripts)
    examples = [_example(record) for record in records]
    settings = manifest.get("settings", {})
    data = {
        "run": manifest["run"],
        # A browser keeps its marks for these examples with these texts, in whatever file and order they are.
        "hash": _digest(sorted(e["texts"] for e in examples)),
        "facts": {k: manifest.get(k, settings.get(k)) for k in FACTS if k in manifest or k in settings},
        "examples": examples,
    }
    parts = {
        "title": html.escape(f"{manifest['run']}: review"),
        "policy": f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": _json_for_html(data),
    }
    pieces = template.split("%%")  # text, name, text, name, ..., text: what is put in is not searched again
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    # A lone surrogate, which UTF-8 cannot hold, becomes its \udXXX, which JSON reads back as what it was.
    return ("".join(pieces) + "\n").encode("utf-8", "backslashreplace")


def read_marks(run_dir: Path) -> dict[str, Marks]:
    """The marks in run_dir/review.jsonl by example ({} if there is no such file); the last line of an id
    counts.

    Raises UserError, with the line's number, for a line that the page does not write, for an example that the
    run has not, and for a mark that was made on other texts than the run's.
    """
    path = run_dir / "review.jsonl"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); export it from the page again") from None
    examples = {record["id"]: record for record in read_records(run_dir)}
    marks = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row_id, mark = _mark(line, examples, f"{path}, line {number}")
            marks[row_id] = mark
    return marks


def preferred(run_dir: Path) -> dict[str, str]:
    """Which answer a person found better, by example: REVISION_BETTER, for those that were asked about it."""
    return {i: m.revision_better for i, m in read_marks(run_dir).items() if m.revision_better is not None}


def _mark(line: str, examples: dict[str, dict[str, Any]], where: str) -> tuple[str, Marks]:
    try:
        row = json.loads(line)
    except ValueError:
        raise UserError(f"{where}: not JSON; remove the line or export the file again") from None
    check(row, MARK_KEYS, where)
    if row["revision_better"] not in REVISION_BETTER:
        raise UserError(
            f"{where}: 'revision_better' is {row['revision_better']!r}: it can be 'revision', 'first', 'tie' "
            f"or null"
        )
    try:
        datetime.fromisoformat(row["time"])
    except ValueError:
        raise UserError(f"{where}: 'time' is {row['time']!r}, which is no ISO 8601 time") from None
    record = examples.get(row["id"])
    if record is None:
        raise UserError(f"{where}: the run has no example {row['id']!r}; is this another run's review.jsonl?")
    if row.get("texts", texts := _texts(record)) != texts:
        raise UserError(
            f"{where}: example {row['id']} had other texts when it was marked; mark it on this run's "
            f"report.html, or remove the line"
        )
    if row["revision_better"] is not None and not record["revised_answer"]:
        raise UserError(f"{where}: 'revision_better' is set, but example {row['id']} was not revised")
    return row["id"], Marks(*(row[key] for key in MARK_KEYS if key != "id"))


def _example(record: dict[str, Any]) -> dict[str, Any]:
    """A record as the page shows it, with the digest of the texts that a person judges."""
    for number, critique in enumerate(record["critiques"], 1):
        check(critique, CRITIQUE_KEYS, f"record {record['id']}, critique {number}")
    return {**{k: v for k, v in record.items() if k not in LEFT_OUT}, "texts": _texts(record)}


def _texts(record: dict[str, Any]) -> str:
    critiques = [[c["principle"], c["critique"]] for c in record["critiques"]]
    return _digest([record["instruction"], record["initial_answer"], critiques, record["revised_answer"]])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _json_for_html(value: Any) -> str:
    """JSON that a browser parses and that cannot end, or nest, the script element it stands in. NaN and the
    infinities, which Python writes and browsers refuse, become texts."""
    plain = json.loads(json.dumps(value), parse_constant=str)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _source(text: str) -> str:
    """The source expression by which a content security policy allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "run.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file, so there is no run to report on") from None
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("run"), str):
        raise UserError(f"{path} is not a run's manifest: restore it, or use --fresh to move the run aside")
    return manifest
