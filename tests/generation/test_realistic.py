"""The rules against realistic texts: tests/realistic.py scores them and prints the table."""

import json

import pytest
import realistic
from cai.core.stats import wilson


@pytest.mark.parametrize("half", ["seen", "frozen"])
def test_fewer_than_three_in_a_hundred_realistic_texts_are_decided_wrongly(half):
    print("\n" + realistic.table(half))
    wrong, left_open, n = realistic.totals(half)["all texts"]
    assert n >= 100 and wrong < 0.03 * n, (wrong, n)
    verdicts, left_open, n = realistic.totals(half)["critique: verdict"]
    assert left_open <= 0.1 * n, "most verdicts are read, and only the rest asked again"


def test_the_texts_are_many_of_every_kind_and_split_by_their_content():
    rows = {
        h: realistic.DATA.joinpath(f"{h}.jsonl").read_text("utf-8").splitlines() for h in ("seen", "frozen")
    }
    both = [json.loads(line) for some in rows.values() for line in some]
    assert len({r["id"] for r in both}) == len(both) >= 240
    for kind in realistic.KINDS:
        assert sum(r["kind"] == kind for r in both) >= 30, kind
    for half, lines in rows.items():
        assert all(
            (int(realistic.hash_of(json.loads(x))[-1], 16) % 2 == 1) == (half == "seen") for x in lines
        )


@pytest.mark.parametrize("half", ["later", "last"])
def test_what_later_texts_taught_is_not_forgotten(half):
    wrong, _, n = realistic.totals(half)["all texts"]
    assert n >= 80 and wrong <= 3


def test_the_second_hands_texts_are_decided_no_worse_than_they_were():
    """5 of 95 wrong on `fresh_b`; what that supports is the upper end of its interval. Who mended the rules
    had written its texts, so others fare worse: `fresh_c` at first sight."""
    wrong, _, n = realistic.totals("fresh_b")["all texts"]
    assert n == 95 and wilson(wrong, n)[1] < 0.12, wrong
    for half, most in (("fresh_a", 5), ("fresh_c", 15)):
        assert realistic.totals(half)["all texts"][0] <= most


def test_no_answer_of_any_set_is_taken_for_a_refusal():
    """A missed refusal still meets the judge; an answer that is taken for one makes no pair."""
    for half in realistic.SETS:
        wrong, _, n = realistic.totals(half)["refusal: no refusal"]
        assert n >= 10 and not wrong, half


@pytest.mark.parametrize("half", realistic.TOTALS_ONLY)
def test_rows_of_the_frozen_half_are_never_printed(half, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["realistic.py", half, "--rows"])
    with pytest.raises(SystemExit):
        realistic.main()
    assert "only totals" in capsys.readouterr().err
