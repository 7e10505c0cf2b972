"""Small valid batches, and a small language model, for the methods' `example`s."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from notan.views.random import fold


def images(rows: int, size: int = 16, channels: int = 3, classes: int = 3) -> dict[str, Tensor]:
    """Random pictures uint8 (rows, channels, size, size) with labels, row numbers and keys; always the same ones."""
    row = torch.arange(rows)
    image = torch.randint(0, 256, (rows, channels, size, size), generator=torch.Generator().manual_seed(0))
    return {"image": image.to(torch.uint8), "label": row % classes, "row": row, "key": fold(row, 7)}


def numbers(rows: int, width: int = 6) -> dict[str, Tensor]:
    """Rows of numbers (rows, width) with a target that several share and others come near, row numbers and keys."""
    row = torch.arange(rows)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    return {"features": x, "target": 20.0 + (row * 3 % 7).float(), "row": row, "key": fold(row, 7)}


def texts(rows: int) -> dict[str, Any]:
    """Sentences of 2 to 9 words with row numbers and keys; always the same ones."""
    row = torch.arange(rows)
    words = "the cat saw a dog that ran to some old house by the sea and hid there all day"
    text = [" ".join(words.split()[i % 11 : i % 11 + 2 + (3 * i) % 8]) for i in range(rows)]
    return {"text": text, "label": row % 3, "row": row, "key": fold(row, 7)}


def captioned(rows: int) -> dict[str, Any]:
    """The pictures of `images` with three captions each."""
    said = texts(rows + 2)["text"]
    return {**images(rows), "captions": [said[i : i + 3] for i in range(rows)]}


def asked(rows: int) -> dict[str, Any]:
    """The pictures of `images`, each in two rows with an instruction each, and answers of which some are equal."""
    batch: dict[str, Any] = images(rows)
    said = texts(rows)["text"]
    batch["image"] = batch["image"][torch.arange(rows) // 2]
    return batch | {"instruction": ["what is it" if i % 2 else "how many are there" for i in range(rows)],
                    "answer": ["Yes." if i % 4 == 0 else said[i] for i in range(rows)]}


def tiny_text_encoder() -> Any:
    """A text tower of two layers around a tokenizer of all bytes and a few pairs of them."""
    from notan.nets.language import new_tokenizer
    from notan.nets.text import TextTransformer

    return TextTransformer(new_tokenizer(texts(16)["text"], vocabulary=280, context=32), dim=32, depth=2, heads=2, context=16)


def tiny_language_model() -> Any:
    """GPT-2 of two layers around a tokenizer of all bytes and a few pairs of them."""
    from notan.nets.language import gpt2, new_tokenizer

    tokenizer = new_tokenizer(texts(16)["text"], vocabulary=280, context=32)
    return gpt2(tokenizer, dim=32, depth=2, heads=2, context=32)


def tiny_dual_encoder() -> Any:
    """A ViT and a text tower of two layers each with a joint space of 16 numbers."""
    from notan.nets.dual import Dual, head
    from notan.nets.vit import ViT

    return Dual(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), tiny_text_encoder(), head(32, 16), head(32, 16), tau=0.1)


def tiny_seeing_model() -> Any:
    """A LLaVA of one block that sees and two that read, around a tokenizer of all bytes and a few pairs of them."""
    from notan.nets.language import new_tokenizer
    from notan.nets.seeing import llava

    tokenizer = new_tokenizer(texts(16)["text"], vocabulary=280, context=64)
    return llava(tokenizer, dim=32, depth=2, heads=2, context=64, patch=4, image_size=16, picture_depth=1)
