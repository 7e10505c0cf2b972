"""How many captions a run's text encoders cut: said when it starts, kept in its facts, and shown by its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from notan import catalogue
from notan.data import COLUMNS, Data, keys
from notan.nets.text import cut
from notan.runs.build import TEXTS, has_texts, is_both
from notan.runs.config import Config
from notan.runs.folder import Run


def cut_captions(config: Config, method: nn.Module, data: Data) -> dict[str, dict[str, dict[str, int]]]:
    """The fact `captions`, by text encoder: how many captions of at most TEXTS training rows are longer than its context (see
    `nets.text.cut`), and how many `rows` of the `training` rows were looked at; {} of a method without a text encoder.
    """
    entry = catalogue.method(config.method)
    towers = readers(entry, lambda name: getattr(method, name))
    words = [c for c in entry.columns if c in data.train.columns and COLUMNS[c].dtype == "str"]
    words = [c for c in words if c != "captions" or "text" not in words]    # what methods read of the two
    if not towers or not words:
        return {}
    index = keys.shuffle(0, 0, len(data.train))[:TEXTS]
    batch = data.train.only(*words).take(index)
    texts = [text for c in words for cell in batch[c] for text in ([cell] if isinstance(cell, str) else cell)]
    looked = {"rows": len(index), "training": data.rows}
    return {"captions": {name: {**cut(encoder, texts)._asdict(), **looked} for name, encoder in towers.items()}}


def cut_by(source: Any, texts: list[str]) -> str:
    """A sentence on how many of these texts the text encoder of a run, or of a dual encoder, cuts; "" where it cuts none."""
    run = isinstance(source, Run)
    one = getattr(source, "text_encoder", source)
    towers = readers(catalogue.method(source.settings.method), source.encoder) if run else {"": one}
    every = {"rows": 0, "training": 0}
    return " ".join(sentence({**found._asdict(), **every}) for encoder in towers.values() if (found := cut(encoder, texts)).cut)


def readers(entry: catalogue.Entry, tower: Callable[[str], Any]) -> dict[str, Any]:
    """What reads texts among a method's towers, by the tower's name; of two encoders with a joint space the second."""
    return {asked.name: tower(asked.name).text_encoder if is_both(asked) else tower(asked.name)
            for asked in entry.towers if has_texts(asked)}


def told(facts: Mapping[str, Any]) -> list[str]:
    """A sentence for each text encoder that cuts captions, of a run's facts."""
    return [sentence(found) for found in facts.get("captions", {}).values() if found["cut"]]


def sentence(found: Mapping[str, int]) -> str:
    """312 of 4,096 captions are longer than 32 tokens and are cut (the longest has 71)."""
    are = "are" if found["cut"] != 1 else "is"
    said = (f"{found['cut']:,} of {found['of']:,} captions {are} longer than {found['context']} tokens and {are} cut "
            f"(the longest has {found['longest']:,}).")
    sampled = found["rows"] < found["training"]
    return f"In a sample of {found['rows']:,} of the {found['training']:,} training rows {said}" if sampled else said
