"""Plans: which of a table's columns become ours, and what their cells become."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from notan.data.columns import COLUMNS, rename
from notan.errors import NotanError

ABOUT = {"label", "target", "group", "attributes", "picture_id"}  # columns that say something of a row, but are not the row


def plan_of(
    name: str, found: Sequence[str], numeric: Sequence[str], columns: Mapping[str, str] | None
) -> tuple[dict[str, list[str]], list[str]]:
    """{ours: [theirs, ...]} for the table `name` with the columns `found`, and notes.

    In a table with nothing but numbers, all `numeric` columns that have no other use become `features`. Raises
    NotanError for columns that are not there, and when there is nothing to learn from.
    """
    plan = rename(list(found), columns)
    if not set(plan) - ABOUT:
        used = {theirs for sources in plan.values() for theirs in sources} | set(columns or {})
        free = [column for column in numeric if column not in used]
        plan |= {"features": free} if free else {}
    if not set(plan) - ABOUT:
        raise NotanError(
            f"{name} has the columns {', '.join(found)}, none of which Notan knows",
            f"one of {', '.join(c for c in COLUMNS if not COLUMNS[c].light)}",
            "say what a column is: --column theirs=image (or text, features, ...)",
        )
    unused = sorted(set(found) - {theirs for sources in plan.values() for theirs in sources})
    notes = [f"Columns not used: {', '.join(unused)} (--column {unused[0]}=NAME says what one is)."] if unused else []
    return {ours: plan[ours] for ours in COLUMNS if ours in plan}, notes


@dataclass(frozen=True)
class Plan:
    """How cells of a table that is streamed become ours. `ours` raises NotanError for cells that cannot."""

    sources: Mapping[str, Sequence[str]]  # ours -> theirs
    base: str = ""  # where relative paths of pictures start
    codes: Mapping[Any, int] | None = None  # label -> class number; None: labels stay as they are

    @property
    def theirs(self) -> list[str]:
        return list(dict.fromkeys(theirs for sources in self.sources.values() for theirs in sources))

    def ours(self, cells: Mapping[str, list[Any]]) -> dict[str, Any]:
        """{theirs: cells of some rows} -> {ours: values}; pictures stay encoded."""
        out: dict[str, Any] = {}
        for ours, theirs in self.sources.items():
            columns = [cells[name] for name in theirs]
            if COLUMNS[ours].picture:
                out[ours] = [self._placed(cell) for cell in columns[0]]
            elif ours == "label":
                out[ours] = columns[0] if self.codes is None else [self._code(cell) for cell in columns[0]]
            else:
                out[ours] = values_of(ours, theirs[0], columns)
                COLUMNS[ours].check(ours, out[ours])
        return out

    def _placed(self, cell: Any) -> Any:
        """Bytes, or a whole path, also out of {"bytes", "path"}."""
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        return os.path.join(self.base, cell) if isinstance(cell, str) and "://" not in cell else cell

    def _code(self, cell: Any) -> int:
        try:
            return self.codes[cell]  # type: ignore[index]
        except (KeyError, TypeError):
            raise NotanError(f"a label is {cell!r}", "a class that was there when the data was opened, in every row",
                             "fill or remove these rows, or leave the column out with --column label=") from None  # fmt: skip


def values_of(ours: str, name: str, columns: list[list[Any]]) -> Any:
    """Cells of the columns (the first is called `name`) that feed `ours`, as a list or an array of its values."""
    if ours == "captions":
        if len(columns) == 1 and len(columns[0]) and all(isinstance(cell, str) for cell in columns[0]):
            raise NotanError(f"column {name!r} has a single text in every row", "a list of at least one string in every row",
                             f"for one text a row: --column {name}=text")  # fmt: skip
        return columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns)]
    if COLUMNS[ours].dtype == "str" or COLUMNS[ours].padded:
        return columns[0]
    try:
        found = [np.array([np.nan if v is None else v for v in column], dtype=np.float64) for column in columns]
    except (ValueError, TypeError) as error:
        raise NotanError(f"column {name!r} cannot become {ours!r} ({error})", COLUMNS[ours].shape) from error
    if ours in ("features", "attributes"):
        return np.concatenate([x.reshape(len(x), -1) for x in found], axis=1).astype(np.float32)
    return found[0]
