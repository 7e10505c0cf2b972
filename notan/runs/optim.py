"""Parameter groups, the learning rate over a run, and the optimisers by name."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from notan.errors import NotanError, did_you_mean

KNOWN: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "sgd": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "lars": {"momentum": 0.9, "eta": 1e-3, "weight_decay": 0.0},
}
NEVER_DECAYED = re.compile(r"(bias|token\w*|pos_embed\w*|positions?|u0)$")


def complete(settings: dict[str, Any], *, batch: int, lr: float | None) -> dict[str, Any]:
    """A recipe's `optimiser` with every default written out and `lr` at its peak.

    lr_rule "linear256" scales the recipe's lr by batch / 256 (Goyal et al. 2017); a given `lr` is the peak itself.
    """
    settings = dict(settings)
    name, rule = settings.pop("name"), settings.pop("lr_rule", "plain")
    if name not in KNOWN:
        raise NotanError(f"there is no optimiser {name!r}", ", ".join(KNOWN), did_you_mean(name, KNOWN))
    if rule not in ("plain", "linear256"):
        raise NotanError(f"there is no lr_rule {rule!r}", "plain or linear256")
    options = {**KNOWN[name], "layer_decay": None}
    unknown = settings.keys() - options.keys() - {"lr"}
    if unknown:
        raise NotanError(f"{name} has no setting {min(unknown)!r}", ", ".join(options),
                         did_you_mean(min(unknown), options))
    base = settings.pop("lr")
    peak = lr if lr is not None else base * batch / 256 if rule == "linear256" else base
    return {"name": name, "lr": float(peak), **options, **settings}


def build(settings: dict[str, Any], method: nn.Module) -> Optimizer:
    """The optimiser of `complete`d settings over the trainable parameters of `method`."""
    options = {k: v for k, v in settings.items() if k not in ("name", "layer_decay", "weight_decay")}
    groups = parameter_groups(method, weight_decay=settings["weight_decay"], layer_decay=settings["layer_decay"])
    if settings["name"] == "adamw":
        return AdamW(groups, lr=options["lr"], betas=tuple(options["betas"]), eps=options["eps"],
                     fused=next(method.parameters()).device.type in ("cpu", "cuda"))
    if settings["name"] == "sgd":
        return SGD(groups, lr=options["lr"], momentum=options["momentum"], nesterov=options["nesterov"])
    return LARS(groups, lr=options["lr"], momentum=options["momentum"], eta=options["eta"])


def parameter_groups(method: nn.Module, *, weight_decay: float,
                     layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Groups that share decay and rate. Vectors, biases, tokens and position embeddings never decay.

    With `layer_decay` d, layer i of an encoder of n layers learns at d ** (n + 1 - i) of the rate, the embedding being
    layer 0 and everything after its blocks n + 1 (Clark et al. 2020; BEiT). Each group keeps its parameters' `names`.
    """
    named = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
    depth = max((_layer(n) or 0 for n, _ in named), default=0)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, p in named:
        decayed = p.ndim > 1 and not NEVER_DECAYED.search(name)
        layer = _layer(name)
        scale = 1.0 if layer_decay is None or layer is None else layer_decay ** (depth + 1 - layer)
        group = groups.setdefault((decayed, scale), {
            "params": [], "names": [], "weight_decay": weight_decay if decayed else 0.0, "scale": scale,
            "decayed": decayed})
        group["params"].append(p)
        group["names"].append(name)
    return list(groups.values())


def _layer(name: str) -> int | None:
    """0 for an encoder's embedding or stem, i for its i-th block or stage (from 1), None for everything after them."""
    if not re.search(r"(^|\.)encoder\.", name):
        return None
    if block := re.search(r"(?:blocks|layers?)\.(\d+)\.", name):
        return int(block[1]) + 1
    if stage := re.search(r"(?:layer|stage)(\d+)\.", name):
        return int(stage[1])
    return 0 if re.search(r"embed|token|stem|conv1\.|bn1\.", name) else None


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at step 0 <= `step` < `steps`: linear over the `warmup` share, then a half cosine."""
    first = round(warmup * steps)
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def set_rate(optimiser: Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


class LARS(Optimizer):
    """SGD with momentum whose step on each matrix is scaled by eta |w| / |g + wd w| (You et al. 2017, algorithm 1).

    The rate of a step enters the momentum with its gradient, so a rate that changes does not rescale older gradients.
    Groups with "decayed" False take the plain step, as SimCLR and BYOL do for biases and norms.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float = 0.9, eta: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": 0.0, "decayed": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:                        # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = torch._foreach_add([p.grad for p in params], params, alpha=group["weight_decay"])
            if group["decayed"]:
                torch._foreach_mul_(updates, _trust(params, updates, group["eta"]))  # type: ignore[arg-type]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates, alpha=group["lr"])
            torch._foreach_sub_(params, momenta)


def _trust(params: list[Tensor], updates: tuple[Tensor, ...], eta: float) -> list[Tensor]:
    sizes, norms = torch._foreach_norm(params), torch._foreach_norm(updates)
    return [torch.where((w > 0) & (g > 0), eta * w / g, 1.0) for w, g in zip(sizes, norms)]
