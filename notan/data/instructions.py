"""Pictures with instructions and answers: made of labels and attributes, or read from conversations about pictures.

    python -m notan.data.instructions --data DATA --questions FILE.json --out FOLDER
    python -m notan.data.instructions --conversations FILE.json --images FOLDER --out TRIPLES.jsonl

The first asks about the pictures of any data with `attributes` or labels; FILE.json holds one object for each attribute,
{"asked": ["which colour is it?", ...], "answers": ["red", "green", ...]}. The second reads the layout of LLaVA's instruction data
(Liu et al. 2023, arXiv 2304.08485). What they write is data to train on: --data FOLDER, or --data TRIPLES.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from notan.data import keys
from notan.data.table import Data, Rows
from notan.errors import NotanError


class Question(NamedTuple):
    """What can be asked of a picture: wordings, and the answer for each value. A value below 0, or whose answer is "", has none.

    Without answers they are the names of the data's classes.
    """

    asked: tuple[str, ...]
    answers: tuple[str, ...] = ()


class Triples(NamedTuple):
    """picture, question int64 (T,): which picture and which question; the instruction and the answer in words."""

    picture: np.ndarray
    question: np.ndarray
    instruction: list[str]
    answer: list[str]


def plain(text: str) -> str:
    """A text in lower case without punctuation and with single spaces: two answers are the same when these are equal."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split()) or text.strip()


def triples(values: np.ndarray, questions: Sequence[Question], *, each: int | None = None, seed: int = 0) -> Triples:
    """Up to `each` questions of each picture (all by default) whose values (N, Q) are known, in a chance order and wording.

    A function of (seed, row of values). Raises `NotanError` for values without an answer, and a question without a wording.
    """
    if values.ndim != 2 or values.shape[1] != len(questions):
        raise NotanError(f"values of shape {values.shape} for {len(questions)} questions", "a column for each question")
    for n, (column, question) in enumerate(zip(values.T, questions)):
        if not question.asked:
            raise NotanError(f"question {n} has no wording", 'at least one, e.g. "asked": ["which colour is it?"]')
        if column.max(initial=-1) >= len(question.answers):
            raise NotanError(f"question {n} ({question.asked[0]!r}) has {len(question.answers)} answers, the values go up to "
                             f"{int(column.max())}", "an answer for every value", 'an empty one ("") leaves a value out')
    values, said = np.maximum(values, -1), [[*question.answers, ""] for question in questions]              # unknown: ""
    known = np.stack([np.array(names, dtype=object)[column] != "" for names, column in zip(said, values.T)], 1)     # (N, Q)
    key = keys.fold(keys.fold(keys.word("question"), seed), np.arange(len(values)))[:, None]
    key = keys.fold(key, np.arange(len(questions)))                     # (N, Q)
    order = np.argsort(np.where(known, key, np.iinfo(np.int64).max), axis=1, kind="stable")
    asked = np.take_along_axis(known, order, 1) & (np.arange(len(questions)) < (each or len(questions)))
    picture, place = np.nonzero(asked)
    which = order[picture, place]
    wording = keys.fold(key, keys.word("wording"))[picture, which].view(np.uint64)
    return Triples(picture.astype(np.int64), which.astype(np.int64),
                   [questions[q].asked[int(w % np.uint64(len(questions[q].asked)))] for q, w in zip(which.tolist(), wording)],
                   [said[q][v] for q, v in zip(which.tolist(), values[picture, which].tolist())])


def instructed(data: Data, questions: Sequence[Question], *, test: Sequence[Question] | None = None, each: int | None = None,
               seed: int = 0) -> Data:
    """The same pictures once for each question: rows with `image`, `instruction`, `answer`, `picture_id`, and `label` if any.

    There is a question for each column of `attributes`, or one, about the label. `test`: other wordings for the test split.
    Pictures are not copied. Raises `NotanError` for data without pictures, or with another number of attributes.
    """
    if "image" not in data.info.columns or data.streamed is not None:
        raise NotanError(f"{data.info.name} has {', '.join(data.info.columns)}" + (", streamed" if data.streamed else ""),
                         "pictures, not streamed", "a folder or a table with pictures, without --stream")
    of = _asked_of(data, len(questions))
    digest = hashlib.blake2b(f"{data.fingerprint} {of} {questions} {test} {each} {seed}".encode(), digest_size=8)

    def asked(rows: Rows, words: Sequence[Question]) -> Rows:
        if of == "label":
            words = [q if q.answers else q._replace(answers=data.info.classes) for q in words]
        return _rows(rows, triples(rows.values(of).reshape(len(rows), -1), words, each=each, seed=seed))

    train, held_out = asked(data.train, questions), asked(data.test, test or questions)
    note = (f"{len(train):,} questions about {len(data.train):,} training pictures, {len(held_out):,} about "
            f"{len(data.test):,}.")
    info = replace(data.info, name=f"{data.info.name}, asked", rows=len(train), columns=train.columns,
                   notes=f"{data.info.notes} {note}".strip())
    return Data(train, held_out, info, digest.hexdigest(), [*data.notes, note])


def _asked_of(data: Data, questions: int) -> str:
    """The column that so many questions are about."""
    wide = data.train.values("attributes").shape[1] if "attributes" in data.info.columns else 0
    if questions == wide:
        return "attributes"
    if questions == 1 and "label" in data.info.columns:
        return "label"
    raise NotanError(f"{questions} questions for {data.info.name}, which has {wide} attributes and "
                     f"{'a label' if 'label' in data.info.columns else 'no label'}",
                     "a question for each attribute, or one about the label", "name columns with --column THEIRS=attributes")


