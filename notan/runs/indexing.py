"""`notan embed --out FOLDER`: what is new goes into an index, what changed goes in again, what is gone is found no more.

Pictures are decoded by threads while the model reads those before them. Every PART rows become one part of the
index, whole or not at all, so the same command goes on where a killed one stopped, and gives the same files as one that was not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.data import Data
from notan.data.cache import quiet, workers
from notan.data.items import WORDS, Items, items_of
from notan.data.pictures import FITS, Form, decode_and_show, why
from notan.errors import NotanError, did_you_mean
from notan.probes.features import check_finite
from notan.runs.index import DTYPES, Writer
from notan.runs.machine import choose_precision
from notan.runs.space import Space, model_of, open_space

PART = 4096                                                             # rows that are written at once
THUMB = 128                                                             # longer side of a thumbnail, in pixels


@dataclass
class Done:
    """What one call did to an index."""

    new: int = 0
    changed: int = 0
    gone: int = 0
    unreadable: int = 0
    named: str = ""                                                     # the first of these, and why
    total: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        said = [f"{n:,} {name}" for name, n in (("new", self.new), ("changed", self.changed), ("gone", self.gone),
                                                 ("unreadable", self.unreadable)) if n]
        named = f" ({self.named})" if self.named else ""
        return f"{', '.join(said) or 'nothing new'}{named}; {self.total:,} in all, {self.seconds:.0f} s"


def index(run: Any, data: str | Data, out: str | Path, *, split: str | None = None, instruction: str | None = None,
          vector: str | None = None, dtype: str | None = None, fit: str = "crop", columns: dict[str, str] | None = None,
          limit_bad: float = 0.01, precision: str = "auto", batch: int | None = None, console: Any = None) -> Done:
    """Bring the index in the folder `out` up to date with `data`: rows that are new, changed or gone since the last time.

    run: as `open_space` takes it, with `instruction` and `vector`. split: "train", "test", or both where None. Vectors have
    length 1, as `dtype` (default: the index's own, of a new one float16). precision: of the model, "auto" is bf16 where the
    machine multiplies it natively, else fp32. batch: rows at a time (default: 32 on a CPU, whose cache they fit, else 256).
    Pictures are decoded at the model's own size, `fit` says how; they get thumbnails, and rows of one picture are one. What
    cannot be read is skipped, named in the index, and tried again when it changes. Raises `NotanError` for more than the share
    `limit_bad` of that, for data the model does not read, for an index of another model, and where another process writes to it.
    """
    if split not in (None, "train", "test"):
        raise NotanError(f"there is no split {split!r}", "train or test")
    if fit not in FITS:
        raise NotanError(f"fit {fit!r}", f"one of {', '.join(FITS)}", did_you_mean(fit, FITS))
    if dtype is not None and dtype not in DTYPES:
        raise NotanError(f"dtype {dtype!r}", " or ".join(DTYPES), did_you_mean(dtype, DTYPES))
    start, items = time.monotonic(), items_of(data, split, columns)
    space = open_space(run, vector, instruction)
    kind = kind_of(space, items)
    if instruction is not None and kind != "picture":
        raise NotanError(f"an instruction was given for {items.spec}, which has {', '.join(items.columns)}", "pictures",
                         "leave out --instruction")
    about = {"kind": kind, "model": model_of(space, vector, instruction),
             "dtype": dtype, "fit": fit}
    device, low = "cuda" if torch.cuda.is_available() else "cpu", choose_precision(precision) == "bf16"
    batch = batch or (32 if device == "cpu" else 256)
    with Writer(out, about) as writer, torch.autocast(device, torch.bfloat16, enabled=low):
        done = _update(writer, space, items, kind, Form(space.side, space.channels, fit), batch, limit_bad, console)
        if items.spec not in writer.header["sources"]:
            writer.note(sources=[*writer.header["sources"], items.spec])
        done.named = _listed(writer.header["unreadable"], items.spec, 3) if done.unreadable else ""
        done.total, done.seconds = writer.header["live"], time.monotonic() - start
    return done


def kind_of(space: Space, items: Items) -> str:
    """"picture", "text" or "numbers": what of the data the model reads. Raises `NotanError` for nothing."""
    if space.pictures is not None and "image" in items.columns:
        return "picture"
    if space.texts is not None and {*WORDS} & {*items.columns}:
        return "text"
    if space.numbers is not None and {"features", "series"} & {*items.columns}:
        return "numbers"
    raise NotanError(f"{items.spec} has {', '.join(items.columns)}, and {space.name} reads {space.reads or 'neither'}",
                     "data that the model reads", "choose other data or another model, or --column THEIRS=image or text")


def _update(writer: Writer, space: Space, items: Items, kind: str, form: Form, batch: int, limit: float, console: Any) -> Done:
    known, bad = writer.known(), writer.header["unreadable"]
    if any(said[3] == items.spec and int(key, 16) not in items.every for key, said in bad.items()):
        bad = {key: said for key, said in bad.items() if said[3] != items.spec or int(key, 16) in items.every}
        writer.note(unreadable=bad)
    gone = [row for i, (row, _, spec) in known.items() if spec == items.spec and i not in items.every]
    if gone:
        writer.append(np.zeros((0, 0)), [], [], dropped=gone)
    done, todo = Done(gone=len(gone)), []
    for i in items.pictures_once() if kind == "picture" else range(len(items)):
        key, stamp = items.id(i), items.stamp(i)
        if key in known and known[key][1] == stamp:
            continue
        if bad.get(f"{key:016x}", ("",))[0] == stamp:
            done.unreadable += 1
            continue
        todo.append((i, key, stamp))
    allowed = int(np.ceil(limit * len(items)))
    vectors_of = {"picture": _pictures, "text": _texts, "numbers": _numbers}[kind]
    with quiet(), bar(console, "embedding") as show, ThreadPoolExecutor(workers(), thread_name_prefix="notan-decode") as pool:
        for first in range(0, len(todo), PART):
            part, so_far = todo[first : first + PART], Count(first, len(todo), show)
            vectors, thumbs, failed = vectors_of(space, items, [i for i, _, _ in part], form, batch, pool, so_far)
            check_finite(vectors, f"the vectors of {space.name}")
            good = [(i, key, stamp) for i, key, stamp in part if i not in failed]
            said = [{**items.shown(i), "stamp": stamp, "source": items.spec} for i, _, stamp in good]
            names = {f"{key:016x}": [stamp, items.shown(i)["name"], failed[i], items.spec]
                     for i, key, stamp in part if i in failed}
            writer.append(vectors.numpy(), [key for _, key, _ in good], said, thumbs, unreadable=names,
                          dropped=[known[key][0] for _, key, _ in part if key in known])
            done.changed += sum(key in known for _, key, _ in good)
            done.new += sum(key not in known for _, key, _ in good)
            done.unreadable += len(failed)
            if done.unreadable > allowed:
                listed = _listed(writer.header["unreadable"], items.spec, 5)
                raise NotanError(f"{done.unreadable:,} of {len(items):,} rows of {items.spec} cannot be read: {listed}",
                                 f"at most {allowed:,} ({limit:.1%})", "repair or remove them, or raise --limit-bad")
    return done


@dataclass
class Count:
    """How far it is, shown as it grows."""

    done: int
    total: int
    show: Callable[[int, int], None]

    def __call__(self, more: int) -> None:
        self.done += more
        self.show(self.done, self.total)


def _listed(unreadable: dict[str, list[str]], spec: str, most: int) -> str:
    """The first rows of this data that cannot be read, and why."""
    said = [f"{name} ({reason})" for _, name, reason, source in unreadable.values() if source == spec]
    return "; ".join(said[:most] + ["..."] * (len(said) > most))


Read = tuple[Tensor, list[bytes], dict[int, str]]                       # vectors, thumbnails, and why some items have none


def _pictures(space: Space, items: Items, index: list[int], form: Form, batch: int, pool: ThreadPoolExecutor,
              advance: Count) -> Read:
    assert space.pictures is not None
    parts, thumbs, failed = [], [], {}

    def one(i: int) -> tuple[np.ndarray, bytes] | str:
        try:
            return decode_and_show(items.picture(i), form, THUMB)
        except Exception as error:
            return why(error)

    found = ahead(pool, one, index, 2 * batch)
    for start in range(0, len(index), batch):
        pixels = []
        for i in index[start : start + batch]:
            got = next(found)
            if isinstance(got, str):
                failed[i] = got
            else:
                pixels.append(got[0])
                thumbs.append(got[1])
        if pixels:
            parts.append(space.pictures(torch.from_numpy(np.stack(pixels))))
        advance(len(index[start : start + batch]))
    return _joined(parts), thumbs, failed


def _texts(space: Space, items: Items, index: list[int], form: Form, batch: int, pool: Any, advance: Count) -> Read:
    """Long texts beside long ones: a batch is as wide as its longest."""
    assert space.texts is not None
    texts = {i: items.text(i) for i in index}
    failed = {i: "the text is blank" for i in index if not texts[i].strip()}
    good = [i for i in index if i not in failed]
    order, parts = sorted(good, key=lambda i: len(texts[i])), []
    for start in range(0, len(order), batch):
        parts.append(space.texts([texts[i] for i in order[start : start + batch]]))
        advance(len(order[start : start + batch]))
    place = {i: k for k, i in enumerate(order)}
    vectors = _joined(parts)
    advance(len(failed))
    return (vectors[[place[i] for i in good]] if good else vectors), [], failed


def _numbers(space: Space, items: Items, index: list[int], form: Form, batch: int, pool: Any,
             advance: Count) -> Read:
    assert space.numbers is not None
    parts, start = [], 0
    while start < len(index):
        here = [i for i in index[start : start + batch] if items.at(i)[0] is items.at(index[start])[0]]
        parts.append(space.numbers(items.batch(here)))
        start += len(here)
        advance(len(here))
    return _joined(parts), [], {}


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, 0)


def ahead(pool: ThreadPoolExecutor, work: Callable[[int], Any], index: Iterable[int], most: int) -> Iterator[Any]:
    """Results in order, with at most `most` of them waiting or under way."""
    waiting: deque[Any] = deque()
    for i in index:
        waiting.append(pool.submit(work, i))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def bar(console: Any, name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, advance(done, total), where there is a terminal, and nothing where there is none."""
    if console is None or not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                  transient=True) as shown:
        task = shown.add_task(name, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
