"""logs/ledger.jsonl: what every step of every run took."""

from __future__ import annotations

from typing import Any

from cai.core import jsonl
from cai.core.files import directories

LEDGER_KEYS = {"run": str, "step": str, "seconds": (int, float), "dollars": (int, float)}


def read_ledger() -> list[dict[str, Any]]:
    return jsonl.read(directories("x")[2] / "ledger.jsonl", LEDGER_KEYS)
