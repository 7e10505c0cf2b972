"""The view of contrastive learning: what SimCLR (appendix A) does to a picture, and most methods after it."""

from __future__ import annotations

from torch import Tensor

from notan.views import colour
from notan.views.geometry import crop, crop_boxes
from notan.views.random import bernoulli


def contrastive(image: Tensor, key: Tensor, side: int, *, scale: float, flip: float, jitter: float, grey: float,
                blur: float) -> Tensor:
    """One random view of each picture: cropped, mirrored, recoloured, greyed, blurred.

    image uint8 (B, C, h, w), key int64 (B,); gives (B, C, side, side) in [0, 1]. scale: smallest share of the picture in a
    crop. flip, grey, blur: probabilities. jitter: strength of the colour jitter, which 80% of views get; 1 is SimCLR's for
    ImageNet, 0.5 for CIFAR-10.
    """
    boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(scale, 1.0))
    x = crop(image, boxes, bernoulli(key, "flip", flip), side).pixels
    s = 0.8 * jitter
    x = colour.jitter(x, key, brightness=s, contrast=s, saturation=s, hue=s / 4, p=0.8)
    x = colour.grayscale(x, key, grey)
    return colour.blur(x, key, p=blur) if blur else x
