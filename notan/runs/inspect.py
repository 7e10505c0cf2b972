"""`notan inspect`: what a paper's measure says of a model, on the user's rows."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from notan import catalogue
from notan.data import Rows, keys, open_data
from notan.errors import NotanError, check_between
from notan.nets.build import build_dual
from notan.nets.protocols import DualEncoder
from notan.runs.checkpoint import read_text, write_text
from notan.runs.embed import Encode, data_of, encoding, side_of
from notan.runs.folder import Run
from notan.runs.reader import load


def inspect(name: str, model: str | Path | Any, data: str | Path | None = None, *, tokenizer: Any = None,
            out: str | Path | None = None, rows: int = 2_000, tokens: int = 512, settings: dict[str, Any] | None = None,
            data_options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the inspector finds: numbers, lists of numbers, and figures by name.

    model: what it asks for: a language model by name, folder, .gguf file or loaded (then with its `tokenizer`); a run, an
    encoder folder, "hf:NAME" or a module with `features`; two encoders with a joint space in any of these forms; or a run, for
    what its method has. data: what `open_data` takes, or a .txt file with a text a line; where None what a run was trained on;
    at most `rows` of its rows, chosen by key, and `tokens` tokens of a text. With `out`, a folder, numbers are written to
    NAME.json there and figures to NAME-FIGURE.png.

    Raises `NotanError` for an unknown inspector, data without the columns it needs, and what `open_data` and models raise.
    """
    check_between(1, math.inf, rows=rows, tokens=tokens)
    entry = catalogue.inspector(name)
    if unknown := set(settings or {}) - {f.name for f in entry.flags}:
        raise NotanError(f"{name} has no setting {min(unknown)!r}", f"one of {[f.name for f in entry.flags]}", "leave it out")
    measure = importlib.import_module(f"notan.inspectors.{name}").measure
    named, options = data_of(model, None if data is None else str(data), data_options)
    if entry.card["asks"] != "states" and options.get("cache_side") is None:
        options["cache_side"] = side_of(model)                          # pictures as the encoder reads them
    batches = batches_of(str(named), entry, rows, options)
    asks = {"states": lambda: Reading(*load(model, tokenizer), tokens), "encode": lambda: Encoding(encoding(model)),
            "dual": lambda: two_encoders(model), "method": lambda: Run(model).method()}
    found = measure(asks[entry.card["asks"]](), batches, **(settings or {}))
    if out is not None:
        _write(found, Path(out), name)
    return found


class Reading(nn.Module):
    """A causal language model as inspectors see it: `states` of a batch of texts, of each at most `most` tokens."""

    def __init__(self, model: Any, tokenizer: Any, most: int) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or most
        self.most = min(most, room)

    def states(self, batch: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        read = self.tokenizer(batch["text"], return_tensors="pt", padding=True, padding_side="right", truncation=True,
                              max_length=self.most).to(self.model.device)
        if not read["input_ids"].shape[1]:
            raise NotanError(f"{len(batch['text'])} texts in a row have no tokens", "texts", "leave empty rows out")
        out = self.model.base_model(input_ids=read["input_ids"], attention_mask=read["attention_mask"], output_hidden_states=True)
        return [*out.hidden_states[:-1], out.last_hidden_state], read["attention_mask"].bool()


def two_encoders(model: Any) -> DualEncoder:
    """A dual encoder of a run, a folder or "hf:NAME", or as it is, where it runs. Raises `NotanError` for what is none."""
    found: Any = build_dual(str(model)) if isinstance(model, (str, Path)) else model
    if not isinstance(found, DualEncoder):
        raise NotanError(f"a {type(found).__name__} was given", "two encoders with a joint space", "a run of clip, or hf:NAME")
    return found.to("cuda" if torch.cuda.is_available() else "cpu")     # type: ignore[attr-defined]


@dataclass
class Encoding:
    """An encoder as inspectors see it."""

    encode: Encode


@dataclass
class Batches:
    """Some rows of some splits, `size` at a time, each with its key; the same ones every time."""

    parts: Sequence[tuple[Rows, Any]]                                   # rows and the places taken
    size: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows, index in self.parts:
            for start in range(0, len(index), self.size):
                batch = rows.take(index[start: start + self.size])
                yield batch | {"key": torch.from_numpy(keys.row_keys(0, 0, batch["row"].numpy()))}


def batches_of(data: str | Path, entry: catalogue.Entry, most: int, options: dict[str, Any]) -> Batches:
    """At most `most` rows: of encoders' data the test split's, of texts any (nothing here was trained on them)."""
    texts = entry.card["needs"] == ["text"]
    if str(data).endswith(".txt"):
        splits = [Rows({"text": _texts(Path(data))})]
    else:
        opened = open_data(data, **options)
        splits = [opened.train, opened.test] if texts else [opened.test]
    if missing := entry.lacking(splits[0].columns):
        raise NotanError(f"{data} has no column {missing[0]!r}, only {', '.join(splits[0].columns)}",
                         f"the columns {', '.join(entry.card['needs'])}", f"--column THEIRS={missing[0].split(' or ')[0]}")
    parts, left = [], most
    for rows in splits:
        index = keys.shuffle(0, 0, len(rows))[:left]
        parts.append((rows, index))
        left -= len(index)
    return Batches(parts, 16 if texts else 256)


def _texts(path: Path) -> list[str]:
    texts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not texts:
        raise NotanError(f"{path} is empty", "a text on each line")
    return texts


def _write(found: dict[str, Any], out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    numbers = {key: value for key, value in found.items() if isinstance(value, (int, float, list))}
    write_text(out / f"{name}.json", json.dumps(numbers, indent=2) + "\n")
    for key in found.keys() - numbers.keys():
        found[key].savefig(out / f"{name}-{key.replace(' ', '-')}.png", dpi=150)


def print_found(name: str, found: dict[str, Any], out: Path, console: Any) -> None:
    """The numbers as a table, and where they and the figures are."""
    from rich.table import Table

    table = Table(title=name, title_justify="left", show_header=False)
    for key, value in found.items():
        if isinstance(value, (int, float, list)):
            table.add_row(key, " ".join(_said(v) for v in value) if isinstance(value, list) else _said(value))
    console.print(table)
    console.print(f"numbers and figures: {out}", soft_wrap=True)


def _said(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
