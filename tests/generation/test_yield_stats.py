"""Yields: counts by principle, task and reason that add up, with the interval of their n."""

import pytest
from cai.core.files import ROOT
from cai.core.run import Run
from cai.core.schema import content_id
from cai.generation.filters import REASONS, kept_ids
from cai.generation.pairs import make_pairs
from cai.generation.yield_stats import plot, report_yield, table, total, yields
from cai.prompts.constitution import load


def record(number, task, principles, against=()):
    instruction = f"Thing {number}?"
    return {
        "id": content_id(instruction),
        "instruction": instruction,
        "initial_answer": "No.",
        "revised_answer": f"Thing {number}.",
        "critiques": [{"principle_id": p, "critique": "C"} for p in principles],
        "task": task,
        "kept": not against,
        "rejected_because": list(against),
    }


HOPE = "I hope that this helps you a lot!"
RECORDS = [
    *(record(n, "math", ["accuracy"]) for n in range(6)),
    *(record(n, "math", ["accuracy", "harm"], ["cut_off", "unchanged"]) for n in range(6, 10)),
    *(record(n, "advice", ["harm"], ["unchanged"]) for n in range(10, 16)),
]


def test_counts_by_principle_task_and_reason():
    found = {(y.group, y.name): (y.count, y.n) for y in yields(RECORDS)}
    assert found == {
        ("principle", "accuracy"): (6, 10),
        ("principle", "harm"): (0, 10),
        ("task", "math"): (6, 10),
        ("task", "advice"): (0, 6),
        ("reason", "unchanged"): (10, 16),
        ("reason", "cut_off"): (4, 16),
    }
    assert (total(RECORDS).count, total(RECORDS).n) == (6, 16)


def test_rates_come_with_wilsons_interval_best_first():
    rows = yields(RECORDS)
    first = rows[0].as_dict()
    assert first == {
        **{"group": "principle", "name": "accuracy", "count": 6, "n": 10, "share": 0.6},
        "interval": [pytest.approx(0.3127, abs=1e-4), pytest.approx(0.8318, abs=1e-4)],
    }
    for group in ("principle", "task", "reason"):
        shares = [y.share for y in rows if y.group == group]
        assert shares == sorted(shares, reverse=True)
    assert yields(RECORDS[::-1]) == rows


def test_what_only_the_whole_run_shows_is_counted():
    topics = "rivers bread clocks violins tides moss kites chess salt lamps".split()
    spread = [
        record(100 + i, "math", ["harm"])
        | {"instruction": f"Say what {t} are.", "revised_answer": "I hope that this helps you a lot!"}
        for i, t in enumerate(topics)
    ]
    found = {(y.group, y.name): (y.count, y.n) for y in yields(spread)}
    assert found["reason", "boilerplate"] == (10, 10) and found["task", "math"] == (0, 10)


def test_the_table_shows_every_count_and_what_the_reasons_mean():
    lines = table(RECORDS).splitlines()
    assert lines[0].split()[:5] == ["all", "examples", "6", "of", "16"]
    [line] = [line for line in lines if " cut_off " in line]
    assert "4 of 16" in line and "25.0%" in line and "(10% to 49%)" in line
    assert line.endswith(REASONS["cut_off"].says)
    assert {"pairs by principle", "pairs by task", "no pair, by reason"} <= set(lines)
    assert table([]).splitlines()[0].split()[:5] == ["all", "examples", "0", "of", "0"]


@pytest.mark.parametrize("records", [RECORDS, []])
def test_the_plot_is_a_picture_and_leaves_nothing_behind(tmp_path, records):
    path = plot(records, tmp_path / "yields.png")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["yields.png"]


def test_kept_means_the_same_in_the_table_in_run_json_and_among_the_pairs(tmp_path, monkeypatch, capsys):
    """Boilerplate, which only the whole run shows, included."""
    monkeypatch.setenv("CAI_OUTPUT", str(tmp_path))
    topics = "rivers bread clocks violins tides moss kites chess salt lamps".split()
    records = [
        record(n, "math", ["accuracy"])
        | {"id": content_id(text), "instruction": text, "revised_answer": f"A word on {t}. {tail}".strip()}
        for n, (t, tail) in enumerate([(t, "") for t in topics] + [(t, HOPE) for t in topics])
        for text in [f"Say what {t} are, {n}."]
    ]
    for r in records:
        pair = {"prompt": r["instruction"], "chosen": r["revised_answer"], "rejected": "No."}
        r |= {"preference_pair": pair, "judgement": None}
    records.append(record(99, "math", ["accuracy"], ["cut_off"]) | {"preference_pair": None})
    assert all(r["kept"] for r in records[:20]) and len(kept_ids(records)) == 10
    with Run.open("a", {}) as run:
        report_yield(run, load(ROOT / "constitution.yaml"), records)
        rows = make_pairs(run, records, anchors=0.0, seed=0)
        counts, pairs = run.manifest["counts"], run.manifest["pairs"]
    assert {row["id"] for row in rows} == kept_ids(records)
    assert counts["kept"] == pairs["count"] == pairs["kinds"]["revision"] == total(records).count == 10
    assert counts["records"] == 21 and counts["reasons"] == {"boilerplate": 10, "cut_off": 1}
    said = capsys.readouterr().out
    assert "21 records, 10 kept" in said and "10 of 21" in table(records).splitlines()[0]
    assert "boilerplate" in said and REASONS["boilerplate"].says in said
