"""Which benchmark a file is, and its items."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from notan.errors import NotanError
from notan.probes import benchmarks
from notan.runs.tasks import FACTOR, MME, TEXT, TRUTHFULQA, YES_NO, Prompt, Task


def open_benchmark(path: Path, images: Path | None = None, before: str = "") -> tuple[Task, list[Any]]:
    """Which task a file (or MME's folder) is, told by its columns or keys, and its items, pictures as whole paths.

    images: the folder that pictures are relative to, the file's own by default. before: what TruthfulQA's prompts start with.
    Raises `NotanError` for a file that is none of them, a broken line, or a picture that is not there.
    """
    if path.is_dir() or path.suffix == ".txt":
        return MME, _with_pictures(benchmarks.mme(path), images or path)
    if not path.is_file():
        raise NotanError(f"there is no file {path}", "a benchmark's file", "check the path")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = next(csv.reader(file), [])
        if "Best Answer" in columns:
            return TRUTHFULQA, benchmarks.truthfulqa(path, before)
        return FACTOR, benchmarks.factor(path)
    keys = _first_keys(path)
    if "label" in keys:
        return YES_NO, _with_pictures(benchmarks.pope(path), images or path.parent)
    if "leading" in keys:
        return YES_NO, _with_pictures(benchmarks.leading(path), images or path.parent)
    if "prompt" in keys:
        return TEXT, _with_pictures([Prompt(prompt, image) for prompt, image in benchmarks.prompts(path)], images or path.parent)
    raise NotanError(f"{path} has the keys {', '.join(keys) or 'of no object'}",
                     'image, text, label (POPE); query, leading, answer; or prompt', "is it another benchmark?")


def _first_keys(path: Path) -> list[str]:
    """The keys of the first object of JSON lines or of an array."""
    words = path.read_text(encoding="utf-8-sig").lstrip().removeprefix("[").lstrip()
    try:
        first = json.JSONDecoder().raw_decode(words)[0]
    except json.JSONDecodeError:
        return []
    return list(first) if isinstance(first, dict) else []


def _with_pictures(items: Sequence[Any], folder: Path) -> list[Any]:
    """Items whose pictures are found in the folder."""
    found = []
    for i, item in enumerate(items, start=1):
        if item.image and not (folder / item.image).is_file():
            raise NotanError(f"item {i} is about {item.image}, which is not in {folder}", "the benchmark's pictures",
                             "--images FOLDER")
        found.append(replace(item, image=str(folder / item.image)) if item.image else item)
    return found
