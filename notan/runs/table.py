"""The table of a comparison on the terminal."""

from __future__ import annotations

import math
from typing import Any

from notan.runs.statistics import leaders, mean, spread


def render_table(study: dict[str, Any]) -> Any:
    """A `rich.table.Table`, readable in 80 columns: arms by metrics, difference to the baseline, cost.

    Under a mean its spread over seeds, under a difference its interval, under an arm its encoder when arms differ in
    it. The best method of each encoder is bold, per metric; references are dim.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    rows, metrics = study["rows"], list(study["rows"][0]["metrics"])
    encoders = {r["encoder"] for r in rows if r["kind"] != "pixels"}
    baseline = study.get("baseline", "")
    table = Table(title=escape(study["title"]), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
                  caption=escape(_caption(study, encoders)), caption_justify="left")  # fmt: skip
    table.add_column("", min_width=16)
    for metric in metrics:
        table.add_column(escape(metric), justify="right", width=6)
    table.add_column(escape(f"{metrics[0]}, minus {baseline}" if baseline else ""), justify="right", width=14)
    table.add_column("s", justify="right", width=4)
    table.add_column("MB", justify="right", width=6)
    best = {m: set(leaders(rows, m, study.get("across", False)).values()) for m in metrics}
    for row in rows:
        cells = [_cell(row["metrics"][m], row["arm"] in best[m]) for m in metrics]
        difference = None if row["arm"] == baseline else row.get("paired", {}).get(metrics[0])
        arm = escape(row["arm"])
        if len(encoders) > 1:
            size = f", {count(row['params']).replace(' ', '')}" if row["params"] else ""
            arm += f"\n[dim]{escape(row['encoder'])}{size}[/]"
        table.add_row(arm, *cells, _difference(difference), seconds(row["seconds"]), number(row["peak_mb"]),
                      style="" if row["kind"] == "method" else "dim")  # fmt: skip
    return table


def difference(interval: tuple[float, float, float] | None) -> str:
    """`+0.012 (-0.003 to +0.027)`; a dash for the baseline itself."""
    if interval is None:
        return "–"
    m, low, high = interval
    return f"{m:+.3f}" if math.isnan(low) else f"{m:+.3f} ({low:+.3f} to {high:+.3f})"


def shares(profile: dict[str, float]) -> str:
    """Seconds by what they went into, as `Time: training steps 73.0%; embedding rows 13.1%; ...`"""
    whole = sum(profile.values()) or 1.0
    return "Time: " + "; ".join(f"{name} {s / whole:.1%}" for name, s in profile.items()) + "."


def count(n: float | None) -> str:
    """A number of parameters: 0.80 M, 12 k."""
    if not n:
        return "–"
    return f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.0f} k" if n >= 1e3 else f"{n:.0f}"


def seconds(s: float | None) -> str:
    return "–" if not s else f"{s:.0f}" if s >= 10 else f"{s:.1f}"


def number(x: float | None) -> str:
    return "–" if not x else f"{x:,.0f}"


def brief(m: float, low: float, high: float) -> str:
    """`+.011 [−.002, +.024]`; the mean alone when there is no interval."""
    text = f"{m:+.3f}" + ("" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")
    return text.replace("+0.", "+.").replace("-0.", "−.").replace("-", "−")


def _cell(values: list[float], best: bool) -> str:
    value = f"[bold]{mean(values):.3f}[/]" if best else f"{mean(values):.3f}"
    return value if len(values) < 2 else f"{value}\n[dim]±{spread(values):.3f}[/]".replace("±0.", "±.")


def _difference(interval: tuple[float, float, float] | None) -> str:
    from rich.markup import escape

    if interval is None:
        return "–"
    m, _, bounds = brief(*interval).partition(" ")
    return f"{m}\n[dim]{escape(bounds)}[/]" if bounds else m


def _caption(study: dict[str, Any], encoders: set[str]) -> str:
    seeds = len(next(iter(study["rows"][0]["metrics"].values())))
    lines = ["One seed: no spread and no interval; use --seeds."]
    if seeds > 1:
        lines = [f"Mean and ± spread over {seeds} seeds; differences are paired, [95 % t-interval]."]
    if len(encoders) == 1:
        most = max(r["params"] or 0 for r in study["rows"])
        lines.append(f"Encoder: {next(iter(encoders))}, {count(most)} parameters.")
    lines.append("Bold is the best method" + (" of each encoder." if len(encoders) > 1 and not study.get("across") else "."))
    return "\n".join(lines)
