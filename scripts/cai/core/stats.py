"""95 % intervals for what an evaluation measures. A rate's own interval is gates.wilson."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Z = 1.959964  # the normal distribution's 97.5 % point
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


def share(scores: Sequence[float]) -> Metric:
    """The mean of scores in 0..1 (a tie may count 0.5), with Wilson's score interval. Scores between 0 and 1
    vary less than hits and misses do, so with ties the interval is wider than it need be."""
    n = len(scores)
    if not n:
        return NOTHING
    p = sum(scores) / n
    return Metric(p, n, _wilson(p, n))


def mean(values: Sequence[float], transform: Callable[[float], float] = lambda x: x) -> Metric:
    """The mean, by Student's t. transform: applied to the mean and to both ends (math.exp for log-ratios)."""
    n = len(values)
    if not n:
        return NOTHING
    import numpy
    from scipy import stats

    middle = float(numpy.mean(values))
    if n < 2:
        return Metric(transform(middle), n, None)
    half = float(stats.t.ppf(0.975, n - 1) * numpy.std(values, ddof=1) / math.sqrt(n))
    return Metric(transform(middle), n, (transform(middle - half), transform(middle + half)))


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> Metric:
    """How much a rate rose between two measurements of the same cases: Newcombe's square-and-add interval of
    Wilson limits with the pairs' correlation (Newcombe 1998, Statistics in Medicine 17:2635, method 10)."""
    n = len(before)
    assert n == len(after), f"{n} cases before, {len(after)} after"
    if not n:
        return NOTHING
    a = sum(x and y for x, y in zip(before, after, strict=True))
    b = sum(y and not x for x, y in zip(before, after, strict=True))  # gained
    c = sum(x and not y for x, y in zip(before, after, strict=True))  # lost
    d = n - a - b - c
    p1, p2 = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = _wilson(p1, n), _wilson(p2, n)
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

    rho = float(stats.spearmanr(x, y).statistic)
    z, half = math.atanh(max(min(rho, 0.999999), -0.999999)), Z / math.sqrt(n - 3)
    return Metric(rho, n, (math.tanh(z - half), math.tanh(z + half)))


def at_equal_length(scores: Sequence[float], difference: Sequence[float]) -> Metric:
    """The score that a logistic regression on the difference in length expects where there is none (the idea
    of length-controlled AlpacaEval, Dubois et al. 2024, arXiv:2404.04475); interval by resampling. A weak
    prior (one tie at no difference, a slope of about 0) keeps it finite where every score is the same; there
    resampling cannot tell an interval."""
    n = len(scores)
    if n < 8:
        return Metric(None, n, None)
    import numpy

    y, x = numpy.asarray(scores, float), numpy.asarray(difference, float)

    def intercept(rows) -> float:
        w = numpy.zeros(2)
        design = numpy.column_stack([numpy.ones(len(rows)), x[rows]])
        for _ in range(25):
            p = 1 / (1 + numpy.exp(-design @ w))
            tie = 0.5 - 1 / (1 + numpy.exp(-w[0]))
            gradient = design.T @ (y[rows] - p) + numpy.array([tie, -w[1]])
            curvature = (design.T * (p * (1 - p))) @ design + numpy.diag([0.25, 1.0])
            w = w + numpy.linalg.solve(curvature, gradient)
        return float(1 / (1 + numpy.exp(-w[0])))

    if len(set(scores)) == 1:
        return Metric(intercept(numpy.arange(n)), n, None)
    rng = numpy.random.default_rng(0)
    drawn = [intercept(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    low, high = numpy.percentile(drawn, (2.5, 97.5))
    return Metric(intercept(numpy.arange(n)), n, (float(low), float(high)))


def _wilson(p: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share p of n, which need not be a whole number of successes."""
    centre, spread = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + Z * Z / n)), min(1.0, (centre + spread) / (1 + Z * Z / n))


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate; (0, 1) when nothing was counted."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
