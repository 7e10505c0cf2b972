"""The sections of report.html: each takes a study (see report.py) and gives HTML, or "" when it has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from notan.runs import figures
from notan.runs.figures import Line, colour
from notan.runs.statistics import leaders, mean, spread
from notan.runs.table import brief, count, difference, number, seconds, shares

Study = Mapping[str, Any]
TEXT = ' class="text"'


def results(study: Study) -> str:
    """The table: arms by metrics, with spread and paired difference, and what each cost."""
    rows = study.get("rows") or []
    if not rows:
        return ""
    metrics = list(dict.fromkeys(m for r in rows for m in r["metrics"]))
    across, baseline = study.get("across", False), study.get("baseline")
    measured = [r for r in rows if set(r["metrics"]) == set(metrics)]
    best = {m: set(leaders(measured, m, across).values()) if len(measured) > 1 else set() for m in metrics}
    heads = ["arm", *metrics, "seconds", "peak MB", "encoder", "parameters"]
    head = "".join(f'<th scope="col"{TEXT * (h == "encoder")}>{escape(h)}</th>' for h in heads)
    rows = [r for r in rows if r["kind"] == "method"] + [r for r in rows if r["kind"] != "method"]
    body, before = "", "method"
    for row in rows:
        kind = "method" if row["kind"] == "method" else "reference"
        dot = f'<i style="background:{_colour(study, row["arm"])}"></i>'
        cells = "".join(f"<td>{_cell(row, m, row['arm'] in best[m], baseline)}</td>" for m in metrics)
        cost = f"<td>{seconds(row.get('seconds'))}</td><td>{number(row.get('peak_mb'))}</td>"
        cost += f"<td{TEXT}>{escape(str(row.get('encoder') or '–'))}</td><td>{count(row.get('params'))}</td>"
        first = " first" if kind != before else ""
        body += f'<tr class="{kind}{first}"><th scope="row">{dot}{escape(row["arm"])}</th>{cells}{cost}</tr>'
        before = kind
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>{_key(study, metrics)}'


def differences(study: Study) -> str:
    """For each metric, every arm's difference to the baseline: mean, interval and seeds on one scale."""
    rows = [r for r in study.get("rows") or [] if r["arm"] != study.get("baseline") and r.get("paired")]
    base = next((r for r in study.get("rows") or [] if r["arm"] == study.get("baseline")), None)
    if not rows or base is None:
        return ""
    cards = "".join(_forest(study, rows, base, m) for m in base["metrics"] if all(m in r["paired"] for r in rows))
    words = (
        f"{_measure(study).capitalize()} minus that of <b>{escape(base['arm'])}</b> with the same seed. Rings are seeds, dots "
        "their means, bars 95 % intervals; a bar that crosses the line tells nothing apart, a pale one goes beyond the frame."
    )
    return f'<p class="soft">{words}</p><div class="grid" style="--least:270px">{cards}</div>'


def labels(study: Study) -> str:
    """Accuracy, or R2, of the ridge probe against the number of labels."""
    lines = []
    for arm, curve in (study.get("fractions") or {}).items():
        points = [
            (n, mean(v), mean(v) - _spread(v), mean(v) + _spread(v)) for n, v in sorted((float(n), v) for n, v in curve.items())
        ]
        lines.append(Line(arm, _colour(study, arm), points, dashed=_kind(study, arm) != "method"))
    chart = figures.line_chart(
        lines, x="labels", y=_measure(study), log_x=True, name=f"{_measure(study)} against the number of labels", height=300
    )
    if not chart:
        return ""
    return (
        f'<p class="soft">Ridge probe; bands are the spread over seeds. Dashed lines are references.</p>'
        f'<figure class="wide">{chart}{_legend(lines)}</figure>'
    )


