"""One optimiser step: the loss as a forward pass, its gradient in one or more parts, the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from notan import world
from notan.methods._progress import Progress
from notan.runs import machine, optim
from notan.runs.config import Config

if TYPE_CHECKING:
    from accelerate import Accelerator


UNKNOWN = 10_000                                                        # stands for the steps of a budget being timed


class Step(nn.Module):
    """`method.loss` as a forward pass, which is all that DDP and compile hook."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: dict[str, Any], progress: Progress) -> dict[str, Any]:
        return self.method.loss(batch, progress)                        # type: ignore[operator]


class NotFinite(Exception):
    """The loss or the gradient of a step is not finite; the weights are as they were before it."""

    def __init__(self, step: int, progress: Progress, seed: int, terms: dict[str, Tensor]) -> None:
        super().__init__(f"step {step}")
        self.step, self.progress, self.seed, self.terms = step, progress, seed, {k: float(v) for k, v in terms.items()}


class Stepper:
    """Takes the steps of a run: a function of weights, moments, batch and step number, and of nothing else."""

    def __init__(self, config: Config, method: nn.Module, optimiser: Optimizer, accelerator: Accelerator,
                 per_epoch: int) -> None:
        self.config, self.method, self.optimiser, self.accelerator = config, method, optimiser, accelerator
        self.per_epoch = per_epoch
        self.step = accelerator.prepare_model(Step(method))
        if config.compile:
            self.step.compile()

    def progress(self, n: int) -> Progress:
        """Where step `n` stands. While a minutes budget is timed the total is not known yet, and each step stands last:
        a method may cost more towards its end.
        """
        steps = self.config.steps or UNKNOWN
        n = n if self.config.steps else steps - 1
        return Progress(n, steps, n // self.per_epoch, math.ceil(steps / self.per_epoch))

    def __call__(self, n: int, batch: dict[str, Any], inspect: Callable[[], None] | None = None) -> dict[str, Tensor]:
        """Step `n` on this rank's rows of its global batch; returns its scalar terms and the gradient's norm, detached.

        `inspect` is called while the gradients are there. Raises `NotFinite` before anything is updated.
        """
        progress, config = self.progress(n), self.config
        seed = machine.seed_step(config.seed, n)
        terms, keep = self.backward(batch, progress)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.method.parameters() if p.grad is not None])
        if not bool(torch.isfinite(terms["loss"] + norm)):
            raise NotFinite(n, progress, seed, {**terms, "grad_norm": norm})
        if inspect is not None:
            inspect()
        if config.clip:
            torch.nn.utils.clip_grads_with_norm_(self.method.parameters(), config.clip, norm)
        optim.set_rate(self.optimiser, self.rate(n))
        self.optimiser.step()
        self.optimiser.zero_grad()
        if hasattr(self.method, "after_step"):
            self.method.after_step(keep, progress)                      # type: ignore[operator]
        return {**terms, "grad_norm": norm.detach()}

    def rate(self, n: int) -> float:
        """The learning rate of step `n`."""
        return self.config.optimiser["lr"] * optim.rate(n, self.progress(n).steps, self.config.warmup)

    def backward(self, batch: dict[str, Any], progress: Progress) -> tuple[dict[str, Tensor], Any]:
        """Gradients of the mean loss over the global batch, in parts that count by their rows; terms, what to keep."""
        parts, rows = self.config.accumulate, len(batch["row"])
        cuts = [rows * i // parts for i in range(parts + 1)]
        terms: dict[str, Tensor] = {}
        kept = []
        for i, (lo, hi) in enumerate(pairwise(cuts)):
            part = batch if parts == 1 else {k: v[lo:hi] for k, v in batch.items()}
            with nullcontext() if i == parts - 1 else self.accelerator.no_sync(self.step):
                out = self.step(part, progress)
                share = 1.0 if parts == 1 else world.mean(torch.tensor(float(hi - lo)).to(out["loss"]), rows)
                self.accelerator.backward(out["loss"] * share)
            for name, value in out.items():
                if name != "keep" and isinstance(value, Tensor) and value.numel() == 1:
                    value = value.detach() * share
                    terms[name] = terms[name] + value if name in terms else value
            kept.append(out.get("keep"))
        return terms, _in_global_order(kept)


def _in_global_order(kept: list[Any]) -> Any:
    """What all parts and ranks keep: a dict of tensors, one tensor, or None."""
    if kept[0] is None:
        return None
    if isinstance(kept[0], Tensor):
        return world.gather_plain(torch.cat(kept) if len(kept) > 1 else kept[0])
    return {k: _in_global_order([part[k] for part in kept]) for k in kept[0]}
