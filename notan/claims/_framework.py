"""Run a claim: every arm and seed once, kept as it goes, then judged by the rule that was written first.

A claim file holds a literal `CLAIM` and two functions:

    CLAIM = {"sentence", "arms": [...], "data", "metric", "seeds": [...], "confirms", "refutes", "protocol", "minutes"}
    def run(arm: str, seed: int, quick: bool) -> dict[str, float]                    # every metric of one arm and seed
    def judge(values: dict[arm, dict[seed, dict[str, float]]]) -> tuple[verdict, sentence]

Optional keys of `CLAIM`: "baseline" (the arm the others are paired with; the first), "shown" (the metrics that tables
show; all), "methods" (slugs whose files take part; the claim's own), "strategies" (slugs of strategies that do), "uses"
(names of other files of claims/ that do), "threads" (1). A finished (arm, seed) is kept under a key made from the source of
the claim (without `judge`), of its methods, strategies and files, and of what trains, probes and decodes: an interrupted
claim goes on where it stopped, and values of two protocols never mix.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

from notan import catalogue
from notan.claims._statistics import Values, paired, summary
from notan.errors import NotanError, did_you_mean
from notan.runs.statistics import finite

KEYS = ("sentence", "arms", "data", "metric", "seeds", "confirms", "refutes", "protocol", "minutes")
VERDICTS = ("confirmed", "refuted", "open")
RESULTS = catalogue.ROOT / "results"
HERE = Path(__file__).parent

Progress = Callable[[str, int, int, int], None]                     # arm, seed, how many are done, how many there are


@dataclass(frozen=True)
class Claim:
    """One claim file: its name, what it states, and its two functions."""

    slug: str
    path: Path
    facts: dict[str, Any]
    run: Callable[[str, int, bool], dict[str, float]]
    judge: Callable[[Values], tuple[str, str]]


def read_claim(slug: str | Path) -> Claim:
    """Load a claim by name, or a claim file of one's own by path. Raises `NotanError` for what is missing in it."""
    path = slug if isinstance(slug, Path) else catalogue.claims().get(slug)
    if path is None:
        raise NotanError(f"there is no claim {slug!r}", "a name from `notan list claims`",
                         did_you_mean(str(slug), catalogue.claims()))
    module = _load(path)
    facts = getattr(module, "CLAIM", {})
    missing = [k for k in KEYS if k not in facts] + [f for f in ("run", "judge") if not hasattr(module, f)]
    if missing:
        raise NotanError(f"{path.name} lacks {', '.join(missing)}", "a CLAIM with all keys, `run` and `judge`",
                         "see the head of claims/_framework.py")
    if facts.get("baseline", facts["arms"][0]) not in facts["arms"]:
        raise NotanError(f"{path.name}: baseline {facts['baseline']!r} is no arm", f"one of {facts['arms']}")
    return Claim(path.stem, path, facts, module.run, module.judge)


def run_claim(slug: str | Path, *, quick: bool = False, out: str | Path | None = None,
              progress: Progress | None = None) -> dict[str, Any]:
    """Run what is not yet run of a claim, judge it, and write `results/<slug>.json` (or to `out`, a folder or .json).

    `quick` runs reduced sizes with two seeds to check the pipeline; it keeps nothing and writes only to an `out`.
    An interrupted call keeps its finished (arm, seed) pairs, and the next one goes on from there.
    """
    claim = read_claim(slug)
    seeds = claim.facts["seeds"][:2] if quick else claim.facts["seeds"]
    folder = None if quick else work_folder(claim)
    pairs = [(arm, seed) for seed in seeds for arm in claim.facts["arms"]]
    cells: dict[tuple[str, int], dict] = {}
    with _threads(claim.facts.get("threads", 1)):
        for done, (arm, seed) in enumerate(pairs):
            if progress:
                progress(arm, seed, done, len(pairs))
            cells[arm, seed] = _cell(claim, arm, seed, quick, folder)
    values = {arm: {seed: cells[arm, seed]["values"] for seed in seeds} for arm in claim.facts["arms"]}
    outcome = report(claim, values, sum(c["seconds"] for c in cells.values()) / 60)
    if quick:
        outcome["command"] += " --quick"
    if out is not None or not quick:
        _write(_target(claim.slug, out), outcome)
    return outcome


def report(claim: Claim, values: Values, minutes: float) -> dict[str, Any]:
    """The outcome as it is written: claim, verdict, means, paired differences to the baseline, values, machine."""
    verdict, sentence = claim.judge(values)
    if verdict not in VERDICTS:
        raise NotanError(f"{claim.path.name}: judge said {verdict!r}", f"one of {', '.join(VERDICTS)}")
    means = summary(values)
    baseline = claim.facts.get("baseline", claim.facts["arms"][0])
    differences = {
        arm: {m: list(paired(values, arm, baseline, m)) for m in means[arm] if m in means[baseline]}
        for arm in values if arm != baseline
    }
    metrics = claim.facts.get("shown") or list(dict.fromkeys(m for row in means.values() for m in row))
    return {
        "claim": claim.facts, "verdict": verdict, "sentence": sentence, "metrics": metrics, "means": means,
        "baseline": baseline, "differences": differences, "values": values, "seeds": list(next(iter(values.values()))),
        "minutes": round(minutes, 2), "command": f"notan claim {claim.slug}", "machine": machine(),
        "versions": versions(), "date": datetime.now(UTC).date().isoformat(), "protocol": protocol_key(claim),
    }


