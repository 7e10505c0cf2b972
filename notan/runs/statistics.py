"""What several seeds say: mean, spread, and the paired difference to a baseline. Plain floats, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from notan.errors import NotanError

Interval = tuple[float, float, float]  # mean, low, high


def finite(x: Any) -> Any:
    """NaN and infinity inside dicts and lists as the strings "nan", "inf", "-inf", which `float` reads: JSON has neither."""
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    return [finite(v) for v in x] if isinstance(x, (list, tuple)) else x


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds (n - 1 in the denominator); NaN for one seed, which has none."""
    if len(values) < 2:
        return math.nan
    m = mean(values)
    return math.sqrt(math.fsum((v - m) ** 2 for v in values) / (len(values) - 1))


def paired(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean difference to the baseline over shared seeds, and its t-interval (n - 1 degrees of freedom).

    With one seed the interval is unknown: low and high are NaN. Raises `NotanError` when the seeds do not match.
    """
    if len(values) != len(baseline) or not len(values):
        raise NotanError(f"{len(values)} seeds against the baseline's {len(baseline)}", "the same seeds in every arm")
    difference = [a - b for a, b in zip(values, baseline)]
    if len(difference) == 1:
        return difference[0], math.nan, math.nan
    from scipy.stats import t

    half = float(t.ppf(0.5 + confidence / 2, len(difference) - 1)) * spread(difference) / math.sqrt(len(difference))
    return mean(difference), mean(difference) - half, mean(difference) + half


def leaders(rows: Sequence[dict[str, Any]], metric: str, across: bool = False) -> dict[str, str]:
    """The method with the largest mean of `metric` for each encoder; `across` encoders, of all, under ""."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = "" if across else row["encoder"]
        if row["kind"] != "method":
            continue
        if group not in best or mean(row["metrics"][metric]) > mean(best[group]["metrics"][metric]):
            best[group] = row
    return {group: row["arm"] for group, row in best.items()}


def verdict(study: dict[str, Any], across: bool = False) -> list[str]:
    """Who leads by each metric within each encoder, and by how much over the reference rows, in sentences.

    Refuses (`NotanError`) to rank rows that were not measured by the same metrics.
    """
    rows, metrics = study["rows"], list(study["rows"][0]["metrics"])
    for row in rows:
        if list(row["metrics"]) != metrics:
            raise NotanError(
                f"{row['arm']} was measured by {', '.join(row['metrics'])}",
                f"what {rows[0]['arm']} was measured by: {', '.join(metrics)}",
                "measure all of them again in one run",
            )
    several = len({r["encoder"] for r in rows if r["kind"] == "method"}) > 1
    return [
        f"{metric}{f' ({group})' if group and several else ''}: {_sentence(rows, arm, metric, across)}"
        for metric in metrics
        for group, arm in leaders(rows, metric, across).items()
    ]


def _sentence(rows: Sequence[dict[str, Any]], arm: str, metric: str, across: bool) -> str:
    row = next(r for r in rows if r["arm"] == arm)
    others = [
        r for r in rows if r["kind"] != "method" and (across or r["kind"] == "pixels" or r["encoder"] == row["encoder"])
    ]
    against = [_against(row["metrics"][metric], r["metrics"][metric]) + f" {r['arm']}" for r in others]
    return f"{arm} leads with {mean(row['metrics'][metric]):.3f}; " + ", ".join(against)


def beyond(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether every seed is above every seed of the other, by more than the two spreads together on average."""
    if len(values) < 2:
        return False
    return min(values) > max(others) and mean(values) - mean(others) > spread(values) + spread(others)


def _against(values: Sequence[float], others: Sequence[float]) -> str:
    m = mean(values) - mean(others)
    if len(values) < 2:
        return f"{m:+.3f} to"
    return f"{m:+.3f} ({'beyond' if beyond(values, others) or beyond(others, values) else 'within'} the spread) to"
