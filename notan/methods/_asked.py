"""Rows of pictures with instructions and answers: which come together in a batch, and what an answer is set against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from notan.data import keys
from notan.data.instructions import plain
from notan.data.loader import shuffled
from notan.errors import NotanError
from notan.methods._contrast import both_ways, both_ways_by_label
from notan.methods._pairs import first_caption


def answer_contrast(z: Tensor, u: Tensor, answers: list[str], *, tau: Tensor, equal: bool) -> Tensor:
    """Pictures z and answers u (n, d) against those of all ranks, both ways: (). Where `equal`, answers of the same words (apart
    from case and punctuation) are right for each other's pictures.
    """
    if not equal:
        return both_ways(z, u, tau=tau)
    numbers = torch.tensor([keys.word(plain(answer)) & (2**63 - 1) for answer in answers], device=z.device)
    return both_ways_by_label(z, u, numbers, tau=tau)


def answers_of(batch: dict) -> list[str]:
    """`answer`, or the texts of rows that have none; [] where there is neither."""
    if "answer" in batch:
        return batch["answer"]
    return first_caption(batch) if "text" in batch or "captions" in batch else []


def each_once(read: Callable[[list[str]], Tensor], texts: list[str]) -> Tensor:
    """`read` of texts, (B, d), for which each distinct one is read once."""
    every = list(dict.fromkeys(texts))
    place = {text: i for i, text in enumerate(every)}
    found = read(every)
    return found[torch.tensor([place[text] for text in texts], device=found.device)]


def asked_batches(columns: dict[str, np.ndarray], batch_size: int, turns: int, seed: int, epoch: int) -> np.ndarray:
    """Rows in a new order every epoch, `turns` of each picture in one batch where the data says which rows show one."""
    if turns == 1 or "picture_id" not in columns:
        return shuffled(len(columns["row"]), batch_size, seed, epoch)
    return together(columns["picture_id"], batch_size, turns, seed, epoch)


def together(picture: np.ndarray, batch_size: int, turns: int, seed: int, epoch: int) -> np.ndarray:
    """Batches with as many groups of `turns` rows of one picture as fit, int64 (steps, B); picture (N,): whose rows they are.

    Rows that no group takes (a picture has no multiple of `turns`, or a batch) fill the batches up, in chance order. Rows left
    over at the end of an epoch are not used in it. Raises `NotanError` for a batch that holds no group.
    """
    if batch_size < turns:
        raise NotanError(f"a batch of {batch_size} rows for {turns} rows of a picture", f"at least {turns}", "a larger --batch")
    order = keys.shuffle(seed, epoch, len(picture))
    order = order[np.argsort(picture[order], kind="stable")]            # pictures side by side, the rows of each in chance order
    starts = np.flatnonzero(np.diff(picture[order], prepend=picture[order][:1] - 1))
    counts = np.diff(starts, append=len(order))
    place = np.arange(len(order)) - np.repeat(starts, counts)
    grouped = place < np.repeat(counts // turns * turns, counts)
    groups, loose = order[grouped].reshape(-1, turns), order[~grouped]
    groups = groups[keys.shuffle(seed + 1, epoch, len(groups))]
    k = min(batch_size * len(groups) // len(picture), batch_size // turns)                      # groups in a batch
    k = max(k, 1) if len(groups) else 0
    steps = min(len(picture) // batch_size, len(groups) // k if k else len(picture))
    used = groups[: steps * k].reshape(steps, k * turns)
    loose = np.concatenate([loose, groups[steps * k :].ravel()])
    loose = loose[keys.shuffle(seed + 2, epoch, len(loose))]
    fill = batch_size - k * turns
    return np.concatenate([used, loose[: steps * fill].reshape(steps, fill)], axis=1)
