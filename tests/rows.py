"""Whether two runs have the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from cai.core.jsonl import read
from cai.core.schema import RECORD_KEYS


def assert_same_rows(one: Path, other: Path) -> None:
    """Of two data directories. Records stand in the order in which they were finished, and the judge's
    probabilities are sums of float32 numbers, which differ in the last digits with the batch."""
    for name in ("instructions.jsonl", "pairs.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    rows = [read(directory / "records.jsonl", RECORD_KEYS) for directory in (one, other)]
    records = [{row["id"]: row for row in some} for some in rows]
    assert len(records[0]) == len(rows[0]) == len(rows[1])
    assert alike(*records)


def alike(a, b) -> bool:
    """The same, but for what another batch leaves of a sum of float32 numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == (pytest.approx(b, rel=1e-4, abs=1e-4) if isinstance(b, float) else b)