def training(study: Study) -> str:
    """The loss of each arm, each on its own scale: losses of different methods cannot be compared."""
    cards = []
    for arm, curve in (study.get("curves") or {}).items():
        thin = list(curve)[:: max(1, len(curve) // 300)]
        points = [(float(step), float(loss), math.nan, math.nan) for step, loss in thin]
        chart = figures.line_chart(
            [Line(arm, _colour(study, arm), points)], x="step", y="loss", name=f"loss of {arm}", width=340, height=210
        )
        if chart and len(points) > 1:
            cards.append(f"<figure><h3>{escape(arm)}</h3>{chart}</figure>")
    if not cards:
        return ""
    words = "Losses of different methods cannot be compared; their shapes can."
    return f'<p class="soft">{words}</p><div class="grid">{"".join(cards)}</div>'


def protocol(study: Study) -> str:
    """Each metric's protocol in its own words, and what the time went into."""
    return _list([*(study.get("protocols") or []), *([shares(study["profile"])] if study.get("profile") else [])])


def configuration(study: Study) -> str:
    """The command, the versions and the YAML that make these numbers again."""
    out = f"<p><code>{escape(study['command'])}</code></p>" if study.get("command") else ""
    out += _list([f"{name} {version}" for name, version in (study.get("versions") or {}).items()])
    if study.get("config"):
        out += f"<details><summary>config.yaml</summary><pre>{escape(study['config'])}</pre></details>"
    return out


def _cell(row: Mapping[str, Any], metric: str, best: bool, baseline: str | None) -> str:
    values = row["metrics"].get(metric)
    if not values:
        return "–"
    out = f'<span class="best">{mean(values):.3f}</span>' if best else f"{mean(values):.3f}"
    if len(values) > 1:
        out += f" <small>± {spread(values):.3f}</small>"
    if row["arm"] == baseline:
        return out + "<span>baseline</span>"
    interval = (row.get("paired") or {}).get(metric)
    if interval is None:
        return out
    m, low, high = interval
    sign = "up" if low > 0 else "down" if high < 0 else ""
    return out + f'<span class="{sign}">{brief(m, low, high)}</span>'


def _key(study: Study, metrics: Sequence[str]) -> str:
    if not metrics:
        return ""
    n = max(len(v) for r in study["rows"] for v in r["metrics"].values())
    what = f"Accuracy: mean ± standard deviation over {n} seeds" if n > 1 else "Accuracy of one seed: no spread can be given"
    base = f"; below, the paired difference to {escape(str(study['baseline']))}" if study.get("baseline") else ""
    interval = " with its 95 % t-interval, coloured when it excludes zero" if base and n > 1 else ""
    group = "of all" if study.get("across") else "of each encoder"
    best = f" Underlined: the best method {group}." if len(study["rows"]) > 1 else ""
    return f'<p class="soft">{what}{base}{interval}.{best}</p>'


def _forest(study: Study, rows: Sequence[Mapping[str, Any]], base: Mapping[str, Any], metric: str) -> str:
    per_seed = {r["arm"]: [a - b for a, b in zip(r["metrics"][metric], base["metrics"][metric])] for r in rows}
    span = max((abs(d) for ds in per_seed.values() for d in ds), default=0) or 1e-3
    low = min([0.0, *(d for ds in per_seed.values() for d in ds)]) - 0.35 * span
    high = max([0.0, *(d for ds in per_seed.values() for d in ds)]) + 0.35 * span
    place = lambda v: f"{100 * (min(max(v, low), high) - low) / (high - low):.1f}%"  # noqa: E731
    out = ""
    for row in rows:
        m, a, b = row["paired"][metric]
        words = escape(f"{row['arm']}: {difference((m, a, b))}", quote=True)
        bar = ""
        if math.isfinite(a):
            cut = " class='more'" if a < low or b > high else ""
            bar = f"<i{cut} style='left:{place(a)};right:calc(100% - {place(b)})'></i>"
        rings = "".join(f"<u style='left:{place(d)}'></u>" for d in per_seed[row["arm"]])
        style = f"--c:{_colour(study, row['arm'])};--zero:{place(0)}"
        out += f'<span title="{words}">{escape(row["arm"])}</span>'
        out += f'<div title="{words}" style="{style}">{bar}{rings}<b style="left:{place(m)}"></b></div>'
    scale = f"<p><span>{low:+.3f}</span><span>{high:+.3f}</span></p>"
    return f'<figure><h3>{escape(metric)}</h3><div class="forest">{out}{scale}</div></figure>'


def _legend(lines: Sequence[Line]) -> str:
    items = ""
    for line in lines:
        ring = ' class="ring"' if line.dashed else ""
        dot = f'<i{ring} style="background:{line.colour};border-color:{line.colour}"></i>'
        items += f'<li data-series="{escape(line.label)}">{dot}{escape(line.label)}</li>'
    return f'<ul class="legend">{items}</ul>'


def _colour(study: Study, arm: str) -> str:
    arms = list(dict.fromkeys([r["arm"] for r in study.get("rows") or []] + list(study.get("curves") or {})))
    arms.sort(key=lambda a: _kind(study, a) != "method")  # methods take the strongest colours
    return colour(arms.index(arm)) if arm in arms else "var(--c7)"


def _kind(study: Study, arm: str) -> str:
    return next((r["kind"] for r in study.get("rows") or [] if r["arm"] == arm), "method")


def _measure(study: Study) -> str:
    """What the probes of labels are scored by: accuracy, or R²."""
    return study.get("measure", "accuracy")


def _spread(values: Sequence[float]) -> float:
    return spread(values) if len(values) > 1 else 0.0


def _list(items: Sequence[str]) -> str:
    return '<ul class="plain">' + "".join(f"<li>{escape(str(i))}</li>" for i in items) + "</ul>" if items else ""
