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
    """The method with the largest mean of `metric` in each `league`; `across` encoders, of all."""
    best: dict[str, dict[str, Any]] = {}
    for row in (r for r in rows if r["kind"] == "method"):
        group = league(row, across)
        if group not in best or mean(row["metrics"][metric]) > mean(best[group]["metrics"][metric]):
            best[group] = row
    return {group: row["arm"] for group, row in best.items()}


def league(row: dict[str, Any], across: bool = False) -> str:
    """Whom a method is ranked with: those of its encoder, or all; and those that learn from labels, or those that do not."""
    return ("" if across else row["encoder"]) + (" from labels" if row.get("labels") else "")


def verdict(study: dict[str, Any], across: bool = False) -> list[str]:
    """A sentence for each method: by which metrics it is above, level with and below the raw input and random weights.

    Above and below are beyond the spread over seeds. With several methods on an encoder (or `across` encoders) one more
    says which of them leads. Refuses (`NotanError`) to rank rows that were not measured by the same metrics.
    """
    rows, metrics = study["rows"], list(study["rows"][0]["metrics"])
    for row in rows:
        if list(row["metrics"]) != metrics:
            raise NotanError(
                f"{row['arm']} was measured by {', '.join(row['metrics'])}",
                f"what {rows[0]['arm']} was measured by: {', '.join(metrics)}",
                "measure all of them again in one run",
            )
    methods = [r for r in rows if r["kind"] == "method"]
    groups = {league(r, across) for r in methods}
    lines = [_standing(row, rows, metrics) for row in methods]
    if taught := [r["arm"] for r in methods if r.get("labels")]:
        lines.append(f"{' and '.join(taught)} learned from the labels of the training rows: not ranked with what did not.")
    for group in sorted(groups):
        rivals = [r for r in methods if league(r, across) == group]
        if len(rivals) > 1:
            where = "" if len(groups) == 1 else f" on {group}" if not across else group
            lead = {m: leaders(rivals, m, across) for m in metrics}
            lines.append(f"Best{where}: " + _by({m: next(iter(arm.values())) for m, arm in lead.items()}) + ".")
    return lines


def _standing(row: dict[str, Any], rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """`simclr: above raw pixels by k-NN, level by ridge; above random weights by all metrics.`"""
    parts = []
    for other in rows:
        if other["kind"] == "pixels" or (other["kind"] == "random" and other["encoder"] == row["encoder"]):
            name = other["arm"] if other["kind"] == "pixels" else "random weights"      # raw pixels, or a bag of words
            found = {m: _side(row["metrics"][m], other["metrics"][m]) for m in metrics}
            parts.append(_by({m: found[m] for m in sorted(metrics, key=lambda m: SIDES.index(found[m]))}, name))
    return f"{row['arm']}: {'; '.join(parts)}."


def _by(found: dict[str, str], name: str = "") -> str:
    """{metric: word} -> `above NAME by a and b, below by c`."""
    groups: dict[str, list[str]] = {}
    for metric, word in found.items():
        groups.setdefault(word, []).append(metric)
    said = []
    for i, (word, metrics) in enumerate(groups.items()):
        by = "all metrics" if len(groups) == 1 and len(metrics) > 1 else " and ".join(metrics)
        said.append(f"{word}{f' {name}' if name and not i else ''} by {by}")
    return ", ".join(said)


SIDES = ("above", "level with", "below")  # in the order they are told


def _side(values: Sequence[float], others: Sequence[float]) -> str:
    """Beyond the spread on one side or the other; with one seed, which has no spread, by the numbers alone."""
    one = len(values) < 2
    if values[0] > others[0] if one else beyond(values, others):
        return "above"
    return "below" if (values[0] < others[0] if one else beyond(others, values)) else "level with"


def beyond(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether every seed is above every seed of the other, by more than the two spreads together on average."""
    if len(values) < 2:
        return False
    return min(values) > max(others) and mean(values) - mean(others) > spread(values) + spread(others)
