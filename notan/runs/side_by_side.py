"""`notan compare --decode`: strategies side by side on one benchmark, with the rows that explain most gains always beside them.

Plain sampling is a weak baseline: a plausible head, or a lower temperature, makes any model more certain and many answers
right, without a contrast. So every table has the model alone, the head alone, and the head at the temperature that the
strategy's weights come to.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from notan import catalogue
from notan.errors import NotanError, check_between
from notan.runs.checkpoint import whole_lines, write_text
from notan.runs.decode import build
from notan.runs.prompts import check_amateur
from notan.runs.questions import open_benchmark
from notan.runs.reader import Readers, load, read_with
from notan.runs.statistics import finite, paired
from notan.runs.tasks import Row, Settings, Task
from notan.strategies._reference import references


def compare_decoding(arms: Sequence[str], data: str | Path, model: str | Path | Any, *, out: str | Path = "compare",
                     tokenizer: Any = None, amateur: str | Path | Any = None, images: str | Path | None = None,
                     judge: str | Path | None = None, limit: int | None = None, batch: int = 8, max_new_tokens: int = 64,
                     before: str = "", chat: bool | None = None, seed: int = 0, console: Any = None) -> dict[str, Any]:
    """Run `arms` ("vcd", "ritual:alpha=3,minus=vcd", ...) and their references on the benchmark file `data`.

    `data` is TruthfulQA's or FACTOR's csv, POPE's jsonl, MME's folder, or jsonl of ours: {"query", "leading", "image",
    "answer": yes or no}, or {"prompt"} for open text (`judge`: a model that says how likely it finds the texts). images: the
    folder that the file's pictures are relative to (its own by default). before: what TruthfulQA's prompts start with.
    limit: only so many items, from the beginning.

    Answers are appended to `out`/answers as they come: the same call goes on where it stopped. Returns, and writes to
    `out`/decoding.json, figures for each row and for the task's main one the paired difference to the model alone with its
    95% interval over items. Raises `NotanError` for an unknown arm, a file that is no benchmark, a broken item (a benchmark
    with holes is another benchmark), or answers of another call in `out`.
    """
    check_between(1, math.inf, batch=batch, max_new_tokens=max_new_tokens, **({} if limit is None else {"limit": limit}))
    strategies = {arm: build(*catalogue.parse_arm(arm, catalogue.strategy)) for arm in arms}
    for strategy in strategies.values():
        check_amateur(strategy, amateur)
    task, items = open_benchmark(Path(data), Path(images) if images else None, before)
    items = items[:limit]
    rows = references(strategies) | strategies
    record = {"task": task.title, "arms": list(arms), "data": Path(data).name, "items": len(items), "model": str(model),
              "amateur": None if amateur is None else str(amateur), "judge": None if judge is None else str(judge),
              "before": before, "max_new_tokens": max_new_tokens, "chat": chat, "seed": seed, "digest": _digest(Path(data))}
    out = Path(out)
    _same_call(out / "decoding.json", record)
    readers = read_with(model, tokenizer, amateur)
    asked = Settings(seed, chat, max_new_tokens, load(judge) if judge is not None else None)
    answered = {name: _answer(name, strategy, task, items, readers, asked, batch, out / "answers", console)
                for name, strategy in rows.items()}
    figures = {name: task.summarise(found, asked) for name, found in answered.items()}
    record |= {"main": task.main, "references": [name for name in rows if name not in strategies], "figures": figures,
               "differences": {name: _difference(found, answered["model"], task.main) for name, found in answered.items()}}
    write_text(out / "decoding.json", json.dumps(finite(record), indent=1) + "\n")
    if console is not None:
        console.print(table(record))
    return record


def _answer(name: str, strategy: Any, task: Task, items: Sequence[Any], readers: Readers, asked: Settings, batch: int,
            folder: Path, console: Any) -> list[Row]:
    """The rows of all items under one strategy: those that are there, and the others, a few at a time."""
    from rich.progress import track

    path = folder / f"{quote(name, safe=' ')}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = [{k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in json.loads(line).items()}
                for line in whole_lines(path)]
    except (ValueError, AttributeError) as error:                       # no UTF-8, no JSON, no object
        raise NotanError(f"{path} is damaged ({error})", "answers as this command writes them",
                         "remove the file: its items are asked again") from None
    starts = range(len(rows), len(items), batch)
    with path.open("a") as file:
        for start in track(starts, name, console=console, disable=console is None or not starts):
            some = items[start: start + batch]
            try:
                found = task.measure(strategy, readers, some, asked)
            except NotanError as error:
                raise NotanError(f"items {start + 1} to {start + len(some)}: {error.seen}", error.wanted, error.fix) from None
            file.write("".join(json.dumps(finite(r)) + "\n" for r in found))
            file.flush()
            rows += found
    return rows


def _difference(rows: Sequence[Row], model: Sequence[Row], main: str) -> list[float]:
    """Mean over items of a strategy's number minus the model's, and its 95% t-interval."""
    pairs = [(r[main], m[main]) for r, m in zip(rows, model) if math.isfinite(r[main]) and math.isfinite(m[main])]
    return list(paired([r for r, _ in pairs], [m for _, m in pairs])) if pairs else [math.nan] * 3


def _digest(data: Path) -> str:
    """A hash of the benchmark's files."""
    files = sorted(f for f in data.rglob("*.txt")) if data.is_dir() else [data]
    whole = hashlib.blake2b(digest_size=8)
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _same_call(path: Path, record: dict[str, Any]) -> None:
    """Leaves `record` in `path`. Raises `NotanError` when there are answers of another one."""
    if path.exists():
        try:
            there = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise NotanError(f"{path} is not a record of a call ({error})", "the one that this command wrote",
                             "choose another --out, or remove the folder") from None
        if other := [key for key in record if key != "arms" and there.get(key) != record[key]]:
            raise NotanError(f"{path.parent} holds answers of another call: its {other[0]} is {there.get(other[0])}, now "
                             f"{record[other[0]]}", "an --out of its own", "choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def table(record: dict[str, Any]) -> Any:
    """Rows by figures on the terminal; references are dim."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    names = list(next(iter(record["figures"].values())))
    shown = Table(title=f"{record['task']}: {record['items']} items of {record['data']}", title_justify="left", box=SIMPLE_HEAD,
                  padding=(0, 1, 0, 0), caption_justify="left",
                  caption="Dim rows are references. In brackets: the 95% t-interval over items (none for one item).")
    shown.add_column("", min_width=14, overflow="fold")
    for name in names:
        shown.add_column(name, justify="right", overflow="fold", width=max(6, *map(len, name.split())))
    shown.add_column(f"{record['main']}, minus model", justify="right", width=max(8, len(record["main"]) + 1))
    for row, figures in record["figures"].items():
        m, low, high = record["differences"][row]
        interval = f"\n[{low:+.3f},\n{high:+.3f}]" if math.isfinite(low) else ""
        gap = "–" if row == "model" or math.isnan(m) else f"{m:+.3f}{interval}"
        found = ("–" if math.isnan(figures[name]) else f"{figures[name]:.3f}" for name in names)
        shown.add_row(row, *found, gap, style="dim" if row in record["references"] else "")
    return shown
