"""What a strategy is, and the two things nearly all of them share: weights over streams, and the plausible head.

K streams share the emitted tokens and differ in model, layer, prompt or picture; z_k (B, V) float32 are their logits at the
last position. A strategy adds them with weights w_k and chooses among the tokens that the first stream finds plausible:

    s = sum_k w_k z_k,    s[v] = -inf unless z_0[v] >= max_u z_0[u] + log(beta)

A constant added to any z_k changes nothing, so logits and log-probabilities give the same choice. S = sum_k w_k says what
equal streams come to: 1 the model itself, 0 a uniform choice among the plausible tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from notan.errors import NotanError


@dataclass(frozen=True)
class Context:
    """What one stream reads: a prompt, an instruction before it ("" for none), a picture (PIL, RGB), and which model reads it.

    noise: what happens to the picture's pixels (any shape) after the model's own processor. key: all that is random about a
    context is drawn from it; a function of the seed, the prompt and the picture.
    """

    prompt: str
    system: str = ""
    model: str = "main"                                                 # or "amateur"
    image: Any = None
    noise: Callable[[Tensor], Tensor] | None = None
    key: int = 0


class Strategy(Protocol):
    """Several streams, one choice. Two parts are optional:

    main(given: Context) -> Context: what the main stream reads instead.
    layers(depth: int, tied: bool) -> tuple[int, ...]: layers of every model whose logits `combine` gets too, after the
        last layers': stream by stream, layer by layer.
    """

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        """The streams beside the main one, in the order of `combine`'s logits, made from what the user gave; `amateur`:
        whether there is such a model."""
        ...

    def weights(self, t: int) -> tuple[float, ...]:
        """One weight for each stream at step t, the main one's first."""
        ...

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        """Logits (B, V) of every stream to the scores (B, V) that processors, warpers and the draw see."""
        ...


def needs_picture(given: Context) -> Context:
    """The context itself. Raises `NotanError` when it has no picture."""
    if given.image is None:
        raise NotanError("the prompt comes without a picture", "the picture that it asks about", "--image FILE")
    return given


def weighted(z: Sequence[Tensor], w: Sequence[float]) -> Tensor:
    """sum_k w_k z_k; a stream of weight 0 takes no part, whatever it holds."""
    return torch.stack([wk * zk for zk, wk in zip(z, w, strict=True) if wk]).sum(0)


def plausible(z0: Tensor, beta: float) -> Tensor:
    """Which tokens have at least beta times the likeliest one's probability: bool (B, V). All of them at beta = 0."""
    if beta <= 0:
        return torch.ones_like(z0, dtype=torch.bool)
    return z0 >= z0.amax(1, keepdim=True) + math.log(beta)


def within(head: Tensor, s: Tensor) -> Tensor:
    """Scores s outside the head become -inf: after the weighting, so that no -inf meets another."""
    return s.masked_fill(~head, -torch.inf)
