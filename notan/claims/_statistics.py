"""What a claim's values say: means, and paired differences with a t-interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Values = dict[str, dict[int, dict[str, float]]]                     # arm -> seed -> metric -> value


class Interval(NamedTuple):
    """Mean of n paired differences and the interval that holds the true mean with probability `level`."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"


def t_interval(differences: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """Student's interval of the mean. One difference gives an infinite interval: it says nothing of the spread."""
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2:
        return Interval(float(d.mean()) if len(d) else math.nan, -math.inf, math.inf, len(d))
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half), len(d))


def column(values: Values, arm: str, metric: str) -> np.ndarray:
    """One metric of one arm, float64 (seeds,), in the order of the seeds."""
    return np.array([values[arm][seed][metric] for seed in sorted(values[arm])], dtype=np.float64)


def mean(values: Values, arm: str, metric: str) -> float:
    return float(column(values, arm, metric).mean())


def pooled(values: Values, metric: str, *arms: str) -> float:
    """Root mean square of the arms' standard deviations over seeds."""
    return float(np.sqrt(np.mean([column(values, arm, metric).var(ddof=1) for arm in arms])))


def paired(values: Values, arm: str, baseline: str, metric: str, level: float = 0.95) -> Interval:
    """Interval of `arm` minus `baseline`, seed by seed, over the seeds that both have."""
    seeds = sorted(set(values[arm]) & set(values[baseline]))
    return t_interval([values[arm][s][metric] - values[baseline][s][metric] for s in seeds], level)


def standard_error(values: Values, arm: str, baseline: str, metric: str) -> float:
    """Of the mean of `arm` minus `baseline` over their seeds, which are the same."""
    d = column(values, arm, metric) - column(values, baseline, metric)
    return float(d.std(ddof=1) / math.sqrt(len(d)))


def summary(values: Values) -> dict[str, dict[str, list[float]]]:
    """Arm to metric to [mean, standard deviation]; a metric that is not finite in every seed is left out."""
    table: dict[str, dict[str, list[float]]] = {}
    for arm, seeds in values.items():
        rows = list(seeds.values())
        metrics = [m for m in rows[0] if all(math.isfinite(row.get(m, math.nan)) for row in rows)]
        columns = {m: column(values, arm, m) for m in metrics}
        table[arm] = {m: [float(c.mean()), float(c.std(ddof=1)) if len(c) > 1 else 0.0] for m, c in columns.items()}
    return table
