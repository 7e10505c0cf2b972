"""Contrastive search's loop: every candidate token is read before one is taken.

The k candidates of a prompt are read as k tokens of ONE row that see the text and themselves, not one another: the cache is
neither repeated nor reordered, and the states of the others are dropped from its end. Where a model or its cache does not
allow that, the rows are repeated k times, as the public implementations do.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.runs.generation import Draw, Emit, Stream
from notan.strategies.contrastive_search import ContrastiveSearch


class Searched:
    """A generation method: `model.generate(**inputs, custom_generate=Searched(strategy))`.

    one_row: read the candidates as tokens of one row; None finds out at the first step whether that gives the same states,
    and `used_one_row` then says so.
    """

    def __init__(self, strategy: ContrastiveSearch, emit: Emit | None = None, one_row: bool | None = None) -> None:
        self.strategy, self.emit, self.one_row, self.used_one_row = strategy, emit, one_row, False

    def __call__(self, model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
                 **model_kwargs: Any) -> Tensor:
        stream = Stream(model, input_ids, generation_config, model_kwargs)
        draw = Draw(input_ids, logits_processor, stopping_criteria, generation_config, self.emit)
        with last_states(model) as states:
            z = stream.logits()[0]                                      # (B, V)
            H = unit(states[-1])                                        # (B, L, E)
            mask = stream.kwargs.get("attention_mask")
            seen = torch.ones(H.shape[:2], dtype=torch.bool, device=H.device) if mask is None else mask[:, :-1].bool()
            self.used_one_row = _one_row_is_exact(stream, z, states) if self.one_row is None else self.one_row
            read = _read_one_row if self.used_one_row else _read_repeated
            for t in itertools.count():
                p, tokens = self._candidates(draw.processors(draw.ids, z), t)               # (B, k)
                logits, keep = read(stream, tokens)                     # (B, k, V)
                h = unit(states[-1]).reshape(*tokens.shape, -1)         # (B, k, E)
                best = self.strategy.rerank(p, h, H, seen)              # (B,)
                keep(best)
                stream.append(draw.take(_at(tokens, best)))
                if draw.done:
                    break
                z = _at(logits, best)
                H = torch.cat([H, _at(h, best)[:, None]], dim=1)
                seen = F.pad(seen, (0, 1), value=True)
        return draw.ids

    def _candidates(self, scores: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens with their probabilities (B, k), or one that is drawn from the nucleus (B, 1)."""
        p = scores.softmax(1)
        if t >= self.strategy.diverse:
            top = p.topk(min(self.strategy.k, p.shape[1]))
            return top.values, top.indices
        ranked, order = p.sort(dim=1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(1) - ranked >= self.strategy.nucleus, 0.0)
        token = order.gather(1, torch.multinomial(ranked, 1))
        return p.gather(1, token), token


@contextmanager
def last_states(model: Any) -> Iterator[list[Tensor]]:
    """The states that the model's head reads, (rows, tokens, E): the newest is the list's only entry."""
    held: list[Tensor] = []

    def hold(module: Any, args: Any, out: Any) -> None:
        held[:] = [out.last_hidden_state if hasattr(out, "last_hidden_state") else out[0]]

    handle = model.base_model.register_forward_hook(hold)
    try:
        yield held
    finally:
        handle.remove()


def unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _at(x: Tensor, best: Tensor) -> Tensor:
    """Entry best[b] of x[b]: (B, k, ...) and (B,) to (B, ...)."""
    return x[torch.arange(len(x), device=x.device), best.to(x.device)]


def _cache_of(stream: Stream) -> tuple[str, Any]:
    """What `transformers` calls the cache in this version, and the cache."""
    return next((name, cache) for name in ("cache", "past_key_values") if (cache := stream.kwargs.get(name)) is not None)


def _read_one_row(stream: Stream, tokens: Tensor) -> tuple[Tensor, Any]:
    """Logits (B, k, V) after each candidate (B, k), and what keeps the chosen one's keys and values in the cache."""
    B, k = tokens.shape
    (name, cache), dtype = _cache_of(stream), stream.model.dtype
    L = cache.get_seq_length()
    text = torch.zeros(B, 1, 1, L, dtype=dtype, device=tokens.device)
    if (mask := stream.kwargs.get("attention_mask")) is not None:
        text = text.masked_fill(mask[:, None, None, :L] == 0, torch.finfo(dtype).min)
    selves = torch.full((k, k), torch.finfo(dtype).min, dtype=dtype, device=tokens.device).fill_diagonal_(0)
    sees = torch.cat([text.expand(B, 1, k, L), selves.expand(B, 1, k, k)], dim=3)
    positions = stream.kwargs["position_ids"][..., -1:].expand(*stream.kwargs["position_ids"].shape[:-1], k)
    out = stream.model(input_ids=tokens, attention_mask=sees, position_ids=positions, use_cache=True, return_dict=True,
                       **{name: cache})

    def keep(best: Tensor) -> None:
        for layer in cache.layers:
            for part in (layer.keys, layer.values):                     # (B, heads, L + k, d)
                part[:, :, L] = _at(part[:, :, L:].transpose(1, 2), best)
            layer.keys, layer.values = layer.keys[:, :, : L + 1], layer.values[:, :, : L + 1]
        stream.kwargs = stream.model._update_model_kwargs_for_generation(out, stream.kwargs)

    return out.logits.float(), keep


def _read_repeated(stream: Stream, tokens: Tensor) -> tuple[Tensor, Any]:
    """The same with every row, and its cache, k times."""
    B, k = tokens.shape
    cache = _cache_of(stream)[1]
    cache.batch_repeat_interleave(k)
    rows = {name: x.repeat_interleave(k, dim=x.ndim - 2) if name in ("attention_mask", "position_ids") and x is not None else x
            for name, x in stream.kwargs.items()}
    ids = torch.cat([stream.ids.repeat_interleave(k, dim=0), tokens.reshape(-1, 1)], dim=1)
    inputs = stream.model.prepare_inputs_for_generation(ids, next_sequence_length=1, **rows)
    out = stream.model(**inputs, return_dict=True)

    def keep(best: Tensor) -> None:
        cache.batch_select_indices(torch.arange(B, device=best.device) * k + best)
        stream.kwargs = stream.model._update_model_kwargs_for_generation(out, stream.kwargs)

    return out.logits[:, -1].float().unflatten(0, (B, k)), keep


def _one_row_is_exact(stream: Stream, z: Tensor, states: list[Tensor]) -> bool:
    """Whether this model and cache let candidates be tokens of one row: tried on copies of the cache, both ways."""
    from transformers.cache_utils import DynamicLayer

    cache = _cache_of(stream)[1]
    if stream.kwargs.get("position_ids") is None or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return False
    tokens, found = z.topk(2).indices, []
    for read in (_read_one_row, _read_repeated):
        twin = copy.copy(stream)
        twin.kwargs = {n: copy.deepcopy(x) if x is cache else x for n, x in stream.kwargs.items()}
        try:
            keep = read(twin, tokens)[1]
        except (RuntimeError, ValueError, TypeError):
            return False                                                # this attention takes no such mask
        first = unit(states[-1]).reshape(*tokens.shape, -1)
        keep(torch.ones(len(tokens), dtype=torch.long, device=tokens.device))
        twin.append(tokens[:, 1])
        found.append((first, twin.logits()[0]))         # and the next step reads the kept cache
    (h, after), (h2, after2) = found
    return bool((h - h2).abs().max() < 0.01) and bool((after - after2).abs().max() < 0.01 * after2.abs().max().clamp(min=1))
