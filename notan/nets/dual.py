"""Pictures and texts in one space: two encoders with a head each, trained here or released (CLIP, SigLIP)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.hub import HubEncoder, opened, statistics
from notan.nets.insert import Extra, count
from notan.nets.language import open_tokenizer, without_bars
from notan.nets.protocols import ImageEncoder, TextEncoder
from notan.nets.text import HubText

RELEASED = ("clip", "siglip")                                           # types of `transformers` that are read as one


class Dual(nn.Module):
    """A `DualEncoder`.

    image_head, text_head: from the encoders' widths to the joint space, linear maps without a bias or nothing.
    tau: the temperature that its cosines were trained with.
    """

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, image_head: nn.Module, text_head: nn.Module,
                 *, tau: float) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_head, self.text_head = image_head, text_head
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / tau)))
        widths = [getattr(head, "out_features", encoder.dim) for head, encoder in ((image_head, image_encoder),
                                                                                   (text_head, text_encoder))]
        if widths[0] != widths[1]:
            raise NotanError(f"pictures of width {widths[0]} and texts of width {widths[1]}", "one space", "heads of one width")
        self.dim, self.image_size, self.channels = widths[0], image_encoder.image_size, image_encoder.channels
        self.normalise = image_encoder.normalise

    @property
    def config(self) -> dict[str, Any]:
        return {"name": "dual", "image_encoder": self.image_encoder.config, "text_encoder": self.text_encoder.config,
                "dim": self.dim, "tau": float(self.tau),
                "heads": [isinstance(head, nn.Linear) for head in (self.image_head, self.text_head)]}

    @property
    def tau(self) -> Tensor:
        return (-self.log_scale.detach()).exp()

    def image(self, pixels: Tensor, mask: Tensor | None = None, extra: Extra = ()) -> Tensor:
        """Pixels (B, C, S, S) in [0, 1] to (B, d), not normalised.

        Of an encoder of tokens patches can be hidden, mask (B, N), True = hidden, and vectors stand behind (`nets/insert.py`).
        """
        if mask is None and not extra:
            return self.image_head(self.image_encoder.features(pixels))
        encoder = self._open()
        states = encoder.states(pixels, mask, extra)
        return self.image_head(encoder.summary(states[:, : states.shape[1] - count(extra)]))

    def patches(self, pixels: Tensor) -> Tensor:
        """Each patch in the joint space: pixels (B, C, S, S) to (B, N, d)."""
        encoder = self._open()
        return self.image_head(encoder.states(pixels)[:, encoder.prefix:])

    def text(self, texts: list[str], extra: Extra = ()) -> Tensor:
        """Texts to (B, d), not normalised; vectors of `extra` stand after a text's start."""
        return self.text_head(self.text_encoder.features(texts, extra) if extra else self.text_encoder.features(texts))

    def forward(self, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Both: (B, d) and (B', d)."""
        return self.image(pixels), self.text(texts)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, d)
        return self.image(pixels)

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w)
        return self.image_encoder.maps(pixels)

    def _open(self) -> Any:
        if not hasattr(self.image_encoder, "states"):
            raise NotanError(f"the picture encoder is a {type(self.image_encoder).__name__}, which has no tokens",
                             "a vision transformer", "a run with --image-encoder vit, or hf:NAME")
        return self.image_encoder


def head(width: int, dim: int) -> nn.Linear:
    """CLIP's projection to the joint space: no bias, N(0, width^-1/2)."""
    made = nn.Linear(width, dim, bias=False)
    nn.init.normal_(made.weight, std=width**-0.5)
    return made


def class_directions(read: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Of each name the mean over templates of the directions of its sentences, brought to length 1: (C, d).

    read: texts to (B, d), not normalised. A template has {} where a name goes.
    """
    z = F.normalize(read([template.replace("{}", name) for template in templates for name in names]), dim=1)
    return F.normalize(z.unflatten(0, (len(templates), -1)).mean(0), dim=1)


def released(source: str) -> Dual:
    """A CLIP or SigLIP of `transformers` (a name on its hub, or a folder) with its weights, tokenizer and pixel statistics.

    Raises `NotanError` for what is not there, and for models of other types.
    """
    with without_bars():
        model = opened(source, dtype=torch.float32)
    settings = model.config
    if settings.model_type not in RELEASED:
        raise NotanError(f"{source!r} is a {type(model).__name__}", f"two encoders and a joint space: {', '.join(RELEASED)}",
                         "another model; an encoder of pictures alone is --encoder hf:NAME")
    mean, std = statistics(source)
    pictures = HubEncoder(model.vision_model, source=source, image_size=settings.vision_config.image_size, mean=mean, std=std)
    texts = HubText(model.text_model, open_tokenizer(source), source=source)
    heads = [getattr(model, name, nn.Identity()) for name in ("visual_projection", "text_projection")]
    return Dual(pictures, texts, *heads, tau=math.exp(-float(model.logit_scale.detach())))
