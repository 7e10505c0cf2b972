"""Pictures with words: what methods of both read of a batch, and the heads that bring the two to one space."""

from __future__ import annotations

import math

from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.protocols import DualEncoder, ImageEncoder, TextEncoder
from notan.views.geometry import crop, crop_boxes, floats, resize
from notan.views.random import bernoulli, uniform


def cropped(batch: dict, side: int, *, scale: float, flip: float = 0.0) -> Tensor:
    """A random part of each picture, at least the share `scale` of it, mirrored with probability `flip`: (B, C, S, S).

    Mirroring is off unless it is asked for: captions may name sides.
    """
    image, key = batch["image"], batch["key"]
    boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(scale, 1.0))
    return crop(image, boxes, bernoulli(key, "flip", flip), side).pixels


def whole(batch: dict, side: int) -> Tensor:
    """Each picture, of this side, in [0, 1]: (B, C, S, S)."""
    return resize(floats(batch["image"]), side)


def one_caption(batch: dict) -> list[str]:
    """`text`, or one of each row's `captions` by its key: another in another epoch."""
    return batch["text"] if "text" in batch else [every[i] for every, i in zip(batch["captions"], caption_numbers(batch))]


def caption_numbers(batch: dict) -> list[int]:
    """Which of each row's captions `one_caption` takes; 0 where there is one `text`."""
    if "text" in batch:
        return [0] * len(batch["text"])
    draw = uniform(batch["key"], "caption", 1)[:, 0].tolist()
    return [int(u * len(every)) for every, u in zip(batch["captions"], draw)]


def first_caption(batch: dict) -> list[str]:
    """`text`, or the first of each row's `captions`. Raises `NotanError` where there is neither."""
    if "text" not in batch and "captions" not in batch:
        raise NotanError(f"rows of {', '.join(batch)}", "text or captions", "--column THEIRS=text")
    return batch["text"] if "text" in batch else [every[0] for every in batch["captions"]]


def joint(batch: dict, image_encoder: ImageEncoder, image_head: nn.Module, text_encoder: TextEncoder,
          text_head: nn.Module) -> dict[str, Tensor]:
    """`image` and `text` (B, d) in the joint space, of those that the batch has: of several captions the first."""
    found = {}
    if "image" in batch:
        found["image"] = image_head(image_encoder.features(whole(batch, image_encoder.image_size)))
    if "text" in batch or "captions" in batch:
        found["text"] = text_head(text_encoder.features(first_caption(batch)))
    return found


def both(batch: dict, model: DualEncoder) -> dict[str, Tensor]:
    """The same of a dual encoder."""
    found = {}
    if "image" in batch:
        found["image"] = model.image(whole(batch, model.image_size))
    if "text" in batch or "captions" in batch:
        found["text"] = model.text(first_caption(batch))
    return found


def learned_tau(log_scale: Tensor) -> Tensor:
    """CLIP's temperature, e^-log_scale, held at 0.01 or more."""
    return (-log_scale.clamp(max=math.log(100))).exp()


def check_tau(tau: float, least: float) -> None:
    if not least <= tau < float("inf"):
        raise NotanError(f"tau = {tau}", f"a temperature of at least {least}", "--tau 0.07")
