"""Intervals against published values, against the closed formulas, and in what they promise."""

import math
import random

import pytest
from cai.core.stats import (
    NOTHING,
    Metric,
    at_equal_length,
    average_of_groups,
    correlation,
    mean,
    paired_difference,
    share,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(7, 10, 0.397, 0.892), (0, 10, 0.0, 0.278), (100, 100, 0.963, 1.0)]
)
def test_wilson_interval_against_published_values(successes, n, low, high):
    assert wilson(successes, n) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def table(both: int, gained: int, lost: int, neither: int) -> Metric:
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    return paired_difference(before, [True] * (both + gained) + [False] * (lost + neither))


RANKED = [1, 2, 3, 4, 5, 6, 7, 8, 8, 10], [2, 1, 4, 3, 7, 5, 8, 8, 6, 9]
WON, LONGER = [1, 0, 0.5, 1, 0, 1, 0.5, 0, 1], [0.8, -0.3, 0.1, 1.2, -0.9, 0.0, 0.4, -0.2, 0.6]
SPREAD = [0.2, -1.3, 2.4, 0.7, 0.1]


# By the formulas written out: Wilson, Student, Newcombe's method 10, Fisher's z, Newton's steps.
@pytest.mark.parametrize(
    ("found", "value", "low", "high"),
    [
        (share([0]), 0.0, 0.0, 0.7934506856227626),
        (share([1, 1]), 1.0, 0.3423802275066532, 1.0),
        (share([0.5] * 5 + [1, 0, 0, 0]), 3.5 / 9, 0.1534305575085796, 0.6908238976957636),
        (share([1] * 997 + [0] * 3), 0.997, 0.9912169859464968, 0.9989792161188613),
        (mean([1.5, 1.5]), 1.5, 1.5, 1.5),
        (mean([0, 1]), 0.5, -5.853102368087347, 6.853102368087347),
        (mean(SPREAD), 0.42, -1.2351898059865005, 2.0751898059865006),
        (mean(SPREAD, math.exp), math.exp(0.42), 0.2907795654273923, 7.966058321108156),
        (table(0, 0, 0, 1), 0.0, -0.7934506856227626, 0.7934506856227626),
        (table(2, 0, 0, 0), 0.0, -0.6576197724933468, 0.6576197724933468),
        (table(0, 10, 0, 0), 1.0, 0.6075093504305243, 1.0),
        (table(5, 3, 1, 7), 0.125, -0.1292985511340221, 0.35339112535141304),
        (table(20, 12, 2, 6), 0.25, 0.07072096604645525, 0.4086199769230495),
        (average_of_groups([[1] * 3, [0, 1], []]), 0.75, 0.3361581955755561, 1.0),
        (average_of_groups([[0.5, -1]], (-1, 1)), -0.25, -1.0, 0.9871666213046304),
        (correlation([1, 2, 3, 4], [2, 1, 4, 3]), 0.6, -0.8529325646947181, 0.9901277107996944),
        (correlation(*RANKED), 0.8932926829268295, 0.6025841582254463, 0.9747052242294268),
        (at_equal_length(WON, LONGER), 0.5083420800083992, 0.32412725037027845, 0.7730336102297253),
    ],
)
def test_reference_values(found, value, low, high):
    assert (found.value, *found.interval) == pytest.approx((value, low, high), abs=1e-9)


def test_nothing_counted_or_too_little_for_an_interval():
    assert wilson(0, 0) == (0, 1)
    assert share([]) == mean([]) == table(0, 0, 0, 0) == average_of_groups([[], []]) == NOTHING
    assert mean([2.0]) == Metric(2.0, 1, None)
    assert correlation([1, 2, 3], [1, 2, 3]) == Metric(None, 3, None)
    assert at_equal_length(WON[:7], LONGER[:7]) == Metric(None, 7, None)


def test_a_share_is_wilsons_and_a_tie_counts_half():
    assert share([True] * 7 + [False] * 3).interval == wilson(7, 10)
    assert share([1, 0.5, 0, 0.5]).value == 0.5
    assert share([]).row() == {"value": None, "n": 0, "interval": None}


def test_a_mean_by_students_t_needs_two_values():
    m = mean([1.0, 2.0, 3.0])
    assert m.value == 2 and m.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert mean([1.0]).interval is None
    assert mean([0.0, 0.0], math.exp).value == 1


def test_a_paired_difference_covers_what_it_should():
    """95 % of the intervals hold the true difference, and a real correlation makes them narrower."""
    rng, hits, n = random.Random(1), 0, 40
    for _ in range(400):
        before = [rng.random() < 0.5 for _ in range(n)]
        after = [rng.random() < (0.8 if b else 0.5) for b in before]  # 0.65 - 0.50
        low, high = paired_difference(before, after).interval
        hits += low <= 0.15 <= high
    assert 0.92 <= hits / 400 <= 0.985
    together = paired_difference([True] * 20 + [False] * 20, [True] * 20 + [False] * 20).interval
    apart = paired_difference([True] * 20 + [False] * 20, [False] * 20 + [True] * 20).interval
    assert together[1] - together[0] < apart[1] - apart[0]
    assert paired_difference([False] * 10, [True] * 10).value == 1


def test_an_average_of_groups_weighs_groups_alike_and_is_never_certain():
    m = average_of_groups([[1] * 30, [0] * 10])
    assert m.value == 0.5 and m.n == 40 and m.interval[0] < 0.5 < m.interval[1]
    sure = average_of_groups([[1, 1, 1], [1, 1]])
    assert sure.value == 1 and sure.interval[0] < 0.95 and sure.interval[1] == 1
    assert average_of_groups([[0, 0, 0]], (-1, 1)).interval[0] < 0


def test_length_is_taken_out_of_a_win_rate():
    """The longer answer always wins, and the trained model's is the longer one in three of four cases."""
    longer = [0.8] * 30 + [-0.8] * 10
    scores = [float(d > 0) for d in longer]
    assert correlation(longer, scores).value == pytest.approx(1)
    assert share(scores).value == 0.75
    assert abs(at_equal_length(scores, longer).value - 0.5) < 0.15
    same = at_equal_length([1.0] * 40, longer)
    assert same.value > 0.9 and same.interval is None
    assert correlation([0.1] * 9, [1] * 9).value is None
