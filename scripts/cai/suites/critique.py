"""How many of a run's critiques mean something, by a rule, and by a person where one has marked them."""

from __future__ import annotations

from typing import Any

from cai.gates import meaningful
from cai.intervals import Metric, share
from cai.suites.subject import Rows, Subject, source_of


def critique(subject: Subject, rows: Rows) -> tuple[dict[str, Metric], dict[str, Any]]:
    """(metrics by name, notes). A person's mark of an example stands for all its critiques."""
    from cai.review import read_marks

    marks = read_marks(source_of(subject.run))
    wanted = []
    for record in subject.records:
        mark = marks.get(record["id"])
        by_person = mark.critique_meaningful if mark else None
        for number, c in enumerate(record["critiques"]):
            fault = meaningful(c["critique"], record["instruction"], record["initial_answer"])
            counts = by_person if by_person is not None else fault is None
            wanted.append(
                {
                    "id": f"critique/{record['id']}/{number}/{c['principle_id']}/{by_person}",
                    "record": record["id"],
                    "principle_id": c["principle_id"],
                    "critique": c["critique"],
                    "fault": fault,
                    "person": by_person,
                    "meaningful": counts,
                }
            )
    found = rows.fill(wanted, lambda some: [{} for _ in some])
    examples: dict[str, list[bool]] = {}
    for r in found:
        examples.setdefault(r["record"], []).append(r["meaningful"])
    marked = [r for r in found if r["person"] is not None]
    metrics = {
        "critiques meaningful": share([r["meaningful"] for r in found]),
        "examples all of whose critiques are meaningful": share([all(x) for x in examples.values()]),
        "critiques meaningful by the rule alone": share([r["fault"] is None for r in found]),
    }
    if marked:
        metrics["rule agrees with the person"] = share([(r["fault"] is None) == r["person"] for r in marked])
    return metrics, {"critiques that a person marked": len(marked)}
