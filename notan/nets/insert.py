"""Vectors that stand among the tokens of a transformer: prompts (DiSa), conditions (FocalLens), a class token (CoCa)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.errors import NotanError

Extra = tuple[Tensor, ...]                                              # for each of the first blocks: (1 or B, K, D)


def inserted(x: Tensor, vectors: Tensor, at: int | Tensor) -> Tensor:
    """vectors (1 or B, K, D) before place `at` of x (B, L, D), one place for all or int64 (B,): (B, L + K, D)."""
    B, L, _ = x.shape
    vectors = vectors.to(x.dtype).expand(B, -1, -1)
    if isinstance(at, int):
        return torch.cat([x[:, :at], vectors, x[:, at:]], dim=1)
    K, at = vectors.shape[1], at[:, None]
    place = torch.arange(L + K, device=x.device).expand(B, -1)          # (B, L + K)
    source = torch.where(place < at, place, torch.where(place < at + K, L + place - at, place - K))
    return torch.cat([x, vectors], dim=1).gather(1, source[..., None].expand(-1, -1, x.shape[2]))


def taken_out(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, L + 1, D) without the token at each row's place, int64 (B,), and that token: (B, L, D) and (B, D)."""
    place = torch.arange(x.shape[1] - 1, device=x.device).expand(len(x), -1)
    source = torch.cat([place + (place >= at[:, None]), at[:, None]], dim=1)                    # (B, L + 1)
    x = x.gather(1, source[..., None].expand(-1, -1, x.shape[2]))
    return x[:, :-1], x[:, -1]


def replaced(x: Tensor, vectors: Tensor, at: int) -> Tensor:
    """x (B, L, D) with vectors (1 or B, K, D) in place of its tokens at, at + 1, ..."""
    vectors = vectors.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, :at], vectors, x[:, at + vectors.shape[1]:]], dim=1)


def replaced_at(x: Tensor, vector: Tensor, at: Tensor) -> Tensor:
    """x (B, L, D) with vector (D,) in place of each row's token at its place, int64 (B,)."""
    here = torch.arange(x.shape[1], device=x.device) == at[:, None]     # (B, L)
    return torch.where(here[..., None], vector.to(x.dtype), x)


def through(blocks: nn.ModuleList, x: Tensor, extra: Extra, at: int) -> Tensor:
    """x (B, L, D), in which `extra[0]` stands from place `at` on, through the blocks; before block l `extra[l]` takes its places.

    So one set of vectors lives through all blocks. Of several each is thrown away before the next, and the last lives on (deep
    prompts: Jia et al. 2022, arXiv 2203.12119, equations 4 and 5).
    """
    if len(extra) > len(blocks):
        raise NotanError(f"vectors for {len(extra)} blocks in an encoder of {len(blocks)}", "no more than it has blocks",
                         f"a depth of at most {len(blocks)}")
    for l, block in enumerate(blocks):
        x = block(x if l == 0 or l >= len(extra) else replaced(x, extra[l], at))
    return x


def count(extra: Extra) -> int:
    """How many tokens they take."""
    return extra[0].shape[1] if extra else 0
