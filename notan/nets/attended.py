"""How much each patch counts for what a transformer says of a picture, by the attention of its last block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.hub import inside


def class_attention(encoder: Any, run: Callable[[], Any]) -> Tensor:
    """What the class token pays to each patch in the last block, the mean over heads, while `run` passes pictures: (B, N).

    Raises `NotanError` for an encoder that does not sum a picture up in a class token.
    """
    if encoder.prefix != 1 or getattr(encoder, "pool", "cls") != "cls":
        raise NotanError(f"{type(encoder).__name__} does not sum a picture up in a class token", "one that does",
                         "--saliency text_patch or grad")
    with _seen(encoder) as seen, torch.no_grad():
        run()
    return _weights(seen)[:, :, 0, 1:].mean(1)


def relevance(encoder: Any, run: Callable[[], Tensor]) -> Tensor:
    """Gradient times attention of the scores (B,) that `run` gives: (B, N).

    The positive parts of A * dscore/dA, A the last block's attention: the mean over heads, summed over who attends.
    """
    with torch.enable_grad(), _seen(encoder) as seen:
        score = run().sum()
    (g,) = torch.autograd.grad(score, seen["out"])
    heads = seen["heads"]
    g, v = (_split(x, heads) for x in (g, seen["v"]))                   # (B, heads, L, d)
    effect = (_weights(seen) * (g @ v.mT)).clamp(min=0).mean(1).sum(1)  # (B, L)
    return effect[:, encoder.prefix:].detach()


def _weights(seen: dict[str, Any]) -> Tensor:
    """softmax(q k^T / sqrt(d)): (B, heads, L, L)."""
    q, k = (_split(seen[name], seen["heads"]) for name in ("q", "k"))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def _split(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) to (B, heads, L, D / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


@contextmanager
def _seen(encoder: Any) -> Iterator[dict[str, Any]]:
    """While it lasts, the last block's q, k, v and what its heads give, `out` (B, L, D each), from where gradients begin."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, x: seen.update({name: x.detach()})

    def keep_all(_module: nn.Module, _inputs: Any, x: Tensor) -> None:
        seen.update(zip("qkv", x.detach().chunk(3, dim=2)))

    def cut(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen["out"] = inputs[0].detach().requires_grad_(torch.is_grad_enabled())
        return (seen["out"], *inputs[1:])

    attention: Any
    if hasattr(encoder, "blocks"):
        attention = encoder.blocks[-1].attn
        seen["heads"] = attention.heads
        hooks = [attention.qkv.register_forward_hook(keep_all), attention.proj.register_forward_pre_hook(cut)]
    else:
        last: Any = inside(encoder.model, encoder.config["source"])[1][-1]
        attention = getattr(last, "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")):
            raise NotanError(f"the attention of {encoder.config['source']} cannot be reached", "one such as CLIP's",
                             "--saliency text_patch")
        seen["heads"] = encoder.model.config.num_attention_heads
        hooks = [getattr(attention, f"{name}_proj").register_forward_hook(keep(name)) for name in "qkv"]
        hooks.append(attention.out_proj.register_forward_pre_hook(cut))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
