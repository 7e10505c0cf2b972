"""Low-rank adaptation: a frozen weight W and a trained W + (alpha / r) B A (Hu et al. 2022, arXiv 2106.09685)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from notan.errors import NotanError


class LowRank(nn.Module):
    """W + (alpha / r) B A, of rank r, for a weight W (out, in); equal to W at first, as B is 0.

    transposed: W is (in, out), as in GPT-2's layers.
    """

    def __init__(self, W: Tensor, rank: int, alpha: float, transposed: bool) -> None:
        super().__init__()
        out, inner = W.shape[::-1] if transposed else W.shape
        self.A, self.B = nn.Parameter(W.new_empty(rank, inner)), nn.Parameter(W.new_zeros(out, rank))
        self.scale, self.transposed = alpha / rank, transposed
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, W: Tensor) -> Tensor:
        added = self.scale * self.B @ self.A                            # (out, in)
        return W + (added.T if self.transposed else added)


def add_lora(model: Any, rank: int, alpha: float) -> None:
    """Freeze `model` and adapt the weight of every linear layer but its head.

    The sum W + (alpha / r) B A is made anew in each pass, so a step costs what it costs without: what is saved is the
    optimiser's memory. Raises `NotanError` when there is no such layer, or the rank is not positive.
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    if rank < 1:
        raise NotanError(f"LoRA of rank {rank}", "at least 1", "--lora 8, or 0 to train all weights")
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    if not layers:
        raise NotanError(f"{type(model).__name__} has no linear layers to adapt", "a transformer", "--lora 0")
    for layer in layers:
        added = LowRank(layer.weight.detach(), rank, alpha, isinstance(layer, Conv1D))
        parametrize.register_parametrization(layer, "weight", added)


def merged(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` as if it had no parametrisations: every sum as one weight under its own name."""
    state = {name: x for name, x in model.state_dict().items() if ".parametrizations." not in name}
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            state |= {f"{prefix}.{name}": getattr(module, name).detach() for name in module.parametrizations}  # type: ignore[union-attr]
    return state
