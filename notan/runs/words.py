"""Probes by words: pictures and captions that find each other, classes by their names, and captions that are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notan import catalogue
from notan.data import Data, keys
from notan.errors import NotanError
from notan.nets.build import is_dual
from notan.nets.prompted import Prompted
from notan.nets.seeing import OWN
from notan.probes.base_to_novel import base_to_novel
from notan.probes.captions import caption_scores
from notan.probes.features import extract
from notan.probes.retrieval import retrieval
from notan.probes.zero_shot import PROMPTS, class_features, zero_shot
from notan.runs.build import has_texts, is_both
from notan.runs.captions import cut_by
from notan.runs.embed import encoding, fitted, source_of
from notan.runs.folder import Run
from notan.runs.study import check_pictures
from notan.runs.watch import probed

WRITTEN = 128                                                           # captions at a time


def reads_both(run: str | Path) -> bool:
    """Whether a run's method, or a released model, brings pictures and texts to one space."""
    if not (Path(run) / "config.yaml").exists():
        return is_dual(str(run)) or (Path(run) / OWN).exists()
    return any(map(has_texts, catalogue.method(Run(run).settings.method).towers))


def by_words(run: str | Path, data: Data, rows: int, asked: list[str],
             prompts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Pictures and captions of the test split that find each other, and classes by their names."""
    if not reads_both(run):
        raise NotanError(f"{run} has no space that pictures and texts share", "a run of a method of both, such as clip",
                         "--protocol ridge, knn, ...")
    check_pictures(data)
    if {"zeroshot", "basetonovel"} & {*asked} and "label" not in data.info.columns:
        raise NotanError(f"{data.info.name} has the columns {', '.join(data.info.columns)}", "a label, whose classes have names",
                         "--protocol retrieval, or --column THEIRS=label")
    source = source_of(run)
    index, own = keys.shuffle(0, 0, len(data.test))[:rows], learned(source)
    space = Joint(encoding(source), data, index, tuple(prompts or (PROMPTS if own is None else ("{}",))))
    found: dict[str, dict[str, Any]] = {}
    if "retrieval" in asked:
        said = captions(data, index)
        texts = list(dict.fromkeys(text for every in said for text in every))
        number = {text: i for i, text in enumerate(texts)}
        pairs = torch.tensor([(i, number[text]) for i, every in enumerate(said) for text in dict.fromkeys(every)])
        z, notes = space.read(texts), "equal captions are one, and belong to each of their pictures"
        notes += f"; {lost.rstrip('.')}" if (lost := cut_by(source, texts)) else ""
        found = {"picture to text": retrieval(space.images, z, pairs, notes=notes),
                 "text to picture": retrieval(z, space.images, pairs.flip(1), notes=notes)}
    if "zeroshot" in asked:
        found["zero-shot"] = zero_shot(space.images, *space.classes(), notes=space.notes)
    if "basetonovel" in asked:
        found["base to novel"] = base_to_novel(space.images, *space.classes(), notes=space.notes)
        if own is not None:
            plain = Joint(encoding(own.base), data, index, (own.config["template"],))
            found["base to novel, frozen"] = base_to_novel(plain.images, *plain.classes(), notes=plain.notes)
    return found


def written(run: str | Path, data: Data, rows: int) -> dict[str, Any]:
    """What a run writes of test pictures, and how likely it finds what was said of them."""
    if not (Path(run) / "config.yaml").exists() or "caption" not in catalogue.method(Run(run).settings.method).has:
        raise NotanError(f"{run} writes no captions", "a run of a method that does, such as coca", "--protocol retrieval")
    check_pictures(data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method: Any = Run(run).method().to(device)
    info, index = Run(run).info, keys.shuffle(0, 0, len(data.test))[:rows]
    truth, pictures = captions(data, index), data.test.only("image")
    said, nats, tokens = [], 0.0, 0
    for start in range(0, len(index), WRITTEN):
        here, every = slice(start, start + WRITTEN), truth[start : start + WRITTEN]
        x = fitted(pictures.take(index[here])["image"].to(device), info.channels or 0, info.image_size or 0)
        said += method.caption(x)
        own, said_of = zip(*[(i, text) for i, texts in enumerate(every) for text in texts])
        nll, count = method.caption_nll(x[list(own)], list(said_of))
        nats, tokens = nats + float(nll.double().sum()), tokens + int(count.sum())
    return caption_scores(said, nats, tokens, truth, how="the likeliest token at each step",
                          notes=f"{len(method.text_encoder.tokenizer):,} tokens in the vocabulary")


class Joint:
    """Test rows of data in a space of pictures and texts, and what reads texts into it."""

    def __init__(self, encode: Any, data: Data, index: np.ndarray, prompts: tuple[str, ...]) -> None:
        self.encode, self.data, self.index, self.prompts = encode, data, index, prompts
        self.images = extract(lambda batch: probed(encode(without_words(batch))), data.test, index)
        self.notes = "prompts " + "; ".join(map(repr, prompts))

    def read(self, texts: list[str]) -> Tensor:
        with torch.inference_mode():
            parts: list[Any] = [self.encode({"text": texts[i : i + 512]}) for i in range(0, len(texts), 512)]
            return torch.cat([part["text"].float().cpu() for part in parts])

    def classes(self) -> tuple[Tensor, Tensor]:
        """Labels of the rows (N,), and a direction for each class (C, D)."""
        labels = torch.from_numpy(self.data.test.values("label")[self.index])
        return labels, class_features(self.read, self.data.info.classes, self.prompts)


def learned(source: str | Path | Run | nn.Module) -> Prompted | None:
    """The encoder of a run, in a folder, or as it is, that has learned what stands before a name; None of any other."""
    found = source_of(source)
    if isinstance(found, Run):
        if not any(map(is_both, catalogue.method(found.settings.method).towers)):
            return None
        found = found.encoder()
    return found if isinstance(found, Prompted) else None


def captions(data: Data, index: np.ndarray) -> list[list[str]]:
    """All captions of some test rows. Raises `NotanError` for data without."""
    column = next((name for name in ("captions", "text") if name in data.test.columns), "")
    if not column:
        raise NotanError(f"{data.info.name} has the columns {', '.join(data.info.columns)}", "captions: text or captions",
                         "--column THEIRS=text")
    said = data.test.only(column).take(index)[column]
    return said if column == "captions" else [[text] for text in said]


def without_words(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("text", "captions")}
