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
from pathlib import Path
from typing import Any

from cai.core.errors import UserError
from cai.core.files import write_whole
from cai.core.schema import check
from cai.evaluation.marks import _digest, _texts
from cai.generation.records import read_records

CRITIQUE_KEYS = {"principle_id": str, "principle": str, "critique": str}

# The page has these from other keys: the pair is revision against first answer, the two others are joined.
LEFT_OUT = ("preference_pair", "principle", "critique")
FACTS = (
    "model revision bits adapter seed constitution started commit device gate counts totals settings".split()
)

PARTS = ("review.html", "review.css")
SCRIPTS = ("review_diff.js", "review_marks.js", "review.js")


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


def _example(record: dict[str, Any]) -> dict[str, Any]:
    """A record as the page shows it, with the digest of the texts that a person judges."""
    for number, critique in enumerate(record["critiques"], 1):
        check(critique, CRITIQUE_KEYS, f"record {record['id']}, critique {number}")
    return {**{k: v for k, v in record.items() if k not in LEFT_OUT}, "texts": _texts(record)}


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
