"""Masks over tokens: bool (B, N), True = hidden, with the same exact count in every row; of texts, each token by its own chance.

Of N tokens int(N * (1 - ratio)) stay visible, in Python's float arithmetic, as in the papers' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.views.random import bits, integers, permutation, uniform

_RECTANGLES = 32  # candidates of a block mask; more than enough to reach any usual share


def hidden_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` are hidden; at least one must stay visible."""
    if not 0 <= ratio < 1 or int(tokens * (1 - ratio)) < 1:
        wanted = "a share in [0, 1) that leaves at least one token visible"
        raise NotanError(f"mask ratio {ratio} of {tokens} tokens", wanted, "lower the mask ratio")
    return tokens - int(tokens * (1 - ratio))


def _hide_first(order: Tensor, hidden: int) -> Tensor:
    """The mask (B, N) that hides the first `hidden` tokens of each row's order (B, N)."""
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return mask.scatter_(1, order[:, :hidden], True)


def random_mask(key: Tensor, tokens: int, ratio: float) -> Tensor:
    """Uniformly random tokens hidden (He et al. 2021, arXiv:2111.06377, section 3)."""
    return _hide_first(permutation(key, "mask", tokens), hidden_count(tokens, ratio))


def block_mask(key: Tensor, grid: tuple[int, int], ratio: float) -> Tensor:
    """A union of random rectangles hidden on a grid (h, w), (B, h*w) (Bao et al. 2021, arXiv:2106.08254, algorithm 1).

    Rectangles of aspect 0.3 to 1/0.3 and area from 16/196 of the grid to the hidden count are laid one after another
    until the count is reached; the last is cut to the exact count along raster order, from its top or its bottom.
    Unlike in the paper, all rectangles are drawn at once: a later one is not drawn smaller because less is left.
    """
    h, w = grid
    hidden = hidden_count(h * w, ratio)
    least = min(max(1.0, h * w * 16 / 196), float(max(hidden, 1)))
    area = uniform(key, "block area", _RECTANGLES, least, max(hidden, least) + 1e-3)  # (B, R)
    aspect = uniform(key, "block aspect", _RECTANGLES, math.log(0.3), -math.log(0.3)).exp()
    tall, wide = (area * aspect).sqrt_().round_().clamp_(1, h), (area / aspect).sqrt_().round_().clamp_(1, w)
    top = (uniform(key, "block top", _RECTANGLES) * (h - tall + 1)).floor()
    left = (uniform(key, "block left", _RECTANGLES) * (w - wide + 1)).floor()
    row, column = torch.arange(h, device=key.device), torch.arange(w, device=key.device)
    rows = (row >= top[..., None]) & (row < (top + tall)[..., None])  # (B, R, h)
    columns = (column >= left[..., None]) & (column < (left + wide)[..., None])  # (B, R, w)
    covered = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # (B, R, N)
    when = torch.where(covered.any(1), covered.byte().argmax(1), _RECTANGLES)  # (B, N) the first rectangle over a token
    raster = torch.arange(h * w, device=key.device)
    upwards = uniform(key, "block cut", 1) < 0.5
    return _hide_first((when * (h * w) + torch.where(upwards, raster.flip(0), raster)).argsort(1), hidden)


def tube_mask(key: Tensor, frames: int, grid: tuple[int, int], ratio: float) -> Tensor:
    """One random spatial mask repeated over frames, (B, frames*h*w) (Tong et al. 2022, arXiv:2203.12602, section 3.3).

    The exact count holds in each frame.
    """
    return random_mask(key, grid[0] * grid[1], ratio).repeat(1, frames)


def guided_mask(key: Tensor, scores: Tensor, ratio: float, hard: float) -> Tensor:
    """The int(M * hard) highest of scores (B, N) hidden, the rest of the M hidden tokens uniform among the others.

    Wang et al. 2023, arXiv:2304.05919, section 3.3. Equal scores rank in raster order; `hard` = 0 is a random mask.
    """
    if not 0 <= hard <= 1:
        raise NotanError(f"hard share {hard}", "a share in [0, 1]")
    hidden = hidden_count(scores.shape[1], ratio)
    hardest = scores.argsort(dim=1, descending=True, stable=True)[:, : int(hidden * hard)]
    noise = bits(key, "mask", scores.shape[1]).scatter_(1, hardest, torch.iinfo(torch.int64).min)
    return _hide_first(noise.argsort(dim=1, stable=True), hidden)


def chosen_tokens(key: Tensor, chance: Tensor, *, first: bool = False) -> Tensor:
    """Each token of a text chosen by itself with its own chance (B, T): bool (B, T).

    first: where none of a row is, the first one with a chance is, a word that cannot be left out. Chances of 0 stay out.
    """
    chosen = uniform(key, "tokens", chance.shape[1]).to(chance.device) < chance
    if not first:
        return chosen
    possible = chance > 0
    alone = torch.zeros_like(chosen).scatter_(1, possible.byte().argmax(1, keepdim=True), True)
    return torch.where(chosen.any(1, keepdim=True), chosen, alone & possible)


def hide_tokens(ids: Tensor, chosen: Tensor, mask_id: int) -> Tensor:
    """The ids (B, T) with `mask_id` where they are chosen."""
    return ids.masked_fill(chosen, mask_id)


def hide_most_tokens(key: Tensor, ids: Tensor, chosen: Tensor, mask_id: int, words: Tensor) -> Tensor:
    """Of the chosen ids (B, T) 80% become `mask_id`, 10% a random one of `words` (V,), 10% stay (BERT: Devlin et al. 2019)."""
    way = uniform(key, "which way", ids.shape[1])
    other = words[integers(key, "another word", ids.shape[1], len(words))]
    changed = torch.where(way < 0.8, mask_id, torch.where(way < 0.9, other, ids))
    return torch.where(chosen, changed, ids)


def _indices(chosen: Tensor) -> Tensor:
    counts = chosen.sum(1)
    if not bool((counts == counts[:1]).all()):
        seen = f"a mask that chooses between {int(counts.min())} and {int(counts.max())} tokens of a row"
        raise NotanError(seen, "the same number in every row")
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def keep_indices(mask: Tensor) -> Tensor:
    """Positions of the visible tokens in raster order, int64 (B, K)."""
    return _indices(~mask)


def hidden_indices(mask: Tensor) -> Tensor:
    """Positions of the hidden tokens in raster order, int64 (B, M)."""
    return _indices(mask)
