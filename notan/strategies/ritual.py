"""RITUAL: the model looks again, at a transformed copy of the picture.

Woo, Jang, Kim, Choi and Kim, "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large
Vision-Language Models", 2024 (arXiv 2405.17821).

**What it is.** Other strategies subtract a damaged view; this one adds a second view. One of six transformations is drawn
for the prompt and kept all answer long, and both streams' logits are added:

    s = z + alpha z_T,        among the tokens with at least beta of z's largest probability, z of the untouched picture

    hflip, vflip             mirrored
    rotate                   by an angle from -180 to 180 degrees, black outside, the canvas kept
    jitter                   brightness, contrast and saturation by factors from 0 to 2, hue by half a turn at most
    blur                     13 pixels wide, sigma from 1.5 to 2
    crop                     8% to 100% of the area, resized to 336 px

`minus` joins it with one of the subtracting strategies: (1 + alpha_neg) z + alpha z_T - alpha_neg z' with VCD's noised picture,
z + alpha z_T + k_t (z - z_blind) with M3ID's growing weight.

**When it helps.** The weights come to 1 + alpha = 4: on equal views this is sampling at a quarter of the temperature within
the head, which alone is better than plain sampling on most tables. Compare with `--temperature 0.25` and the head
(alpha = 0). Mirrors, hue and crops change the true answer to questions of left and right, colour and count.

**What it costs.** A second row of the batch, and a second picture through the encoder; a third with `minus`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, needs_picture, plausible, weighted, within
from notan.strategies.m3id import growth
from notan.strategies.vcd import noised
from notan.views.colour import blur, jitter
from notan.views.geometry import crop, crop_boxes
from notan.views.random import integers, uniform

CARD = {
    "title": "RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in Large Vision-Language Models",
    "arxiv": "2405.17821", "year": 2024, "needs": ["prompt", "image"],
    "claim": "Adding what the model says of a randomly transformed copy of the picture removes objects that are not there.",
    "cost": "A second row of the batch and a second picture.",
    "sum": "1 + alpha: 4 at the paper's alpha = 3",
    "off": {"alpha": 0.0, "beta": 0.0},
    "deviations": [
        "The transformation is drawn from a key of seed, prompt and picture, not from Python's generator.",
        "With greedy decoding the best token of the masked sum is taken; the released code only samples.",
        "The joint forms are ours: the paper reports them, the released code cannot run them.",
        "RITUAL+, where the model itself picks the transformation, is not here: its parsing was not released. Name one with "
        "`transform`.",
    ],
}

TRANSFORMS = ("hflip", "vflip", "rotate", "jitter", "blur", "crop")


class Ritual:
    """The picture plus a transformed copy.

    alpha: weight of the copy.
    beta: smallest share of the largest probability that a token may have.
    transform: one of the six by name, or random.
    minus: what is subtracted besides: none, vcd or m3id.
    alpha_neg: strength of VCD's part.
    step: how far VCD's picture is drowned, 0 to 999.
    lam: how fast M3ID's part grows.
    """

    def __init__(
        self, *, alpha: float = 3.0, beta: float = 0.1,
        transform: Literal["random", "hflip", "vflip", "rotate", "jitter", "blur", "crop"] = "random",
        minus: Literal["none", "vcd", "m3id"] = "none", alpha_neg: float = 1.0, step: int = 500, lam: float = 0.02,
    ) -> None:
        check_between(0, math.inf, alpha=alpha, alpha_neg=alpha_neg, lam=lam)
        check_between(0, 1, beta=beta)
        check_between(0, 999, step=step)
        self.alpha, self.beta, self.transform, self.minus = alpha, beta, transform, minus
        self.alpha_neg, self.step, self.lam = alpha_neg, step, lam

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        name = drawn(given.key) if self.transform == "random" else self.transform
        copy = replace(needs_picture(given), image=transformed(given.image, name, given.key))
        return {"none": [copy],
                "vcd": [copy, replace(given, noise=lambda x: noised(x, self.step, given.key))],
                "m3id": [copy, replace(given, image=None)]}[self.minus]

    def weights(self, t: int) -> tuple[float, ...]:
        if self.minus == "none":
            return (1.0, self.alpha)
        k = self.alpha_neg if self.minus == "vcd" else growth(self.lam, t)
        return (1 + k, self.alpha, -k)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))


def drawn(key: int) -> str:
    """Which of the six transformations a key draws."""
    return TRANSFORMS[int(integers(torch.tensor([key]), "ritual transform", 1, len(TRANSFORMS)))]


def transformed(image: Any, name: str, key: int) -> Any:
    """A transformed copy of an RGB picture (PIL); what it leaves to chance is a function of the key."""
    from PIL import Image

    if name == "hflip":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if name == "vflip":
        return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    k = torch.tensor([key])
    if name == "rotate":
        return image.rotate(float(uniform(k, "ritual angle", 1, -180, 180)))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255              # (1, 3, H, W)
    if name == "jitter":
        x = jitter(x, k, brightness=1, contrast=1, saturation=1, hue=0.5)
    elif name == "blur":
        x = blur(x, k, sigma=(1.5, 2.0), p=1, radius=min(6, min(x.shape[2:]) - 1))
    else:
        x = crop(x, crop_boxes(k, height=x.shape[2], width=x.shape[3]), None, 336).pixels
    return Image.fromarray((x[0] * 255).round().byte().permute(1, 2, 0).numpy())
