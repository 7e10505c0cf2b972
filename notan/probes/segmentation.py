"""Linear segmentation of frozen dense features: a ridge probe on each cell, its scores brought to pixels, mean IoU.

A cell's target is the share of each class among its pixels, so no majority is forced on cells that a border crosses.
The scores are interpolated bilinearly to the size of the truth and the largest wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from notan.data import keys
from notan.errors import NotanError
from notan.probes.features import check_finite
from notan.probes.protocol import Protocol
from notan.probes.ridge import Fit, fit, scores

CELLS = 50_000  # most cells that are fitted, a keyed choice


def segmentation(
    train_maps: Tensor,
    train_seg: Tensor,
    test_maps: Tensor,
    test_seg: Tensor,
    *,
    classes: int,
    ignore: int = 255,
    background: int | None = None,
    split: str = "the test split",
) -> dict[str, Any]:
    """Mean IoU of the per-cell linear probe. Maps (N, D, h, w) float, truth (N, H, W) int with values 0 to classes - 1.

    Pixels labelled `ignore` count nowhere. `background` is fitted like any class but left out of the mean. The mean is
    over the classes that occur in the test truth. Returns `miou`, `iou` {class: value}, `accuracy` (of pixels),
    `lambda`, `n` (cells fitted) and `protocol`, which says these rules. Raises `NotanError` on mismatched shapes,
    labels out of range, features that are not finite, or a single class.
    """
    _check(train_maps, train_seg, "training", classes, ignore)
    _check(test_maps, test_seg, "test", classes, ignore)
    x, share = _cells(train_maps, train_seg, classes, ignore)
    if int((share.sum(0) > 0).sum()) < 2:
        raise NotanError("the training truth holds fewer than two classes", "at least two among the pixels that count")
    probe = fit(x, share)
    confusion = torch.zeros(classes, classes, dtype=torch.long)  # (truth, guess)
    for guess, truth in _pixels(probe, test_maps, test_seg):
        counts = truth != ignore
        confusion += torch.bincount(truth[counts] * classes + guess[counts], minlength=classes**2).view(
            classes, classes
        )
    return _summary(confusion, background) | {
        "lambda": probe.penalty,
        "n": len(x),
        "protocol": Protocol(
            "linear segmentation: closed-form ridge per cell, scores interpolated to pixels",
            split,
            len(train_maps),
            len(test_maps),
            notes=_rules(len(x), ignore, background),
        ),
    }


def _cells(maps: Tensor, seg: Tensor, classes: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Features (M, D) and class shares (M, K) of the cells that hold a pixel that counts; at most CELLS of them."""
    N, _, h, w = maps.shape
    order = np.argsort(keys.fold(keys.word("cells"), np.arange(N * h * w)), kind="stable")
    share = torch.cat([_shares(s, (h, w), classes, ignore) for s in seg.split(64)])  # (N * h * w, K)
    index = torch.from_numpy(order)
    index = index[share[index].sum(1) > 0][:CELLS].sort().values
    image, cell = index // (h * w), index % (h * w)
    x = maps[image, :, cell // w, cell % w]  # (M, D)
    return x, share[index] / share[index].sum(1, keepdim=True)


def _shares(seg: Tensor, grid: tuple[int, int], classes: int, ignore: int) -> Tensor:
    counts = seg != ignore
    hot = F.one_hot(seg.long().where(counts, 0), classes).float() * counts.unsqueeze(-1)  # (B, H, W, K)
    return F.adaptive_avg_pool2d(hot.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1).flatten(0, 2)


def _pixels(probe: Fit, maps: Tensor, seg: Tensor, chunk: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Guesses and truth (B, H, W) in chunks of images."""
    for m, truth in zip(maps.split(chunk), seg.split(chunk)):
        B, D, h, w = m.shape
        s = scores(probe, m.permute(0, 2, 3, 1).reshape(-1, D)).view(B, h, w, -1).permute(0, 3, 1, 2)
        yield F.interpolate(s.float(), truth.shape[1:], mode="bilinear", align_corners=False).argmax(1), truth.long()


def _summary(confusion: Tensor, background: int | None) -> dict[str, Any]:
    c = confusion.double()
    right, truth, guess = c.diagonal(), c.sum(1), c.sum(0)
    present = [k for k in range(len(c)) if truth[k] > 0 and k != background]
    if not present:
        raise NotanError("the test truth holds no class to score", "at least one pixel that counts")
    iou = {k: float(right[k] / (truth[k] + guess[k] - right[k])) for k in present}
    return {"miou": float(np.mean(list(iou.values()))), "iou": iou, "accuracy": float(right.sum() / truth.sum())}


def _rules(cells: int, ignore: int, background: int | None) -> str:
    rule = (
        "background counts as a class"
        if background is None
        else f"background (class {background}) is left out of the mean"
    )
    return f"{cells:,} cells fitted; pixels labelled {ignore} ignored; {rule}; mean over the classes in the test truth"


def _check(maps: Tensor, seg: Tensor, name: str, classes: int, ignore: int) -> None:
    if maps.ndim != 4 or seg.ndim != 3 or len(maps) != len(seg) or not len(maps):
        raise NotanError(
            f"{name} maps are {tuple(maps.shape)} and truth {tuple(seg.shape)}", "(N, D, h, w) and (N, H, W)"
        )
    wrong = seg[(seg != ignore) & ((seg < 0) | (seg >= classes))]
    if len(wrong):
        raise NotanError(
            f"{len(wrong):,} {name} pixels have labels outside the {classes} classes (e.g. {int(wrong[0])})",
            f"0 to {classes - 1}, or {ignore} to ignore",
        )
    check_finite(maps, f"{name} maps")