class Again:
    """A store that gives rows of another one, some of them several times."""

    def __init__(self, store: Any, index: np.ndarray) -> None:
        self.store, self.index = store, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: np.ndarray) -> Any:
        where = self.index[index]
        return [self.store[i] for i in where] if isinstance(self.store, list) else self.store[where]


def _rows(rows: Rows, found: Triples) -> Rows:
    """Of a split's rows those that are asked about, in a row for each question."""
    where = found.picture if rows.index is None else rows.index[found.picture]
    stores: dict[str, Any] = {"image": Again(rows.stores["image"], where), "instruction": found.instruction,
                              "answer": found.answer, "picture_id": found.picture}
    if "label" in rows.columns:
        stores["label"] = np.asarray(rows.stores["label"])[where]
    return Rows(stores, None, lambda row: rows.name_of(int(where[row])))


# ------------------------------------------------------------------------------------------------------------ on the disk

def write(data: Data, folder: str | Path) -> Path:
    """Data with instructions as a folder to train on: pictures (PNG) and a metadata.jsonl in train/ and in test/."""
    from PIL import Image

    folder = Path(folder)
    for split, rows in (("train", data.train), ("test", data.test)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        ids, words = rows.values("picture_id"), rows.only("instruction", "answer")
        for i in np.unique(ids, return_index=True)[1]:
            pixels = rows.only("image").take(np.array([i]))["image"][0].permute(1, 2, 0).numpy()
            Image.fromarray(pixels.squeeze()).save(folder / split / f"{ids[i]}.png")
        said = words.take(np.arange(len(rows)))
        _write_lines(folder / split / "metadata.jsonl", [            # paths are read from where the training rows are
            {"image": f"../{split}/{i}.png", "instruction": asked, "answer": answer}
            for i, asked, answer in zip(ids, said["instruction"], said["answer"])])
    return folder


def conversations(path: str | Path, images: str | Path | None = None) -> tuple[list[dict[str, str]], str]:
    """The turns of LLaVA's layout as rows of `image`, `instruction`, `answer`, and a note on what was left out.

    path: JSON, a list of {"image": FILE, "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt",
    "value": ...}, ...]}. images: the folder that FILE is relative to, by default that of path. Entries without a picture, and
    turns without a question or an answer, are left out and counted; pictures that do not exist are counted. Raises `NotanError`
    for what is not of this layout.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NotanError(f"{path} cannot be read as JSON ({error})", "a list of conversations", "check the path") from None
    if not isinstance(entries, list):
        raise NotanError(f"{path} holds a {type(entries).__name__}", "a list of conversations")
    base, rows, without, empty = Path(images or path.parent), [], 0, 0
    for n, entry in enumerate(entries):
        try:
            turns = [(turn["from"], turn["value"].replace("<image>", " ").strip()) for turn in entry["conversations"]]
        except (TypeError, KeyError, AttributeError):
            raise NotanError(f"entry {n} of {path.name} has no list `conversations` of turns with `from` and `value`",
                             '{"image": ..., "conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}') from None
        if not entry.get("image"):
            without += 1
            continue
        pairs = [(asked, said) for (who, asked), (then, said) in pairwise(turns) if (who, then) == ("human", "gpt")]
        found = [(asked, said) for asked, said in pairs if asked and said]
        empty += len(pairs) - len(found)
        rows += [{"image": str(base / entry["image"]), "instruction": asked, "answer": said} for asked, said in found]
    if not rows:
        raise NotanError(f"{path} has {len(entries):,} entries and no turn about a picture",
                         "turns of human and gpt, with `image`")
    shown = dict.fromkeys(row["image"] for row in rows)
    absent = [place for place in shown if not os.path.exists(place)]
    missing = f" {len(absent):,} of these pictures do not exist (first: {absent[0]}): is --images right?" if absent else ""
    return rows, (f"{len(rows):,} turns about {len(shown):,} pictures; left out: {without:,} entries without a picture, "
                  f"{empty:,} empty turns.{missing}")


def _write_lines(path: Path, rows: Sequence[dict[str, str]]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    try:
        _made(argv)
    except NotanError as error:
        sys.exit(f"notan: {error}")                                     # status 1


def _made(argv: Sequence[str] | None) -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--data", help="pictures with attributes or labels: anything that `notan train --data` takes")
    p.add_argument("--column", action="append", default=[], metavar="THEIRS=OURS", help="rename a column, e.g. kind=label")
    p.add_argument("--questions", type=Path, help="JSON: a list of {asked, answers}, one for each attribute")
    p.add_argument("--each", type=int, help="questions of each picture (default: all)")
    p.add_argument("--conversations", type=Path, help="JSON in the layout of LLaVA's instruction data")
    p.add_argument("--images", type=Path, help="the folder of its pictures (default: its own)")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    if args.conversations:
        rows, note = conversations(args.conversations, args.images)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(args.out, [row | {"image": os.path.relpath(row["image"], args.out.parent)} for row in rows])
        print(f"{args.out}: {note}")
        return
    if not (args.data and args.questions):
        p.error("either --conversations, or --data and --questions")
    from notan.data.columns import renames
    from notan.data.open import open_data

    data = open_data(args.data, columns=renames(args.column))
    made = instructed(data, read_questions(args.questions), each=args.each)
    print(f"{write(made, args.out)}: {made.notes[-1]}")


def read_questions(path: Path) -> list[Question]:
    """Questions from JSON: a list of {"asked": [...], "answers": [...]}. Raises `NotanError` for another layout."""
    try:
        return [Question(tuple(q["asked"]), tuple(q.get("answers", ()))) for q in json.loads(path.read_text())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotanError(f"{path} holds no questions ({type(error).__name__}: {error})",
                         '[{"asked": ["which colour is it?"], "answers": ["red", "green"]}, ...]') from None


if __name__ == "__main__":
    main()
