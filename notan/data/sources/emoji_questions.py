"""Emoji as Google and Twitter draw them, each asked four things: what it is, of what kind, its colour, and who drew it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from notan.data.instructions import Question, triples
from notan.data.sources import emoji

SOURCE = {
    "name": "emoji-questions",
    "title": "Emoji (`image`) with an `instruction` and an `answer`: name, kind, colour, artist; 32 x 32",
    "licence": "MIT (data), Apache-2.0 (Google's pictures), CC BY 4.0 (Twitter's)",
    "rows": 15288,
    "split": "of emoji: keyed by concept, one fifth for test",
    "modality": "image, text",
}
COLOURS = {"red": (221, 46, 68), "orange": (244, 144, 12), "yellow": (255, 204, 77), "green": (92, 145, 59),
           "blue": (85, 172, 238), "purple": (146, 102, 204), "pink": (244, 171, 186), "brown": (140, 90, 60),
           "black": (35, 35, 40), "grey": (150, 155, 160), "white": (255, 255, 255)}  # fmt: skip
ASKED = {
    "name": ("what is this?", "name what you see", "what does the picture show?"),
    "kind": ("what kind of thing is it?", "which category is it in?", "what sort of emoji is this?"),
    "colour": ("which colour is there most of?", "what is the main colour?", "name its colour"),
    "artist": ("who drew it?", "whose drawing is it?", "which company made this picture?"),
}


def load(cache: Path) -> dict[str, Any]:
    found = emoji.load(cache.parent / "emoji")
    classes = [name.lower() for name in found["classes"]]
    made = {split: _asked(found[split], classes) for split in ("train", "test")}
    return {**made, "classes": found["classes"]}


def _asked(rows: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    """Every question of every picture, a row each."""
    n = len(rows["label"])
    image = np.concatenate([rows["image"], rows["image2"]])             # (2N, 3, 32, 32)
    label, artist = np.tile(rows["label"], 2), np.repeat([0, 1], n)
    answers = {"name": rows["text"], "kind": classes, "colour": list(COLOURS), "artist": ["google", "twitter"]}
    values = np.stack([np.tile(np.arange(n), 2), label, main_colour(image), artist], 1)
    asked = triples(values, [Question(ASKED[name], tuple(said)) for name, said in answers.items()])
    return {"image": image[asked.picture], "instruction": asked.instruction, "answer": asked.answer,
            "picture_id": asked.picture, "label": label[asked.picture]}  # fmt: skip


def main_colour(image: np.ndarray) -> np.ndarray:
    """Which of COLOURS most pixels (N, 3, H, W) are nearest to, but for pure white, which is the ground: int64 (N,)."""
    near = np.array(list(COLOURS.values()), dtype=np.float64)
    found = np.empty(len(image), dtype=np.int64)
    for i, picture in enumerate(image):
        pixels = picture.reshape(3, -1).T.astype(np.float64)
        drawn = pixels[(pixels < 250).any(1)]
        far = ((drawn[:, None] - near) ** 2).sum(2).argmin(1) if len(drawn) else np.array([len(near) - 1])
        found[i] = np.bincount(far, minlength=len(near)).argmax()
    return found
