"""Rows as an encoder takes them, whole or as a view, for methods that take pictures, rows of numbers or series of them."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from notan.data import DataInfo
from notan.errors import NotanError
from notan.nets.protocols import Encoder, ImageEncoder, NumberEncoder
from notan.views.augment import contrastive
from notan.views.geometry import crop, crop_boxes, floats, resize
from notan.views.numbers import noisy
from notan.views.random import bernoulli


class Views(NamedTuple):
    """How rows are changed: pictures cropped, mirrored and recoloured; numbers moved and hidden."""

    crop: float
    flip: float
    jitter: float
    grey: float
    blur: float
    noise: float
    hide: float


def whole(batch: dict, encoder: Encoder) -> tuple[Tensor, ...]:
    """What `encoder.features` takes: pixels (B, C, S, S), or numbers (B, F), or a series (B, T, C) and its lengths (B,)."""
    if isinstance(encoder, ImageEncoder):
        return (resize(floats(_column(batch, "image")), encoder.image_size),)
    return _numbers(batch, encoder)


def view(batch: dict, key: Tensor, encoder: Encoder, how: Views) -> tuple[Tensor, ...]:
    """A view by key (B,), in the same form."""
    if isinstance(encoder, ImageEncoder):
        return (contrastive(_column(batch, "image"), key, encoder.image_size, scale=how.crop, flip=how.flip, jitter=how.jitter,
                            grey=how.grey, blur=how.blur),)
    x, *length = _numbers(batch, encoder)
    s = cast(NumberEncoder, encoder).standardise
    return (noisy(x, key, centre=s.centre, spread=s.spread, noise=how.noise, hide=how.hide), *length)


def light_view(batch: dict, encoder: Encoder, how: Views) -> tuple[Tensor, ...]:
    """A view as masked pre-training takes it: pictures are only cropped and mirrored."""
    if not isinstance(encoder, ImageEncoder):
        return view(batch, batch["key"], encoder, how)
    image, key = _column(batch, "image"), batch["key"]
    boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(how.crop, 1.0))
    return (crop(image, boxes, bernoulli(key, "flip", how.flip), encoder.image_size).pixels,)


def target_range(data: DataInfo) -> tuple[float, float]:
    """The least and the largest target of the training rows. Raises `NotanError` where there are none, or all are equal."""
    low, high = data.target_range or (0.0, 0.0)
    if not low < high:
        seen = f"every target of {data.name} is {low:g}" if data.target_range else f"{data.name} has no target"
        raise NotanError(seen, "numbers to learn, in a column `target`", "name it with --column theirs=target")
    return low, high


def _numbers(batch: dict, encoder: Encoder) -> tuple[Tensor, ...]:
    if encoder.config["name"] == "table":
        return (_column(batch, "features"),)
    return _column(batch, "series"), batch["length"]


def _column(batch: dict, name: str) -> Tensor:
    if name not in batch:
        raise NotanError(f"the encoder reads the column {name!r}; the rows have {', '.join(batch)}", name, "another --encoder")
    return batch[name]
