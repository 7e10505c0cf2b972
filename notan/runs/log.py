"""What a run says while it goes: metrics.jsonl, TensorBoard, and one live line on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from notan import world
from notan.runs.checkpoint import full_disk_explained, write_text

Log = Callable[[dict[str, Any]], None]


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics.jsonl; a last line that was torn off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Teller:
    """Collects the terms of steps without waiting for the device, and tells their means when asked. Rank 0 speaks."""

    def __init__(self, folder: Path, *, start: int, steps: int, batch: int, seconds: float, title: str, console: Any,
                 log: Log | None) -> None:
        """`start` and `seconds` are the saved step and time; later records are of a lost part of the run, and cut."""
        self.steps, self._batch, self._before, self._log, self._title = steps, batch, seconds, log, title
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._began = self._told = time.perf_counter()
        self._files = world.is_main()
        if not self._files:
            return
        path = folder / "metrics.jsonl"
        kept = [r for r in read(path) if r["step"] <= start and "seconds_in_all" not in r]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._path, self._file, self._board = path, path.open("a"), _board(folder / "tensorboard", start)
        self._bar, self._task, self._console = _bar(console, title, steps, start)

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._before + time.perf_counter() - self._began

    def add(self, terms: dict[str, Tensor]) -> None:
        """The scalar terms of one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def tell(self, step: int, rate: float, more: dict[str, float]) -> None:
        """A record after `step` steps: the means since the last one, the rate, the speed, and `more`."""
        if not self._count:
            return
        now = time.perf_counter()
        means = (torch.stack([v.double() for v in self._sums.values()]) / self._count).tolist()
        self._write({"step": step, **dict(zip(self._sums, means)), "lr": rate, **more,
                     "rows_per_s": self._count * self._batch / (now - self._told), "seconds": self.seconds})
        self._sums, self._count, self._told = {}, 0, now

    def alarm(self, step: int, kind: str, message: str) -> None:
        self._write({"step": step, "alarm": kind, "message": message})

    def end(self, record: dict[str, Any]) -> None:
        """The last record of a finished run."""
        self._write({"step": self.steps, **record, "seconds_in_all": self.seconds})

    def close(self) -> None:
        if self._files:
            self._bar.stop()
            self._file.close()
            if self._board is not None:
                self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        if not self._files:
            return
        with full_disk_explained(self._path.parent):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        for name, value in record.items():
            if self._board is not None and isinstance(value, float):
                self._board.add_scalar(name, value, record["step"])
        self._show(record)
        if self._log is not None:
            self._log(record)

    def _show(self, record: dict[str, Any]) -> None:
        if "alarm" in record:
            text = f"{self._title}, step {record['step']}: {record['alarm']}: {record['message']}"
            self._console.print(text, style="yellow", highlight=False, markup=False)
        forms = {"loss": "loss {:.4f}", "probe_accuracy": "probe {:.3f}", "probe_r2": "probe R² {:.3f}",
                 "rows_per_s": "{:.0f} rows/s"}
        text = "  ".join(form.format(record[k]) for k, form in forms.items() if k in record)
        self._bar.update(self._task, completed=record["step"], **({"text": text} if text else {}))


class Profile:
    """Seconds spent in each part of the loop."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _bar(console: Any, title: str, steps: int, start: int) -> tuple[Any, Any, Any]:
    """A progress bar where there is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[text]}"), console=console, transient=True, refresh_per_second=4,
                   disable=not console.is_terminal)
    task = bar.add_task(title, total=steps, completed=start, text="")
    bar.start()
    return bar, task, console
