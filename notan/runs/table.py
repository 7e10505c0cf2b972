"""The table of a comparison on the terminal."""

from __future__ import annotations

import math
from typing import Any

from notan.runs.statistics import leaders, mean, spread


def render_table(study: dict[str, Any]) -> Any:
    """A `rich.table.Table`: arms by metrics (mean ± spread over seeds), paired difference to the baseline, cost.

    The best method of each encoder is bold, per metric. Encoder and parameters get columns when arms differ in them.
    """
    from rich.markup import escape
    from rich.table import Table

    rows, metrics = study["rows"], list(study["rows"][0]["metrics"])
    encoders = {r["encoder"] for r in rows if r["kind"] != "pixels"}
    head, baseline = metrics[0], study.get("baseline", "")
    table = Table(
        title=escape(study["title"]),
        title_justify="left",
        caption_justify="left",
        caption=escape(_caption(study, encoders)),
    )
    table.add_column("arm", no_wrap=True)
    for metric in metrics:
        table.add_column(escape(metric), justify="right")
    table.add_column(escape(f"difference to {baseline}" if baseline else "difference"), justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("peak MB", justify="right")
    if len(encoders) > 1:
        table.add_column("encoder", overflow="fold")
        table.add_column("parameters", justify="right")
    best = {m: set(leaders(rows, m, study.get("across", False)).values()) for m in metrics}
    for row in rows:
        cells = [_bold(cell(row["metrics"][m]), row["arm"] in best[m]) for m in metrics]
        more = [escape(row["encoder"]), count(row["params"])] if len(encoders) > 1 else []
        table.add_row(
            escape(row["arm"]),
            *cells,
            difference(None if row["arm"] == baseline else row.get("paired", {}).get(head)),
            seconds(row["seconds"]),
            number(row["peak_mb"]),
            *more,
            style="dim" if row["kind"] != "method" else "",
        )
    return table


def cell(values: list[float]) -> str:
    """`0.812 ± 0.004`, or the mean alone for one seed."""
    short = f"{mean(values):.3f}"
    return short if len(values) < 2 else f"{short} ± {spread(values):.3f}"


def difference(interval: tuple[float, float, float] | None) -> str:
    """`+0.012 (-0.003 to +0.027)`; a dash for the baseline itself."""
    if interval is None:
        return "–"
    m, low, high = interval
    return f"{m:+.3f}" if math.isnan(low) else f"{m:+.3f} ({low:+.3f} to {high:+.3f})"


def count(n: float | None) -> str:
    """A number of parameters: 0.80 M, 12 k."""
    if not n:
        return "–"
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.0f} k" if n >= 1e3 else f"{n:.0f}"


def seconds(s: float | None) -> str:
    return "–" if not s else f"{s:.0f}" if s >= 10 else f"{s:.1f}"


def number(x: float | None) -> str:
    return "–" if not x else f"{x:,.0f}"


def _bold(text: str, yes: bool) -> str:
    return f"[bold]{text}[/]" if yes else text


def _caption(study: dict[str, Any], encoders: set[str]) -> str:
    seeds = len(study["rows"][0]["metrics"][next(iter(study["rows"][0]["metrics"]))])
    parts = [
        f"Mean ± spread over {seeds} seeds; intervals are 95 % t-intervals of paired differences."
        if seeds > 1
        else "One seed: no spread and no interval; use --seeds."
    ]
    if len(encoders) == 1:
        parts.append(
            f"Encoder: {next(iter(encoders))}, {count(max(r['params'] or 0 for r in study['rows']))} parameters."
        )
    elif encoders:
        parts.append("Bold is the best method " + ("of all." if study.get("across") else "of each encoder."))
    return " ".join(parts)
