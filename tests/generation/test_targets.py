"""How many examples a run makes."""

import random

import pytest
from cai.core.schema import content_id, is_held_out
from cai.generation.targets import EXAMPLES_A_PAIR, Side, Target, until_enough


def instructions(most=10_000):
    rows = [{"id": content_id(f"What is {i}?")} for i in range(most)]
    return lambda n: rows[:n]


class Align:
    """Records of which a share is kept, by the id alone. asked: how many each round asked for."""

    def __init__(self, share, monkeypatch):
        self.share, self.asked = share, []
        monkeypatch.setattr(
            "cai.generation.targets.kept_ids", lambda records: {r["id"] for r in records if r["kept"]}
        )

    def __call__(self, rows):
        self.asked.append(len(rows))
        return [{"id": r["id"], "kept": random.Random(r["id"]).random() < self.share} for r in rows]


def kept(records, held_out, share):
    return sum(r["kept"] for r in records if is_held_out(r["id"], share) is held_out)


def test_a_number_of_examples_is_made_at_once(monkeypatch):
    align = Align(0.3, monkeypatch)
    rows, records = until_enough(Target(Side.of(None, 24)), instructions(), align)
    assert len(rows) == len(records) == 24 and align.asked == [24]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_it_goes_on_until_there_are_enough_pairs_to_train_on(share, monkeypatch):
    align = Align(share, monkeypatch)
    rows, records = until_enough(Target(Side.of(10, None), share=0.1), instructions(), align)
    assert 10 <= kept(records, False, 0.1) < 20 and len(rows) == len(records)
    assert len(align.asked) <= 8 and align.asked == sorted(align.asked)


def test_it_stops_at_the_limit_and_where_there_are_no_more_instructions(monkeypatch):
    none = Align(0.0, monkeypatch)
    _, records = until_enough(Target(Side.of(10, None)), instructions(), none)
    assert len(records) == 10 * EXAMPLES_A_PAIR
    _, records = until_enough(Target(Side.of(10, 33)), instructions(), none)
    assert len(records) == 33
    rows, records = until_enough(Target(Side.of(10, None)), instructions(47), none)
    assert len(rows) == len(records) == 47


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_held_out_examples_are_made_beside_those_to_train_on(share, monkeypatch):
    """A hundred to train on, whatever the yield; the others until there are twenty pairs of them."""
    align = Align(share, monkeypatch)
    target = Target(Side.of(None, 100), Side(20, 400), 0.4)
    rows, records = until_enough(target, instructions(), align)
    sides = [is_held_out(r["id"], 0.4) for r in records]
    assert sides.count(False) == 100 and 20 <= kept(records, True, 0.4) < 35
    mine = [r["id"] for r in rows if is_held_out(r["id"], 0.4)]
    assert [r["id"] for r in records if is_held_out(r["id"], 0.4)] == mine[: sides.count(True)]


def test_too_few_held_out_pairs_end_at_their_own_limit(monkeypatch):
    target = Target(Side.of(None, 12), Side(20, 48), 0.4)
    _, records = until_enough(target, instructions(), Align(0.0, monkeypatch))
    sides = [is_held_out(r["id"], 0.4) for r in records]
    assert (sides.count(False), sides.count(True)) == (12, 48)


def test_a_shard_makes_its_part_and_ends(monkeypatch):
    align = Align(0.3, monkeypatch)
    rows, records = until_enough(Target(Side.of(None, 40)), instructions(), lambda some: align(some)[::2])
    assert (len(rows), len(records), align.asked) == (40, 20, [40])


def test_what_a_forecast_expects():
    assert Target(Side.of(10, None)).expected(0.25) == 40
    assert Target(Side.of(None, 100), Side(20, 400), 0.4).expected(0.25) == 180
    assert Target(Side.of(10, 30)).expected(0.25) == 30