def run_and_print(slug: str, *, quick: bool, out: str | Path | None, console: Any) -> None:
    """`notan claim SLUG`: what is stated, where it stands while it runs, and what came out."""
    facts = read_claim(slug).facts
    console.print(f"[bold]{slug}[/bold]: {facts['sentence']}\n{facts['protocol']}")
    console.print(f"confirmed if: {facts['confirms']}\nrefuted if: {facts['refutes']}\n")
    outcome = run_claim(slug, quick=quick, out=out, progress=lambda arm, seed, done, total: console.print(
        f"{done + 1}/{total}  {arm}, seed {seed}", highlight=False))
    console.print(_table(outcome))
    console.print(f"[bold]{outcome['verdict']}[/bold]: {outcome['sentence']}")
    if quick:
        console.print("A quick run checks that everything runs; its verdict means nothing and was not kept.")


def shown(row: dict[str, Any], metric: str) -> str:
    """An arm's mean and deviation of one metric, "" where it was not measured."""
    return f"{row[metric][0]:.4g} ± {row[metric][1]:.2g}" if row.get(metric) else ""


def _table(outcome: dict[str, Any]) -> Any:
    """Mean and deviation of each arm and metric; whichever are fewer are the columns."""
    from rich.table import Table

    means, metrics, first = outcome["means"], outcome["metrics"], "arm"
    rows = {arm: [shown(row, m) for m in metrics] for arm, row in means.items()}
    if len(metrics) > len(means):
        rows, metrics, first = dict(zip(metrics, map(list, zip(*rows.values())))), list(means), "metric"
    table = Table(title=f"mean ± sd over {len(outcome['seeds'])} seeds", title_justify="left")
    for name in (first, *metrics):
        table.add_column(name, overflow="fold")
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


# --------------------------------------------------------------------------------------------- what is kept, and where

def protocol_key(claim: Claim) -> str:
    """A hash of the source that the values depend on; comments, layout and `judge` do not count.

    The claim, its methods, the claims' loop, and the rooms that train and probe. Not the data layer: what it hands over
    is checked where it is loaded, and its speed may change while a claim runs.
    """
    files = [claim.path, HERE / "_train.py", catalogue.ROOT / "world.py", catalogue.ROOT / "runs" / "optim.py"]
    files += [f for room in ("losses", "nets", "views", "probes") for f in sorted((catalogue.ROOT / room).glob("*.py"))]
    files += [catalogue.ROOT / "methods" / f"{slug}.py" for slug in claim.facts.get("methods", [claim.slug])]
    files += [HERE / name for name in claim.facts.get("uses", [])]
    if strategies := claim.facts.get("strategies"):
        files += [catalogue.ROOT / "strategies" / f"{slug}.py" for slug in ("_strategy", "_reference", *strategies)]
        files += [catalogue.ROOT / "runs" / f"{name}.py" for name in ("decode", "generation", "lookahead", "prompts", "score")]
    trees = [_without_judge(ast.parse(f.read_text())) for f in files if f.exists()]
    return hashlib.blake2b("\n".join(ast.dump(t) for t in trees).encode(), digest_size=8).hexdigest()


def work_folder(claim: Claim) -> Path:
    """Where finished (arm, seed) pairs are kept: `claims/<slug>/<protocol>/` in the cache."""
    cache = Path(os.environ.get("NOTAN_CACHE") or Path.home() / ".cache" / "notan")
    return cache / "claims" / claim.slug / protocol_key(claim)


def _cell(claim: Claim, arm: str, seed: int, quick: bool, folder: Path | None) -> dict[str, Any]:
    path = folder / f"{quote(arm, safe='')}--{seed}.json" if folder else None
    if path and path.exists():
        cell = json.loads(path.read_text())
        return cell | {"values": {name: float(v) for name, v in cell["values"].items()}}
    start = time.perf_counter()
    found = {name: float(v) for name, v in claim.run(arm, seed, quick).items()}
    cell = {"values": found, "seconds": time.perf_counter() - start}
    if path:
        _write(path, cell)
    return cell


def _target(slug: str, out: str | Path | None) -> Path:
    if out is None:
        return RESULTS / f"{slug}.json"
    return Path(out) if Path(out).suffix == ".json" else Path(out) / f"{slug}.json"


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
    part.replace(path)


def _without_judge(tree: ast.Module) -> ast.Module:
    tree.body = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == "judge")]
    return tree


def _load(path: Path) -> ModuleType:
    name = f"notan.claims.{path.stem}" if path.parent == HERE else f"_claim_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise NotanError(f"{path.name} is not a Python file that can be read", "a claim file", "check the path")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------- circumstances

@contextmanager
def _threads(n: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """CPU model and cores: enough to compare minutes, nothing that names a host."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("notan", "torch", "numpy", "scikit-learn", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
