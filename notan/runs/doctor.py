"""`notan doctor`: what is wrong with this data, this run, or this index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from notan.data.doctor import Finding, diagnose, diagnose_stream
from notan.errors import NotanError
from notan.runs.captions import told
from notan.runs.folder import Run
from notan.runs.index import Index, is_index


def doctor(what: str | Path, console: Any, stream: bool = False, columns: Mapping[str, str] | None = None,
           cache_side: int | None = None) -> int:
    """Print findings about a run folder, an index or data, the worst first; the exit status is 1 when one is an error. With
    `stream` the data is opened as one that does not fit; `columns` and `cache_side` are those of `open_data`.
    """
    if stream:
        findings = diagnose_stream(str(what), columns=columns, cache_side=cache_side)
    else:
        findings = examine(what, columns, cache_side)
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for f in sorted(findings, key=lambda f: list(colours).index(f.severity)):
        console.print(f"{f.severity}: {f.what}", style=colours[f.severity], highlight=False)
        if f.fix:
            console.print(f"  fix: {f.fix}", highlight=False)
    if all(f.severity == "note" for f in findings):
        console.print("Nothing is wrong.", style="green")
    return int(any(f.severity == "error" for f in findings))


def examine(what: str | Path, columns: Mapping[str, str] | None = None, cache_side: int | None = None) -> list[Finding]:
    """Findings about a run folder or an index, or else about data, which is opened with the options."""
    indexed, run = is_index(Path(what)), (Path(what) / "config.yaml").exists()
    if not (indexed or run):
        return diagnose(str(what), columns=columns, cache_side=cache_side)
    if columns or cache_side:
        raise NotanError(f"{what} is {'an index' if indexed else 'a run folder'}: no data is opened", "data to open with options",
                         "leave out --column and --cache-side")
    return _index(Path(what)) if indexed else _run(Run(what))


def _run(run: Run) -> list[Finding]:
    """Is it finished, can it go on, did an alarm ring, did its loss fall, is there a dump to look at?"""
    found = []
    records = run.metrics()
    losses = [r["loss"] for r in records if "loss" in r]
    try:
        run.method()
    except NotanError as error:
        found.append(Finding("error", f"its state cannot be loaded: {error.seen}", error.fix))
    if not run.finished:
        step = records[-1]["step"] if records else 0
        found.append(Finding("warning", f"it is not finished: step {step} of {run.settings.steps}",
                             "the same `notan train` command goes on from there"))
    found += [Finding("note", said.rstrip("."), "") for said in told(run.facts)]
    for r in records:
        if "alarm" in r:
            found.append(Finding("warning", f"step {r['step']}: {r['message']}", ""))
    if len(losses) >= 4 and not min(losses[len(losses) // 2 :]) < losses[0]:
        found.append(Finding("warning", f"the loss did not fall: {losses[0]:.4g} at first, {losses[-1]:.4g} at last",
                             "a lower --lr, more --steps, or another method"))
    for dump in sorted((run.path / "debug").glob("step-*")):
        found.append(Finding("error", f"a step was not finite; it is kept in {dump.name}",
                             f"notan.runs.dump.replay({str(dump)!r})"))
    found.append(Finding("note", f"{run.settings.method} on {run.settings.data}, seed {run.settings.seed}, "
                                 f"{run.settings.steps} steps; states: {', '.join(checkpoint_names(run.path)) or 'none'}", ""))
    return found


def _index(folder: Path) -> list[Finding]:
    """Is every part as it was written, is its model there, and what of the data could not be read?"""
    try:
        index = Index(folder)
        index.check("thumbs")
    except NotanError as error:
        return [Finding("error", error.seen, error.fix)]
    found, name = [], index.header["model"]["name"]
    if not name.startswith("hf:") and not Path(name).exists():
        found.append(Finding("warning", f"its model is not at {name}: words and pictures cannot be asked",
                             "--model RUN says where"))
    for _, item, why, source in index.header["unreadable"].values():
        found.append(Finding("warning", f"{item} of {source} could not be read ({why})", "mend it and embed again"))
    if index.count > 2 * len(index):
        found.append(Finding("note", f"{index.count - len(index):,} of {index.count:,} rows are dropped and still take room",
                             "embedding to a new folder leaves them out"))
    graph = index.header.get("graph")
    graphed = f"graph of {graph['rows']:,}" if graph else "no graph"
    under = f" under {asked!r}" if (asked := index.header["model"].get("instruction")) else ""
    return [*found, Finding("note", f"{len(index):,} {index.kind} rows of {index.dim} numbers by {name}{under}; {graphed}", "")]


def checkpoint_names(folder: Path) -> list[str]:
    state = folder / "state"
    return sorted(p.name for p in state.iterdir() if not p.name.startswith(".")) if state.is_dir() else []
