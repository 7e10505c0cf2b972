"""`notan compare`: the main job. Which of these methods helps on my data?

Every arm gets the same rows, the same budget, the same encoder where it can use it, the same cache and the same probes. The
raw input (pixels, numbers, or a bag of words), random weights (for each encoder) and, for pictures and numbers, a supervised
reference are always in the table.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from notan import __version__, catalogue
from notan.data import Data, open_data
from notan.errors import NotanError, did_you_mean
from notan.probes.features import numbers, pixels, words
from notan.runs import study as studies
from notan.runs.build import check_columns, is_both, is_language, sees, sided
from notan.runs.captions import told
from notan.runs.checkpoint import write_text
from notan.runs.folder import Run
from notan.runs.log import Profile
from notan.runs.report import write_report
from notan.runs.statistics import finite
from notan.runs.table import shares
from notan.runs.train import train

MINUTES = 0.7                                                           # per arm and seed, when no budget is given
RAW: dict[str, tuple[Any, str]] = {"image": (pixels, "raw pixels"), "features": (numbers, "raw numbers"),
                                   "series": (numbers, "raw numbers"), "text": (words, "bag of words")}


@dataclass
class Arm:
    """One arm of the experiment: a method with its settings, and the runs of its seeds."""

    label: str
    slug: str
    settings: dict[str, Any]
    kind: str = "method"                                                # or "supervised", "random"
    encoder: str | dict[str, Any] | None = None
    runs: list[Run] = field(default_factory=list)


def compare(arms: list[str], data: str | Data = "fashion-mnist", *, out: str | Path = "compare", seeds: int = 2,
            baseline: str | None = None, steps: int | None = None, epochs: float | None = None,
            minutes: float | None = None, batch: int | None = None, recipe: str = "small", encoder: str | None = None,
            precision: str = "auto", threads: int | None = None, supervised: bool = True, across: bool = False,
            probe_rows: int = 10_000, data_options: dict[str, Any] | None = None,
            console: Console | None = None) -> dict[str, Any]:
    """Train every arm on every seed, probe them under one protocol, print the table, write `out/report.html` and encoders.

    `arms` are method names with optional settings, `mae:mask_ratio=0.6`. The budget is `steps`, `epochs` or `minutes` of
    training for each arm and seed (default 0.7 minutes; minutes become steps once per arm, so its seeds do equal work). An
    interrupted comparison continues when it is called again. Returns the study: the dict that `report.html` shows.

    Raises `NotanError` for an unknown method or setting, a column that the data lacks, or a baseline that is not an arm.
    """
    started = time.perf_counter()
    console, out = console or Console(), Path(out)
    todo = [_arm(text) for text in dict.fromkeys(arms)]
    data_options = sided(data, data_options, encoder)
    opened = open_data(data, **data_options)
    for note in opened.notes:
        console.print(f"note: {note}", style="yellow")
    baseline = baseline or todo[0].label
    rows = studies.rowset(opened, probe_rows)
    _check(todo, opened, baseline, seeds)
    todo += _references(todo, opened, supervised, encoder, recipe)
    _check_batches(todo, opened, batch, recipe)
    budget = {"steps": steps, "epochs": epochs, "minutes": minutes if steps or epochs or minutes else MINUTES}
    spent = Profile()
    for seed in range(seeds):
        for arm in todo:
            first = arm.runs[0].settings if arm.runs else None
            given = {"steps": 0} if arm.kind == "random" else {"steps": first.steps} if first else budget
            with spent("training"):
                arm.runs.append(train(
                    arm.slug, opened, out=out / "runs" / _folder(arm.label) / f"seed{seed}", seed=seed,
                    batch=1 if arm.slug == "random" else batch,
                    encoder=arm.encoder or encoder, recipe="small" if arm.kind == "random" else recipe, precision=precision,
                    threads=first.threads if first else threads, settings=arm.settings, data_options=data_options,
                    console=console, title=f"{arm.label} seed {seed}", **given))
    study = _measure(todo, opened, rows, baseline, console, spent)
    study["seconds"] = time.perf_counter() - started
    study["profile"] = _profile(todo, spent, study["seconds"])
    study["across"] = across
    study["verdict"] = studies.verdict(study, across)
    _write(study, todo, out)
    console.print(studies.render_table(study))
    for line in study["verdict"]:
        console.print(line)
    console.print(f"\n{shares(study['profile'])}", style="dim", highlight=False)
    console.print(f"report: {out / 'report.html'}   encoders: {out / 'encoders'}   {study['seconds']:.0f} s in all")
    return study


def _arm(text: str) -> Arm:
    slug, settings = catalogue.parse_arm(text)
    if not catalogue.method(slug).card.get("trains", True):
        raise NotanError(f"{slug} does not train, and is in every table anyway", "methods that train", f"leave {slug} out")
    return Arm(text, slug, settings, "supervised" if slug == "supervised" else "method")


def _check(arms: list[Arm], data: Data, baseline: str, seeds: int) -> None:
    """Everything that can be refused before an hour of training."""
    if baseline not in (labels := [arm.label for arm in arms]):
        raise NotanError(f"the baseline {baseline!r} is not an arm", ", ".join(labels), did_you_mean(baseline, labels))
    if seeds < 1:
        raise NotanError(f"--seeds {seeds}", "at least 1", "--seeds 2")
    for arm in arms:
        check_columns(catalogue.method(arm.slug), data.info)


def _check_batches(arms: list[Arm], data: Data, batch: int | None, recipe: str) -> None:
    """An arm whose batch the data cannot fill would fail after the others have trained."""
    for arm in arms:
        rows = batch or _recipe(arm, recipe)["batch"]
        if arm.kind != "random" and rows > data.rows:
            raise NotanError(f"{arm.label} takes a batch of {rows} rows, but the training split has {data.rows}",
                             "no more than the data has", f"--batch {max(2, data.rows // 2)}, or more data")


def _references(arms: list[Arm], data: Data, supervised: bool, encoder: str | None,
                recipe: str) -> list[Arm]:
    """The supervised row, and random weights for each encoder that the arms use."""
    found: list[Arm] = []
    learnable = not catalogue.method("supervised").lacking(data.info.columns) and (
        len(data.info.classes) > 1 or data.info.target_range is not None)
    if supervised and learnable and all(arm.slug != "supervised" for arm in arms):
        found.append(Arm("supervised", "supervised", {}, "supervised"))
    specs: dict[str, tuple[Any, str]] = {}
    for arm in arms + found:
        tower = catalogue.method(arm.slug).towers[0]
        spec = encoder or _recipe(arm, recipe)[tower.name]
        whole = is_language(tower) or is_both(tower) or sees(tower)    # the method before step 1
        untrained = arm.slug if whole else "random"
        specs.setdefault(json.dumps(spec, sort_keys=True), (spec, untrained))
    names = [_family(spec) for spec, _ in specs.values()]
    names = [name if names.count(name) == 1 else _name(spec) for name, (spec, _) in zip(names, specs.values())]
    return found + [Arm(f"random weights ({name})", slug, {}, "random", spec)
                    for name, (spec, slug) in zip(names, specs.values())]


def _recipe(arm: Arm, recipe: str) -> dict[str, Any]:
    recipes = catalogue.method(arm.slug).recipes
    return recipes.get(recipe, recipes["small"])


def _profile(arms: list[Arm], spent: Profile, seconds: float) -> dict[str, float]:
    """Seconds of this comparison by what they went into; runs that were finished before count what they took then.

    The first three are forward and backward passes and the optimiser; the first has the views in it.
    """
    summaries = [run.summary for arm in arms for run in arm.runs]

    def part(name: str) -> float:
        return sum(s.get("profile", {}).get(name, 0.0) for s in summaries)

    steps, timing, looks = part("step"), part("timing"), part("watch")
    runs = max(spent.seconds.pop("training"), timing + sum(s["seconds_in_all"] for s in summaries))
    parts = {"training steps": steps, "steps that only time the machine": timing,
             "embedding rows": spent.seconds.pop("embedding rows"), "looks while training": looks,
             "the rest of the runs": runs - steps - timing - looks, **spent.seconds}
    return {**parts, "start and report": max(0.0, seconds - sum(parts.values()))}


def _measure(arms: list[Arm], data: Data, rows: studies.Rowset, baseline: str, console: Console,
             spent: Profile) -> dict[str, Any]:
    """Probe the raw input and every arm; pair the seeds. Where the time goes is added to `spent`."""
    seeds = len(arms[0].runs)
    study: dict[str, Any] = {
        "title": f"{', '.join(a.label for a in arms if a.kind == 'method')} on {data.info.name}", "baseline": baseline,
        "seeds": seeds,
        "data": {"name": data.info.name, "rows": data.info.rows, "notes": data.notes,
                 "classes": studies.class_names(data, rows)},
        "measure": "R²" if rows.train_y.is_floating_point() else "accuracy",
        "rows": [], "curves": {}, "fractions": {}, "maps": {}, "neighbours": {}, "pictures": {}, "notes": list(data.notes),
        "versions": {"notan": __version__, "torch": torch.__version__}, "config": "",
    }
    protocols: dict[str, str] = {}
    seen, named = RAW[next((column for column in RAW if column in data.info.columns), "text")]
    raw = studies.embed(seen, data, rows)
    same = studies.probe_all(*raw, rows)                                # the raw input has no seed
    todo: list[tuple[str, str, Arm | None]] = [(named, "pixels", None), *((a.label, a.kind, a) for a in arms)]
    with console.status("probing") as status:
        for label, kind, arm in todo:
            status.update(f"probing {label}")
            results = []
            for seed in range(seeds):
                with spent("embedding rows"):
                    method: Any = None if arm is None else arm.runs[seed].method()
                    x = raw if method is None else studies.embed(method.encode, data, rows)
                with spent("probes"):
                    results.append(studies.probe(*x, rows, seed, same if arm is None else None))
                if arm is not None and seed == 0:
                    with spent("maps and pictures"):
                        _picture(study, arm, method, x, data, rows)
            protocols |= results[0]["protocols"]
            study["rows"].append(_row(label, kind, arm, results, raw[0].shape[1]))
            study["fractions"][label] = {n: [r["fractions"][n] for r in results] for n in results[0]["fractions"]}
    study["metrics"] = list(protocols)
    study["protocols"] = [f"{name}: {text}" for name, text in protocols.items()]
    base = next(r for r in study["rows"] if r["arm"] == baseline)
    for row in study["rows"]:
        row["paired"] = {m: studies.paired(row["metrics"][m], base["metrics"][m]) for m in study["metrics"]}
    study["config"] = "\n---\n".join((a.runs[0].path / "config.yaml").read_text() for a in arms if a.kind == "method")
    return study


def _row(label: str, kind: str, arm: Arm | None, results: list[dict], width: int) -> dict[str, Any]:
    """One line of the table."""
    row = {"arm": label, "kind": kind, "metrics": {m: [r["values"][m] for r in results] for m in results[0]["values"]}}
    if arm is None:
        unit = {"raw pixels": "pixels", "raw numbers": "numbers"}.get(label, "places")
        return row | {"encoder": f"{width} {unit}", "params": 0, "seconds": 0.0, "peak_mb": 0.0, "steps": 0}
    last = arm.runs[-1]
    tower = last.towers[0]
    config = json.loads((last.path / tower / "config.json").read_text())
    config = config if "name" in config else last.settings.towers[tower]    # a language model's is of transformers
    summaries = [run.summary for run in arm.runs]
    trained = kind != "random"
    return row | {
        "encoder": _name(config), "labels": _taught(arm), "params": last.facts["parameters"].get(tower, 0),
        "steps": last.settings.steps or 0,
        "seconds": float(np.mean([s["seconds_in_all"] for s in summaries])) if trained else 0.0,
        "peak_mb": float(np.max([s["peak_mb"] for s in summaries])) if trained else 0.0,
    }


def _taught(arm: Arm) -> bool:
    """Whether the method learns from labels."""
    return not set(studies.ABOUT).isdisjoint(catalogue.method(arm.slug).columns)


def _family(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else spec["name"]


def _name(spec: str | dict[str, Any]) -> str:
    """An architecture in a few characters; methods are ranked among those whose names are equal."""
    if isinstance(spec, str):
        return spec
    if spec["name"] in ("vit", "gpt2"):
        return f"{spec['name']} {spec['dim']}x{spec['depth']}" + (f"/{spec['patch']}" if "patch" in spec else "")
    if spec["name"] == "convnet":
        return f"convnet {'-'.join(map(str, spec['widths']))}/{math.prod(spec['strides'])}"
    parts = [spec["name"], *(str(spec[k]) for k in ("width", "stem", "source") if k in spec)]
    return " ".join(parts + ["preact"] * bool(spec.get("preact")))


def _picture(study: dict[str, Any], arm: Arm, method: Any, x: tuple, data: Data, rows: studies.Rowset) -> None:
    """What the report shows of an arm's first seed."""
    run, rows = arm.runs[0], studies.classed(rows)
    study["maps"][arm.label] = studies.flat_map(x[1], rows)
    if "image" in data.info.columns:
        study["maps"][arm.label]["thumbs"] = studies.thumbs(data, rows)
        study["neighbours"][arm.label] = studies.neighbours(x[0], x[1], data, rows)
    study["curves"][arm.label] = [(r["step"], r["loss"]) for r in run.metrics() if "loss" in r]
    study["notes"] += [f"{arm.label}: {said}" for said in told(run.facts)]
    study["notes"] += [f"{arm.label}: {r['message']}" for r in run.metrics() if "alarm" in r]
    if hasattr(method, "pictures"):
        batch = data.test.take(rows.test[:8])
        batch["key"] = torch.arange(len(batch["row"])) * 1_000_003
        study["pictures"][arm.label] = {k: v.float().numpy() for k, v in method.pictures(batch).items()}


def _write(study: dict[str, Any], arms: list[Arm], out: Path) -> None:
    """report.html, study.json (numbers only), and the best seed's encoder of every trained arm."""
    out.mkdir(parents=True, exist_ok=True)
    write_report(out / "report.html", study)
    kept = ("title", "baseline", "seeds", "data", "rows", "fractions", "metrics", "protocols", "verdict", "seconds", "profile",
            "notes", "versions")
    numbers = {k: study[k] for k in kept}
    write_text(out / "study.json", json.dumps(finite(numbers), indent=1, allow_nan=False))
    for arm in arms:
        if arm.kind != "random":
            row = next(r for r in study["rows"] if r["arm"] == arm.label)
            best = int(np.argmax(row["metrics"][study["metrics"][0]]))
            run = arm.runs[best]
            shutil.copytree(run.path / run.towers[0], out / "encoders" / _folder(arm.label), dirs_exist_ok=True)


def _folder(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", label).strip("-")
