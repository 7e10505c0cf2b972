"""`report.html`: a study as one self-contained page. Nothing is loaded, now or later: a policy in the page forbids it.

A study is a plain dict. Only `title` must be there; what is missing or empty has no section.

    title       str
    data        {fact: value}; "classes" (names by class number) also names the points of the maps
    verdict     [sentence]: who leads, and whether it beats the references
    notes       [sentence]: warnings and health alarms, shown at the top
    protocols   [sentence]: how each metric was measured
    baseline    the arm that differences are taken to; across: bool, ranked across encoders
    rows        [{"arm", "kind": "method" | anything else for a reference, "encoder", "params", "seconds", "peak_mb",
                  "metrics": {name: [per seed]}, "paired": {name: (mean, low, high)}}]; the first metric leads
    curves      {arm: [(step, loss), ...]}
    fractions   {arm: {number of labels: [per seed]}}
    maps        {arm: {"xy": (N, 2), "label": int (N,)}}; "thumbs": pictures of these rows,
                optional, shown on hover (in the first map, or in the study: the rows are the same in all maps)
    neighbours  {arm: {"query": (Q, C, H, W), "hits": (Q, K, C, H, W), "right": bool (Q, K),
                  "query_label": (Q,), "hit_label": (Q, K), both optional}}
    pictures    {arm: {name: (B, C, H, W)}}: views, masks, reconstructions, hardness
    profile     {part of the work: seconds}
    config      text (YAML); versions: {name: version}; command: the command line; seconds: float

Pictures are uint8 or float in [0, 1], tensors or arrays, of one or three channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from notan.data import keys
from notan.errors import NotanError
from notan.runs import gallery, sections
from notan.runs.captions import told
from notan.runs.page import document, write_page

SECTIONS = (
    ("results", "Results", sections.results),
    ("differences", "Differences", sections.differences),
    ("labels", "With fewer labels", sections.labels),
    ("training", "Training", sections.training),
    ("maps", "Maps of the embeddings", gallery.maps),
    ("neighbours", "Nearest neighbours", gallery.neighbours),
    ("pictures", "What each method saw", gallery.pictures),
    ("protocol", "How it was measured", sections.protocol),
    ("config", "Configuration", sections.configuration),
)


def write_report(path: str | Path, study: Mapping[str, Any]) -> Path:
    """Write `study` (its keys: see the top of this file) as one HTML page to `path`, all or nothing; returns the path.

    Raises `NotanError` when the study has no title or the file cannot be written.
    """
    if "title" not in study:
        raise NotanError("the study has no title", "a dict with at least 'title'", "see notan/runs/report.py")
    path = Path(path)
    found = [(anchor, title, html) for anchor, title, draw in SECTIONS if (html := draw(study))]
    body = "".join(f'<section id="{a}"><h2>{escape(title)}</h2>{html}</section>\n' for a, title, html in found)
    links = "".join(f'<a href="#{a}">{escape(title)}</a>' for a, title, _ in found)
    page = document(str(study["title"]), _header(study) + f"<nav>{links}</nav>", body + gallery.tip(study), _footer(study))
    write_page(path, page)
    return path


def run_study(run: Any, pictures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A single run (`runs.folder.Run`) as a study: its curve, probes, alarms, config, and what it shows."""
    records, name = run.metrics(), run.config["method"]
    probes = {k: [r[k] for r in records if k in r][-1:] for k in ("probe_accuracy", "probe_r2")}
    row = {
        "arm": name,
        "kind": "method",
        "encoder": "; ".join(_tower(spec) for spec in run.config["towers"].values()),
        "params": sum(run.facts.get("parameters", {}).get(name, 0) for name in run.config["towers"]),
        "seconds": run.summary.get("seconds_in_all"),
        "peak_mb": run.summary.get("peak_mb"),
        "metrics": {k.replace("_", " "): v for k, v in probes.items() if v},
    }
    return {
        "title": f"{name} on {run.info.name}",
        "data": {"name": run.info.name, "training rows": run.info.rows, "classes": list(run.info.classes)},
        "notes": [*told(run.facts), *dict.fromkeys(r["message"] for r in records if "alarm" in r)],
        "rows": [row],
        "curves": {name: [(r["step"], r["loss"]) for r in records if "loss" in r]},
        "pictures": {name: dict(pictures or {})},
        "config": (run.path / "config.yaml").read_text(),
    }


def write_single(run: Any) -> Path:
    """report.html of a finished run, in its folder, with what the method shows of eight test rows."""
    import torch

    from notan.data import open_data
    from notan.runs.folder import found_again

    method, pictures = run.method(), {}
    if hasattr(method, "pictures"):
        rows = open_data(found_again(run.settings.data, run.facts), **(run.settings.data_options or {})).test
        index = np.arange(min(8, len(rows)))
        pictures = method.pictures({**rows.take(index), "key": torch.from_numpy(keys.row_keys(0, 0, index))})
    return write_report(run.path / "report.html", run_study(run, pictures))


def _tower(spec: Any) -> str:
    """An encoder as `--encoder` takes it: vit:patch=4,dim=128."""
    if not isinstance(spec, dict):
        return str(spec)
    return f"{spec['name']}:" + ",".join(f"{k}={v}" for k, v in spec.items() if k != "name")


def _header(study: Mapping[str, Any]) -> str:
    facts = [(k, v) for k, v in study.get("data", {}).items() if k != "notes" and v not in (None, "", [], ())]
    facts += [("seeds", len(mean_row))] if (mean_row := _values(study)) else []
    facts += [("time in all", _minutes(study["seconds"]))] if study.get("seconds") else []
    out = f"<h1>{escape(str(study['title']))}</h1>"
    out += "<dl class='facts'>" + "".join(f"<div><dt>{escape(str(k))}</dt><dd>{_fact(v)}</dd></div>" for k, v in facts) + "</dl>"
    if study.get("verdict"):
        out += "<ul class='verdict'>" + "".join(f"<li>{escape(v)}</li>" for v in study["verdict"]) + "</ul>"
    if study.get("notes"):
        out += "<ul class='notes'>" + "".join(f"<li>{escape(v)}</li>" for v in study["notes"]) + "</ul>"
    return out


def _values(study: Mapping[str, Any]) -> list[float]:
    rows = study.get("rows") or [{"metrics": {}}]
    return next(iter(rows[0]["metrics"].values()), [])


def _fact(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        names = ", ".join(map(str, value))
        return escape(names if len(names) < 90 else f"{len(value)}: {names[:80]} …")
    return escape(f"{value:,}" if isinstance(value, int) else str(value))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _footer(study: Mapping[str, Any]) -> str:
    versions = " · ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in study.get("versions", {}).items())
    return f"Written by notan. {versions}"
