"""A frozen dual encoder with learned vectors among the tokens of its pictures and of its texts: prompts, deep or shallow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from notan.errors import NotanError, check_between
from notan.nets.hub import blocks_of
from notan.nets.insert import Extra
from notan.nets.protocols import DualEncoder

STD = 0.02                                                              # of prompts at first


class Prompted(nn.Module):
    """A `DualEncoder` whose prompts alone learn; the temperature, too, is the base's.

    base: what is frozen; of a prompted one its base.
    images, texts: prompts in each block that has some, 0 for none.
    depth: blocks that have prompts of their own, of either encoder the first ones, as many of these as there are; 1 is shallow.
    template: a sentence with {}, where a text goes. Prompts of texts stand for the words before it; the first block's begin at
    these words' vectors, one each, as far as they reach. All others begin at N(0, 0.02).
    """

    def __init__(self, base: DualEncoder, *, images: int, texts: int, depth: int, template: str) -> None:
        super().__init__()
        check_between(0, float("inf"), images=images, texts=texts)
        check_between(1, float("inf"), depth=depth)
        if template.count("{}") != 1:
            raise NotanError(f"template {template!r}", "a sentence with one {} for the name", "--template 'a photo of a {}.'")
        own: Any = base
        self.base: Any = own.base if isinstance(own, Prompted) else own
        self.base.requires_grad_(False)
        self.config: dict[str, Any] = {"name": "prompted", "base": self.base.config, "images": images, "texts": texts,
                                       "depth": depth, "template": template}
        self.dim, self.image_size, self.channels = self.base.dim, self.base.image_size, self.base.channels
        self.normalise = self.base.normalise
        self.begin, _, end = template.partition("{}")
        self.rest = (self.begin[len(self.begin.rstrip()):] + "{}" + end) if texts else template
        self.image_prompts = vectors(self.base.image_encoder, images, depth)
        self.text_prompts = vectors(self.base.text_encoder, texts, depth)
        if texts:
            said = word_vectors(self.base.text_encoder, self.begin.rstrip())[:texts]
            self.text_prompts[0].data[0, : len(said)] = said

    @property
    def tau(self) -> Tensor:
        return self.base.tau

    @property
    def image_encoder(self) -> Any:
        return self.base.image_encoder

    @property
    def text_encoder(self) -> Any:
        return self.base.text_encoder

    @property
    def parts(self) -> list[nn.Module]:
        """What is run on a part of a batch where memory is short: itself, and the frozen one by itself."""
        return [self, self.base]

    def train(self, mode: bool = True) -> Prompted:
        super().train(mode)
        self.base.eval()                                                # frozen, so is its dropout
        return self

    def image(self, pixels: Tensor, mask: Tensor | None = None, extra: Extra = ()) -> Tensor:
        """Pixels (B, C, S, S) to (B, d), not normalised, patches of mask (B, N) hidden, under the prompts."""
        return self.base.image(pixels, mask, _only(self.image_prompts, extra))

    def text(self, texts: list[str], extra: Extra = ()) -> Tensor:
        """Names, or other texts that end the template, to (B, d), not normalised, under the prompts."""
        return self.base.text([self.rest.replace("{}", text) for text in texts], _only(self.text_prompts, extra))

    def patches(self, pixels: Tensor) -> Tensor:
        """Each patch in the joint space, without prompts: (B, N, d)."""
        return self.base.patches(pixels)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, d)
        return self.image(pixels)

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w), without prompts
        return self.base.maps(pixels)

    def forward(self, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        return self.image(pixels), self.text(texts)


def vectors(encoder: Any, count: int, depth: int) -> nn.ParameterList:
    """`count` prompts (1, count, D) for each of the first `depth` blocks of an encoder, N(0, 0.02).

    Raises `NotanError` for an encoder without tokens.
    """
    if not count:
        return nn.ParameterList()
    if not hasattr(encoder, "blocks") and not hasattr(encoder, "model"):
        raise NotanError(f"prompts for a {type(encoder).__name__}, which has no tokens", "a transformer",
                         "--image-prompts 0, or a run with --image-encoder vit, or hf:NAME")
    with_own = min(depth, len(blocks_of(encoder)))
    return nn.ParameterList([nn.Parameter(STD * torch.randn(1, count, encoder.dim)) for _ in range(with_own)])


def word_vectors(encoder: Any, text: str) -> Tensor:
    """The vectors of a text's tokens before their positions are added: (K, D)."""
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    table = encoder.token_embedding
    return table(torch.tensor(ids, dtype=torch.int64, device=table.weight.device)).detach()


def _only(own: nn.ParameterList, extra: Extra) -> Extra:
    if extra:
        raise NotanError("vectors for an encoder that has prompts of its own", "none", "its base")
    return tuple(own)
