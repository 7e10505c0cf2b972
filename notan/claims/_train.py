"""The training loop of claims: what `notan train` does to the weights, without a run folder, in memory, on one core.

Claims train many small models, some of which are no method of the library (an ablation, a baseline with other views),
so they call `fit` on a module. Optimiser groups, learning rate and batches are those of `notan.runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notan import world
from notan.data import keys
from notan.data.loader import Loader
from notan.data.table import Data, Rows
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.probes.features import extract
from notan.probes.knn import knn_cosine
from notan.probes.ridge import ridge
from notan.runs import optim


def fit(method: Any, rows: Rows, *, steps: int, batch: int, lr: float, seed: int, weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95), warmup: float = 0.1,
        each: Callable[[int], None] | None = None) -> Any:
    """Train `method` (`loss(batch, progress)`, maybe `after_step`) by AdamW and return it in eval mode.

    The rate rises over the `warmup` share of the steps and falls as a half cosine; vectors never decay. Keys and order
    of the rows come from `seed`, so arms that share a seed see the same batches. All in fp32: a claim's values are to
    come out alike on machines with and without bfloat16. `each(step)` is called after every step. Raises `NotanError`
    when the loss is not finite.
    """
    settings = optim.complete({"name": "adamw", "lr": lr, "betas": betas, "weight_decay": weight_decay},
                              batch=batch, lr=None)
    optimiser = optim.build(settings, method)
    loader = Loader(rows, batch_size=batch, seed=seed, batches=getattr(method, "batches", None), prefetch=0)
    epochs = -(-steps // loader.steps_per_epoch)
    device = next(method.parameters()).device
    torch.manual_seed(seed)                                             # dropout
    method.train()
    for step, columns in zip(range(steps), loader.at(0)):
        progress = Progress(step, steps, step // loader.steps_per_epoch, epochs)
        optim.set_rate(optimiser, lr * optim.rate(step, steps, warmup))
        columns = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in columns.items()}
        out = method.loss(columns, progress)
        if step % 50 == 0 and not torch.isfinite(out["loss"]):
            raise NotanError(f"the loss of {type(method).__name__} is {out['loss'].item()} at step {step}",
                             "finite numbers", f"a lower rate than {lr}")
        optimiser.zero_grad(set_to_none=True)
        out["loss"].backward()
        optimiser.step()
        if hasattr(method, "after_step"):
            method.after_step({k: world.gather_plain(v) for k, v in (out.get("keep") or {}).items()}, progress)
        if each:
            each(step)
    return method.eval()


def built(seed: int, make: Callable[[], nn.Module]) -> Any:
    """`make()` with weights that are a function of `seed`, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def subset(rows: Rows, count: int, seed: int = 0) -> Rows:
    """`count` rows by key, always the same ones; all of them when there are no more."""
    return rows.select(np.sort(keys.shuffle(seed, 0, len(rows))[:count])) if count < len(rows) else rows


def small(data: Data, train: int, test: int) -> tuple[Rows, Rows]:
    """A training and a test split of at most so many rows, by key."""
    return subset(data.train, train), subset(data.test, test)


def probes(encode: Callable[[dict[str, Any]], Tensor], train: Rows, test: Rows, k: int = 20) -> dict[str, float]:
    """Test accuracy of the two default probes on frozen features: {"knn", "ridge"}."""
    x, x_test = extract(encode, train), extract(encode, test)
    y, y_test = (torch.from_numpy(rows.values("label")) for rows in (train, test))
    return {"knn": knn_cosine(x, y, x_test, y_test, k=k)["accuracy"],
            "ridge": ridge(x, y, x_test, y_test)["accuracy"]}
