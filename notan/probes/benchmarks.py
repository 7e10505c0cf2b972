"""Readers of the files that benchmarks come as: one function a file format, path to a list of small records.

TruthfulQA (Lin et al. 2022, arXiv 2109.07958), FACTOR (Muhlgay et al. 2024, arXiv 2307.06908), POPE (Li et al. 2023, arXiv
2305.10355), MME (Fu et al. 2023, arXiv 2306.13394), HaluEval (Li et al. 2023, arXiv 2305.11747), and a format of our own for
yes/no questions with a leading form. The files themselves are the user's to fetch.

A benchmark with a question missing is another number, so nothing is skipped but empty lines: what cannot be read raises
`NotanError` with the file, the line, what was seen and what was wanted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notan.errors import NotanError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class Choice:
    """A text, and true and false ways to go on from it, letter by letter as a model should read them; `best` is a place in
    `true`."""

    prompt: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    best: int = 0


@dataclass(frozen=True)
class YesNo:
    """A question about a picture (its name in the file, "" for none) and whether yes is right. leading: the same question
    with a hint at an answer. task: the part of the benchmark."""

    image: str
    query: str
    answer: bool
    leading: str = ""
    task: str = ""


@dataclass(frozen=True)
class Invented:
    """A question about a passage with the right answer and a made-up one."""

    knowledge: str
    question: str
    right: str
    invented: str


def truthfulqa(path: str | Path, before: str = "") -> list[Choice]:
    """The csv of TruthfulQA: columns Question, Best Answer, Correct Answers and Incorrect Answers, parted by semicolons.

    Answers end in a period and start with a space, after "Q: ...\\nA:", as in the official question-answer prompt; a best
    answer that is not among the correct ones is put before them. before: what the prompt starts with. The official
    preset is six questions with their answers, and DoLa and ICD put an instruction before these: we hold no copy of
    either, and figures are comparable with published ones only with the same text here.
    """
    wanted = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
    found = []
    for where, row in _csv(Path(path), wanted):
        best = _references(row["Best Answer"])
        true, false = _references(row["Correct Answers"]), _references(row["Incorrect Answers"])
        if len(best) != 1 or not true or not false:
            raise NotanError(f"{where} has {len(best)} best, {len(true)} correct and {len(false)} incorrect answers",
                             "one best, and at least one of the others", "repair the line")
        true = true if best[0] in true else [*best, *true]
        start = f"{before.rstrip()}\n\n" if before.strip() else ""
        found.append(Choice(f"{start}Q: {row['Question'].strip()}\nA:", tuple(f" {a}" for a in true),
                            tuple(f" {a}" for a in false), true.index(best[0])))
    return found


def factor(path: str | Path, column: str = "turncated_prefixes") -> list[Choice]:
    """A csv of FACTOR: a prefix, the true completion, and contradiction_0 to contradiction_2.

    column: the prefix. The official script reads the shortened one (its name is misspelt in the files), DoLa's reads
    "full_prefix" for the news part. As officially, a space at the prefix's end goes to the completions, and without one
    they follow at once; DoLa's script puts a space in either case.
    """
    false = tuple(f"contradiction_{i}" for i in range(3))
    found = []
    for _, row in _csv(Path(path), (column, "completion", *false)):
        prefix = row[column]
        space = " " if prefix.endswith(" ") else ""
        found.append(Choice(prefix.removesuffix(space), (space + row["completion"].lstrip(" "),),
                            tuple(space + row[name].lstrip(" ") for name in false)))
    return found


def pope(path: str | Path) -> list[YesNo]:
    """A file of POPE, JSON lines or one JSON array: image, text, label (yes or no)."""
    return [YesNo(row["image"], row["text"], _yes(row["label"], where))
            for where, row in _json(Path(path), ("image", "text", "label"))]


def leading(path: str | Path) -> list[YesNo]:
    """A file of ours, JSON lines or one array: {"image": name or null, "query": ..., "leading": ..., "answer": "yes" or "no"}."""
    return [YesNo(row["image"], row["query"], _yes(row["answer"], where), row["leading"])
            for where, row in _json(Path(path), ("image", "query", "leading", "answer"), ("image",))]


def prompts(path: str | Path) -> list[tuple[str, str]]:
    """A file of ours, JSON lines or one array: {"prompt": ...} and perhaps {"image": name}: text and name, "" for none."""
    return [(row["prompt"], str(row.get("image") or "")) for _, row in _json(Path(path), ("prompt",))]


def halueval(path: str | Path) -> list[Invented]:
    """The questions of HaluEval (qa_data.json), JSON lines: knowledge, question, right_answer, hallucinated_answer."""
    names = ("knowledge", "question", "right_answer", "hallucinated_answer")
    return [Invented(*(row[name] for name in names)) for _, row in _json(Path(path), names)]


def mme(path: str | Path) -> list[YesNo]:
    """MME, in all the forms that it is handed around in: a folder with a folder for each task, or a text file for each task.

    A line of a task's file is image, question and answer (and perhaps a model's), parted by tabs: image is the name
    there. A folder has a text file for each picture, of lines question and answer, beside the picture or in
    questions_answers_YN/ beside images/: image is the picture's path.
    """
    path = Path(path)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise NotanError(f"{path} has no text files", "MME's folder, or a task's .txt")
    found = []
    for file in files:
        for where, line in _lines(file):
            cells = [cell.strip() for cell in line.split("\t")]
            if not 2 <= len(cells) <= 4 or not all(cells[:3]):
                raise NotanError(f"{where} has {len(cells)} cells: {line[:60]!r}", "question and answer, or image, question and "
                                 "answer, parted by tabs", "repair the line")
            image, query, answer, task = (*cells[:3], file.stem) if len(cells) > 2 else (_picture(file), *cells, _task(file))
            found.append(YesNo(image, query, _yes(answer, where), task=task))
    return found


def _references(cell: str) -> list[str]:
    """Answers parted by semicolons, each with a period at its end."""
    answers = [a.strip() for a in cell.split(";")]
    return [a if a.endswith(".") else f"{a}." for a in answers if a]


def _yes(word: str, where: str) -> bool:
    if word.strip().lower() not in ("yes", "no"):
        raise NotanError(f"{where} has the answer {word[:40]!r}", "yes or no", "repair the line")
    return word.strip().lower() == "yes"


def _task(file: Path) -> str:
    return file.parent.parent.name if file.parent.name == "questions_answers_YN" else file.parent.name


def _picture(file: Path) -> str:
    """The picture that a text file of MME is about."""
    folder = file.parent.parent / "images" if file.parent.name == "questions_answers_YN" else file.parent
    for suffix in PICTURES:
        if (picture := folder / f"{file.stem}{suffix}").is_file():
            return str(picture)
    raise NotanError(f"{file} has no picture in {folder}", f"{file.stem} with one of {', '.join(PICTURES)}", "fetch MME again")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotanError(f"there is no file {path}", "the benchmark's file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise NotanError(f"{path} cannot be read ({error})", "a text file in UTF-8", "fetch it again") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of the lines that are not empty; none at all is an error."""
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(_text(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise NotanError(f"{path} is empty", "at least one question", "fetch it again")
    yield from lines


def _csv(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, cells by column) of every row, with something in each of `wanted`."""
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    count = 0
    try:
        if missing := [name for name in wanted if name not in (rows.fieldnames or ())]:
            raise NotanError(f"{path} has no column {missing[0]!r}, only {', '.join(map(repr, rows.fieldnames or ()))}",
                             f"the columns {', '.join(wanted)}", "is it another benchmark's file?")
        for count, row in enumerate(rows, start=1):
            where = f"{path}, row {count} (to line {rows.line_num})"
            if None in row or None in row.values():
                raise NotanError(f"{where} has not as many cells as the header", f"{len(rows.fieldnames or ())}", "repair it")
            if empty := [name for name in wanted if not row[name].strip()]:
                raise NotanError(f"{where} has nothing as {empty[0]!r}", "some text", "repair it")
            yield where, row
    except csv.Error as error:
        raise NotanError(f"{path}, line {rows.line_num}: no csv ({error})", "a table parted by commas", "repair it") from None
    if not count:
        raise NotanError(f"{path} has no rows", "at least one question", "fetch it again")


def _json(path: Path, wanted: Sequence[str], perhaps: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of JSON lines or one array, with a text for each of `wanted`; null is "" for those of `perhaps`."""
    for where, row in _objects(path):
        if not isinstance(row, dict):
            raise NotanError(f"{where} holds {type(row).__name__}, no object", f"the keys {', '.join(wanted)}", "repair it")
        row |= {name: "" for name in perhaps if name in row and row[name] is None}
        for name in wanted:
            if not isinstance(row.get(name), str) or not (row[name].strip() or name in perhaps):
                seen = f"{json.dumps(row[name])[:60]} as" if name in row else f"only {', '.join(map(repr, row))} and no"
                raise NotanError(f"{where} has {seen} {name!r}", f"a text for each of {', '.join(wanted)}", "repair it")
        yield where, row


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    text = _text(path)
    if not text.lstrip().startswith("["):
        for where, line in _lines(path):
            try:
                yield where, json.loads(line)
            except json.JSONDecodeError as error:
                raise NotanError(f"{where} is no JSON ({error.msg}): {line[:60]!r}", "one object", "repair it") from None
        return
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise NotanError(f"{path}, line {error.lineno}: no JSON ({error.msg})", "an array of objects", "repair it") from None
    if not items:
        raise NotanError(f"{path} is an empty array", "at least one question", "fetch it again")
    yield from ((f"{path}, item {i}", item) for i, item in enumerate(items, start=1))
