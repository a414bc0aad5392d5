"""95 % intervals for what an evaluation measures, by statsmodels and scipy where these have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 300


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation. n: how many cases it rests on. interval: 95 %; None where they are too few
    for one. value: None where there is no case at all."""

    value: float | None
    n: int
    interval: tuple[float, float] | None

    def row(self) -> dict:
        ends = None if self.interval is None else [round(x, 4) for x in self.interval]
        return {
            "value": None if self.value is None else round(self.value, 4),
            "n": self.n,
            "interval": ends,
        }


NOTHING = Metric(None, 0, None)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a rate; (0, 1) when nothing was counted. A tie may be half a success."""
    if n == 0:
        return 0.0, 1.0
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, method="wilson")
    return float(low), float(high)


def share(scores: Sequence[float]) -> Metric:
    """The mean of scores in 0..1 (a tie may count 0.5), with Wilson's score interval. Scores between 0 and 1
    vary less than hits and misses do, so with ties the interval is wider than it need be."""
    n = len(scores)
    if not n:
        return NOTHING
    return Metric(sum(scores) / n, n, wilson(sum(scores), n))


def mean(values: Sequence[float], transform: Callable[[float], float] = lambda x: x) -> Metric:
    """The mean, by Student's t. transform: applied to the mean and to both ends (math.exp for log-ratios)."""
    n = len(values)
    if not n:
        return NOTHING
    from statsmodels.stats.weightstats import DescrStatsW

    found = DescrStatsW(values)
    ends = found.tconfint_mean() if n > 1 else ()
    return Metric(transform(float(found.mean)), n, tuple(transform(float(x)) for x in ends) or None)


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Metric:
    """How much a rate rose between two measurements of the same cases: Newcombe's square-and-add interval of
    Wilson limits with the pairs' correlation (Newcombe 1998, Statistics in Medicine 17:2635, method 10).
    Neither statsmodels nor scipy has it."""
    n = len(before)
    assert n == len(after), f"{n} cases before, {len(after)} after"
    if not n:
        return NOTHING
    a = sum(x and y for x, y in zip(before, after, strict=True))
    b = sum(y and not x for x, y in zip(before, after, strict=True))  # gained
    c = sum(x and not y for x, y in zip(before, after, strict=True))  # lost
    d = n - a - b - c
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    sizes = (a + b) * (c + d) * (a + c) * (b + d)
    cross = a * d - b * c
    cross = max(cross - n / 2, 0) if cross > 0 else cross  # continuity
    phi = cross / math.sqrt(sizes) if sizes else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    difference = p1 - p2
    return Metric(difference, n, (difference - math.sqrt(max(down, 0)), difference + math.sqrt(max(up, 0))))


def average_of_groups(
    groups: Sequence[Sequence[float]], extremes: tuple[float, float] = (0.0, 1.0)
) -> Metric:
    """The mean of the groups' means, each group weighing the same. extremes: the least and the most that a
    score can be; one of each joins a group for its variance (not for its mean), as Agresti and Coull do with
    rates, so that a group without any variation does not pass for certain."""
    groups = [g for g in groups if len(g)]
    if not groups:
        return NOTHING
    low, high = extremes
    middle, variance = sum(sum(g) / len(g) for g in groups) / len(groups), 0.0
    for g in groups:
        seen = [*g, low, high]
        centre = sum(seen) / len(seen)
        variance += sum((x - centre) ** 2 for x in seen) / len(seen) / len(g)
    half = Z * math.sqrt(variance) / len(groups)
    return Metric(middle, sum(map(len, groups)), (max(low, middle - half), min(high, middle + half)))


def correlation(x: Sequence[float], y: Sequence[float]) -> Metric:
    """Spearman's rank correlation, its interval by Fisher's z; no value where one side does not vary."""
    n = len(x)
    if n < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return Metric(None, n, None)
    from scipy import stats

    found = stats.pearsonr(stats.rankdata(x), stats.rankdata(y))
    low, high = found.confidence_interval()
    return Metric(float(found.statistic), n, (float(low), float(high)))


def at_equal_length(scores: Sequence[float], difference: Sequence[float]) -> Metric:
    """The score that a logistic regression on the difference in length expects where there is none (the idea
    of length-controlled AlpacaEval, Dubois et al. 2024, arXiv:2404.04475); interval by resampling. A weak
    prior (one tie at no difference, a slope of about 0) keeps it finite where every score is the same; there
    resampling cannot tell an interval."""
    n = len(scores)
    if n < 8:
        return Metric(None, n, None)
    import numpy
    from scipy import optimize, special, stats

    def at_no_difference(y, x) -> float:
        design, won = numpy.column_stack([numpy.ones(len(x) + 1), numpy.append(x, 0)]), numpy.append(y, 0.5)
        gradient = lambda w: design.T @ (special.expit(design @ w) - won) + (0, w[1])  # noqa: E731
        return float(special.expit(optimize.root(gradient, (0, 0)).x[0]))

    value = at_no_difference(scores, difference)
    if len(set(scores)) == 1:
        return Metric(value, n, None)
    low, high = stats.bootstrap(
        (scores, difference),
        at_no_difference,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Metric(value, n, (float(low), float(high)))
