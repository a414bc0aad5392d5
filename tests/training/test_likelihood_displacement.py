"""What pairs tell of lengths and likelihood before training, and the watch during it."""

import math
import re

import pytest
from cai.training.likelihood_displacement import (
    DISPLACED,
    FEW,
    STOPPED_EARLY,
    Watch,
    displaced,
    pair_statistics,
)


class Words:
    """A tokenizer whose tokens are words."""

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [hash(w) for w in text.split()]}


def pair(chosen, rejected):
    return {"prompt": "q", "chosen": chosen, "rejected": rejected}


def test_tokens_are_counted_in_the_training_format_ends_included():
    rows = [pair("a b c", "a"), pair("a b c d e", "a b c")]
    found, fits = pair_statistics(Words(), rows, max_length=8)
    assert (found.prompt, found.chosen, found.rejected, found.ratio) == (3, 5, 3, 10 / 6)
    assert found.p95 == 9 and fits == [True, False] and found.over_length == 1
    assert any("1 of 2 pairs are longer than 8 tokens" in line for line in found.lines())
    assert any("learn to be longer" in line for line in found.lines())


@pytest.mark.parametrize(("chosen", "rejected", "similarity", "warned"), [
    ("a b c d", "a b c x", 0.75, True),
    ("a b c d", "w x y z", 0.0, False),
    ("a b c d", "a b y z", 0.5, False),
])  # fmt: skip
def test_pairs_of_nearly_the_same_text_are_said_to_lose_likelihood(chosen, rejected, similarity, warned):
    found, _ = pair_statistics(Words(), [pair(chosen, rejected)], 100)
    assert found.similarity == pytest.approx(similarity)
    assert any("dpo+nll" in line for line in found.lines()) == warned


def test_watch_warns_then_stops():
    watch = Watch(patience=0, stop_fall=0.5)
    assert watch.see(1, FEW, 0.6, 0.05) is None
    assert "!!!" in watch.see(2, FEW, 0.5, 0.2) and watch.stopped is None
    assert "training stops" in watch.see(3, FEW, 0.4, 0.51) and watch.stopped == DISPLACED


def test_watch_stops_early_and_knows_the_best_step():
    watch = Watch(patience=2)
    for step, loss in ((0, math.log(2)), (1, 0.5), (2, 0.6), (3, 0.4), (4, 0.4)):
        assert watch.see(step, FEW, loss, 0.0) is None
    assert "step 3 is kept" in watch.see(5, FEW, 0.9, 0.0)
    assert watch.stopped == STOPPED_EARLY and watch.best_step == 3


def test_too_few_pairs_stop_nothing_but_are_warned_about():
    watch = Watch(patience=1)
    watch.see(0, FEW - 1, 0.1, 0.0)
    assert "!!!" in watch.see(1, FEW - 1, 9.0, 9.0) and watch.stopped is None


def test_with_too_few_pairs_the_texts_that_are_trained_on_stop_it():
    watch = Watch(patience=1, stop_fall=0.5)
    assert watch.see_trained(1, 0.5) is None and watch.stopped is None
    assert "that are trained on have lost 0.51 nats" in watch.see_trained(2, 0.51)
    assert watch.stopped == DISPLACED


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"held_out": {"n": 1, "fall": 7.5}, "train": {"n": 9, "fall": 0.0}}, "held-out.* 7.50 .*n 1,"),
        ({"held_out": {"n": 1, "fall": 0.5}, "train": {"n": 9, "fall": 9.0}}, None),
        ({"train": {"n": 2, "fall": 0.6}}, "trained on have lost 0.60 .*n 2, limit 0.5"),
        ({"train": {"n": 2, "fall": -3.0}}, None),
    ],
)
def test_a_fall_counts_at_any_n(after, said):
    found = displaced(after, 0.5)
    assert found is None if said is None else re.search(said, found)
