"""How much each patch counts for what a transformer says of a picture, by the attention of its last block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.nets.attribution import Seen, recorded
from notan.nets.hub import blocks_of


def class_attention(encoder: Any, run: Callable[[], Any]) -> Tensor:
    """What the class token pays to each patch in the last block, the mean over heads, while `run` passes pictures: (B, N).

    Raises `NotanError` for an encoder that does not sum a picture up in a class token.
    """
    if encoder.prefix != 1 or getattr(encoder, "pool", "cls") != "cls":
        raise NotanError(f"{type(encoder).__name__} does not sum a picture up in a class token", "one that does",
                         "--saliency text_patch or grad")
    with torch.no_grad(), recorded([blocks_of(encoder)[-1]]) as seen:
        run()
    return _weights(seen[0])[:, :, 0, 1:].mean(1)


def relevance(encoder: Any, run: Callable[[], Tensor]) -> Tensor:
    """Gradient times attention of the scores (B,) that `run` gives: (B, N).

    The positive parts of A * dscore/dA, A the last block's attention: the mean over heads, summed over who attends.
    """
    with torch.enable_grad(), recorded([blocks_of(encoder)[-1]]) as seen:
        score = run().sum()
    (g,) = torch.autograd.grad(score, seen[0].o)
    g, v = (_split(x, seen[0].heads) for x in (g, seen[0].v))           # (B, heads, L, d)
    effect = (_weights(seen[0]) * (g @ v.mT)).clamp(min=0).mean(1).sum(1)                       # (B, L)
    return effect[:, encoder.prefix:].detach()


def _weights(seen: Seen) -> Tensor:
    """softmax(q k^T / sqrt(d)): (B, heads, L, L)."""
    q, k = _split(seen.q, seen.heads), _split(seen.k, seen.heads)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, heads, L, D / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)
