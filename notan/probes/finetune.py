"""End-to-end fine-tuning: every weight of a copy of the encoder, and a fresh linear head, on labelled rows."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.data import keys
from notan.errors import NotanError
from notan.probes.features import check_several
from notan.probes.protocol import Protocol
from notan.probes.ridge import accuracies
from notan.views.geometry import floats, resize

Optimiser = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]  # from groups that carry lr and weight_decay
Augment = Callable[[Tensor, Tensor], Tensor]  # (pixels (B, C, H, W), keys (B,)) -> pixels


def finetune(
    encoder: Any,
    rows: Any,
    index: np.ndarray,
    test_rows: Any,
    *,
    classes: int,
    steps: int,
    lr: float,
    seed: int,
    batch: int,
    optimiser: Optimiser = torch.optim.AdamW,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    augment: Augment | None = None,
    split: str = "the test split",
) -> dict[str, Any]:
    """Train a copy of `encoder` and a linear head on `rows.take(index)` for `steps`; accuracy on all of `test_rows`.

    The learning rate rises linearly over the share `warmup` of the steps and falls to 0 along a cosine; a layer's is
    multiplied by `layer_decay` once for each layer above it. SGD: `optimiser=partial(torch.optim.SGD, momentum=0.9)`.
    Which rows come when, the views (`augment`), the head and dropout depend on `seed` only; the caller's random state
    and encoder are left alone. Returns `accuracy`, `balanced`, `losses`, `n` and `protocol`. Raises `NotanError` for
    one class, labels beyond `classes`, or a loss that is no longer finite.
    """
    index, batch = np.asarray(index), min(batch, len(index))
    labels = torch.from_numpy(rows.values("label")[index])
    _check(labels, classes, steps, batch)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _Classifier(copy.deepcopy(encoder), classes)
        groups = parameter_groups(model, lr=lr, layer_decay=layer_decay, weight_decay=weight_decay)
        losses = _train(model, rows, index, optimiser(groups), steps, batch, seed, warmup, augment)
        guess = torch.cat([_scores(model, b["image"]).argmax(1) for b in _batches(test_rows)])
    name = f"fine-tuning of all weights: {steps} steps, batch {batch}, lr {lr:g}, layer decay {layer_decay:g}"
    return {
        **accuracies(guess, torch.from_numpy(test_rows.values("label"))),
        "losses": losses,
        "n": len(index),
        "protocol": Protocol(name, split, len(index), len(test_rows), seeds=(seed,)),
    }


def parameter_groups(
    model: nn.Module, *, lr: float, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimiser groups by depth: `lr * layer_decay ** (layers above)`, no weight decay on vectors (biases and norms).

    Layers are what names call `blocks.i`, `layer.i`, `layers.i`, `layeri` or `stages.i`; what comes before them is the
    deepest, everything else (norm, head) the top.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    depth = {n: _depth(n) for n, _ in named}
    top = max([d for d in depth.values() if d is not None], default=0) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in named:
        d = depth[name]
        groups.setdefault((top if d is None else d, p.ndim < 2), []).append(p)
    return [
        {"params": ps, "lr": lr * layer_decay ** (top - d), "weight_decay": 0.0 if vector else weight_decay}
        for (d, vector), ps in sorted(groups.items())
    ]


def _depth(name: str) -> int | None:
    """1-based layer of a parameter, 0 for the stem, None for the top."""
    found = re.search(r"(?:^|\.)(?:blocks|layer|layers|stages)\.(\d+)\.", name)
    if found:
        return int(found[1]) + 1
    if found := re.search(r"(?:^|\.)layer(\d+)\.", name):
        return int(found[1])
    stem = re.search(r"(?:^|\.)(cls_token|pos_embed|patch_embed|conv1|bn1|embeddings|stem)\b", name)
    return 0 if stem else None


class _Classifier(nn.Module):
    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(True)
        self.head = nn.Linear(encoder.dim, classes)
        self.to(next(encoder.parameters()).device)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, C, H, W) in [0, 1] -> (B, K)
        return self.head(self.encoder.features(resize(pixels, self.encoder.image_size)))


def _train(
    model: nn.Module,
    rows: Any,
    index: np.ndarray,
    optimiser: torch.optim.Optimizer,
    steps: int,
    batch: int,
    seed: int,
    warmup: float,
    augment: Augment | None,
) -> list[float]:
    peak = [g["lr"] for g in optimiser.param_groups]
    per_epoch = len(index) // batch
    device = next(model.parameters()).device
    losses = []
    model.train()
    for step in range(steps):
        epoch, at = divmod(step, per_epoch)
        if at == 0:
            order = index[keys.shuffle(seed, epoch, len(index))]
        taken = rows.take(order[at * batch : (at + 1) * batch])
        x = floats(taken["image"].to(device))
        if augment:
            x = augment(x, torch.from_numpy(keys.row_keys(seed, epoch, taken["row"].numpy())).to(device))
        for group, lr in zip(optimiser.param_groups, peak):
            group["lr"] = lr * _schedule(step, steps, warmup)
        loss = F.cross_entropy(model(x), taken["label"].to(device))
        if not torch.isfinite(loss):
            raise NotanError(
                f"the fine-tuning loss is {loss.item()} at step {step}", "a finite loss", f"lower lr, now {peak[-1]:g}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = max(1, int(steps * warmup))
    return (
        (step + 1) / rising
        if step < rising
        else 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    )


@torch.no_grad()
def _scores(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return model(floats(images.to(next(model.parameters()).device))).cpu()


def _batches(rows: Any, size: int = 512) -> Any:
    return (rows.take(np.arange(i, min(i + size, len(rows)))) for i in range(0, len(rows), size))


def _check(labels: Tensor, classes: int, steps: int, batch: int) -> None:
    if not len(labels):
        raise NotanError("there are no labelled rows", "at least two classes of them")
    check_several(labels)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise NotanError(
            f"labels run from {int(labels.min())} to {int(labels.max())}", f"0 to {classes - 1} for {classes} classes"
        )
    if steps < 1 or batch < 1:
        raise NotanError(f"steps={steps}, batch={batch}", "at least 1 of each")
