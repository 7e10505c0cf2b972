"""What a method may ask of a tower. Nothing inherits from these: a module that has the parts is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from notan.nets.insert import Extra
from notan.nets.numbers import Standardise
from notan.nets.pixels import Normalise


@runtime_checkable
class Encoder(Protocol):
    """Something that gives features: an `ImageEncoder` or a `NumberEncoder`, for methods that take either."""

    dim: int
    config: dict[str, Any]

    def features(self, *args: Any) -> Tensor: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class NumberEncoder(Protocol):
    """Rows of numbers, as they were measured, to features. Standardising happens inside; `config` rebuilds the module."""

    dim: int
    width: int                                                          # numbers in a row, or in a step of a series
    config: dict[str, Any]
    standardise: Standardise

    def features(self, x: Tensor, length: Tensor | None = None) -> Tensor: ...   # (B, F) or (B, T, C) -> (B, D)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Pixels in [0, 1] to features. Normalisation with the data's mean and std happens inside.

    `config` is JSON-able and rebuilds the module (`nets.build.build_encoder(config)`), without its weights.
    """

    dim: int
    image_size: int
    channels: int
    config: dict[str, Any]
    normalise: Normalise                                                # pixels -> what the weights see, and `undo`

    def features(self, pixels: Tensor) -> Tensor: ...                   # (B, C, S, S) -> (B, D)

    def maps(self, pixels: Tensor) -> Tensor: ...                       # (B, C, S, S) -> (B, D, h, w)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class TokenEncoder(ImageEncoder, Protocol):
    """An encoder of N = h w patch tokens and one class token, which computes only the tokens that are shown to it.

    `forward(pixels, mask=None)` takes a bool mask (B, N), True = hidden, as many hidden in each row, and gives
    (B, 1 + K, D): the class token, then the K visible tokens in raster order, after the final norm.
    """

    tokens: int
    grid: tuple[int, int]
    patch: int

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class ConvEncoder(ImageEncoder, Protocol):
    """A convolutional encoder; `forward(pixels)` gives its last map (B, D, h, w), `trunk` that of any image size."""

    stride: int

    def forward(self, pixels: Tensor) -> Tensor: ...

    def trunk(self, pixels: Tensor) -> Tensor: ...


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model with its tokenizer.

    Texts become tokens padded on the *right*: `pad` is True at padding, whatever number a padding token has, and what
    stands there cannot be seen by what is before it. `forward` gives the next token's logits and the states that its head
    reads. `config` rebuilds the module around its tokenizer (`nets.language.build_language`), without its weights.
    """

    dim: int
    context: int                                                        # most tokens it reads
    config: dict[str, Any]
    model: nn.Module                                                    # of `transformers`
    tokenizer: Any

    def tokens(self, texts: list[str], most: int | None = None) -> tuple[Tensor, Tensor]: ...  # ids, pad: (B, T)

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]: ...                       # the same of token numbers

    def features(self, texts: list[str]) -> Tensor: ...                 # (B, D): mean of the states of a text's tokens

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]: ...        # (B, T) -> (B, T, V), (B, T, D)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class SeeingModel(Protocol):
    """A language model that sees, with its processor: pictures under instructions, and texts, as vectors in one space.

    What it reads ends in a token of its own, `readout`, from whose state a head leads to the space; `image` and `text` give
    vectors (B, d), not normalised. `config` rebuilds the module around its tokenizer (`nets.build.build_seeing`).
    """

    dim: int                                                            # of the space
    image_size: int
    channels: int
    context: int                                                        # most tokens of an instruction or a text
    config: dict[str, Any]
    model: nn.Module                                                    # of `transformers`
    processor: Any
    tokenizer: Any

    def image(self, pixels: Tensor, instructions: Sequence[str] | None = None) -> Tensor: ...       # (B, C, S, S) -> (B, d)

    def text(self, texts: list[str]) -> Tensor: ...                     # (B, d)

    def features(self, pixels: Tensor) -> Tensor: ...                   # (B, d): image without an instruction

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to features, with a tokenizer of its own.

    `tokens` gives ids and pad (B, T), True at padding, cut to `context`; `forward(ids, pad)` their states (B, T, D) and `pool`
    what a text is of them. Vectors of `extra` stand after a text's start, where `tokens` leaves `room` for them
    (`nets/insert.py`). `config` rebuilds the module around its tokenizer (`nets.text.build_text`), without its weights.
    """

    dim: int
    context: int                                                        # most tokens it reads
    config: dict[str, Any]
    tokenizer: Any

    def tokens(self, texts: list[str], room: int = 0) -> tuple[Tensor, Tensor]: ...                 # ids, pad: (B, T)

    def forward(self, ids: Tensor, pad: Tensor | None = None, extra: Extra = ()) -> Tensor: ...     # (B, T) -> (B, T, D)

    def pool(self, states: Tensor, pad: Tensor) -> Tensor: ...          # (B, T, D) -> (B, D)

    def features(self, texts: list[str], extra: Extra = ()) -> Tensor: ...                          # (B, D)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class DualEncoder(Protocol):
    """Pictures and texts in one space: an encoder and a head of each, and the temperature of its cosines.

    `image` and `text` give vectors (B, d) in that space, not normalised; patches can be hidden and vectors put among the tokens
    (`nets/insert.py`). `patches` are the patches in that space, `maps` what they are before it. `config` rebuilds the module
    (`nets.build.build_dual`), without its weights.
    """

    dim: int                                                            # of the joint space
    image_size: int
    channels: int
    config: dict[str, Any]
    normalise: Normalise
    image_encoder: Any                                                  # an ImageEncoder
    text_encoder: Any                                                   # a TextEncoder

    @property
    def tau(self) -> Tensor: ...

    def image(self, pixels: Tensor, mask: Tensor | None = None, extra: Extra = ()) -> Tensor: ...    # (B, C, S, S) -> (B, d)

    def patches(self, pixels: Tensor) -> Tensor: ...                    # (B, C, S, S) -> (B, N, d)

    def text(self, texts: list[str], extra: Extra = ()) -> Tensor: ...  # (B, d)

    def features(self, pixels: Tensor) -> Tensor: ...                   # (B, C, S, S) -> (B, d)

    def maps(self, pixels: Tensor) -> Tensor: ...                       # (B, C, S, S) -> (B, D, h, w)

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
