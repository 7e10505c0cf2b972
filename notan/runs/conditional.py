"""`notan probe --protocol conditional`: does an encoder find what it is asked for, and only that?

For each instruction the test pictures are encoded under it, queries and gallery alike, and each looks for those with the same
answer. Beside it stands what the same rows give under another instruction, and under none: an encoder that ignores what it is
asked gives the same three times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from notan.data import Data, keys
from notan.data.instructions import plain
from notan.errors import NotanError
from notan.probes.conditional import same_value
from notan.probes.features import extract
from notan.probes.protocol import Protocol
from notan.runs.study import check_pictures
from notan.runs.watch import probed

LEAST, MOST = 20, 24                                                    # rows of an instruction, and instructions


class Asked(NamedTuple):
    """An instruction, the rows that it is asked of (N,), the value of each, int64 (N,), and another instruction."""

    instruction: str
    rows: np.ndarray
    values: np.ndarray
    other: str


def conditional(encode: Callable[[dict[str, Any]], Any], data: Data, rows: int,
                instructions: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Results by instruction, and the mean over them; at most `rows` rows of the test split, chosen by key.

    Data with `instruction` and `answer` brings its instructions, the most frequent ones. Of data with `attributes`, or a label,
    `instructions` are one for each. A result is `same_value`'s with `wrong` and `without`, scaled as `scaled` is.
    """
    check_pictures(data)
    index = np.sort(keys.shuffle(0, 0, len(data.test))[:rows])
    triples = not instructions and {"instruction", "answer"} <= {*data.info.columns}
    asked = _of_triples(data, index) if triples else _of_values(data, index, instructions)
    kept: dict[str | None, Tensor] | None = None if triples else {}      # triples ask each instruction of rows of its own
    found = {one.instruction: _measured(encode, data, one, kept) for one in asked}
    if len(found) == 1:
        return found
    names = ("map", "scaled", "wrong", "without", "chance")
    every = {name: float(np.mean([r[name] for r in found.values()])) for name in names}
    n = sum(r["n"] for r in found.values())
    protocol = Protocol(f"mean over {len(found)} instructions", "the test split", 0, n)
    return {**found, "all instructions": {**every, "n": n, "protocol": protocol}}


def _measured(encode: Callable[[dict[str, Any]], Any], data: Data, asked: Asked,
              kept: dict[str | None, Tensor] | None) -> dict[str, Any]:
    def features(instruction: str | None) -> Tensor:
        if kept is not None and instruction in kept:
            return kept[instruction]

        def one(batch: dict[str, Any]) -> Tensor:
            words = {} if instruction is None else {"instruction": [instruction] * len(batch["image"])}
            return probed(encode({**batch, **words}))

        z = extract(one, data.test.only("image"), asked.rows)
        if kept is not None:
            kept[instruction] = z
        return z

    values = torch.from_numpy(asked.values)
    found = same_value(features(asked.instruction), values, notes=f"another instruction: {asked.other!r}")
    wrong, without = (same_value(features(instruction), values)["scaled"] for instruction in (asked.other, None))
    return {**found, "wrong": wrong, "without": without}


def _of_triples(data: Data, index: np.ndarray) -> list[Asked]:
    """The instructions that most rows have. The other one of each is that with which it shares the fewest answers."""
    said = data.test.only("instruction", "answer").take(index)
    texts, answers = np.array(said["instruction"], dtype=object), np.array([plain(a) for a in said["answer"]], dtype=object)
    chosen: dict[str, tuple[np.ndarray, np.ndarray, set[str]]] = {}
    for text, count in Counter(texts).most_common():
        here = texts == text
        names, values, counts = np.unique(answers[here].astype(str), return_inverse=True, return_counts=True)
        if count >= LEAST and len(names) > 1 and counts.max() > 1 and len(chosen) < MOST:
            chosen[text] = index[here], values.astype(np.int64), set(names)
    if len(chosen) < 2:
        raise NotanError(f"{data.info.name} has {len(chosen)} instructions that {LEAST} of {len(index):,} test rows have, with "
                         "answers that repeat", "two or more",
                         "data with fewer instructions, more --rows, or attributes with --instruction")

    def shared(a: str, b: str) -> float:
        return len(chosen[a][2] & chosen[b][2]) / len(chosen[a][2] | chosen[b][2])

    return [Asked(text, rows, values, min((o for o in chosen if o != text), key=lambda o: shared(text, o)))
            for text, (rows, values, _) in chosen.items()]


def _of_values(data: Data, index: np.ndarray, instructions: Sequence[str]) -> list[Asked]:
    """An instruction for each attribute, or wordings for the label. The other one is the next attribute's, or an empty one."""
    if "attributes" in data.info.columns:
        values = data.test.values("attributes")[index]
        if len(instructions) != values.shape[1]:
            raise NotanError(f"{len(instructions)} instructions for {values.shape[1]} attributes", "one for each, in their order",
                             "--instruction 'which colour is it?' --instruction ...")
    elif "label" in data.info.columns and instructions:
        values = np.repeat(data.test.values("label")[index][:, None], len(instructions), 1)
    else:
        raise NotanError(f"{data.info.name} has the columns {', '.join(data.info.columns)}",
                         "instruction and answer, or attributes or a label with --instruction", "--column THEIRS=instruction")
    several = "attributes" in data.info.columns and len(instructions) > 1
    others = [*instructions[1:], instructions[0]] if several else [""] * len(instructions)
    return [Asked(text, index, column.astype(np.int64), other) for text, column, other in zip(instructions, values.T, others)]
