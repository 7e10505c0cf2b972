"""The loop that every strategy decodes with, on the machinery of `transformers`' own `generate`.

`generate` prepares inputs, cache, processors and stopping criteria and then calls what it was given as
`custom_generate`: `open_stream` gives the prepared stream back, so that any number of models can be stepped side by
side, and `Combined` is a complete generation method (`lookahead.py` has the one that tries tokens before it takes one).
Streams that share weights are rows of one batch: contexts x prompts, the main context's rows first.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.strategies._strategy import Strategy

Emit = Callable[[Tensor], None]                                         # the tokens (B,) of each step


@dataclass
class Stream:
    """Rows of one model with their cache: `logits` after what was appended, `append` the next token of every row.

    layers: what the head would say of these layers' states is given too, 0 being the embeddings; normed: after the final
    norm, which the head's own input has passed through.
    """

    model: Any
    ids: Tensor                                                         # (R, L)
    config: Any
    kwargs: dict[str, Any]
    started: bool = False
    layers: tuple[int, ...] = ()
    normed: bool = False
    forward: Any = None                                                 # the model after the prompt, compiled or not

    def logits(self) -> list[Tensor]:
        """Logits at the last position, float32 (R, V): the model's, then those of `layers`."""
        if self.layers:
            self.kwargs["output_hidden_states"] = True
        out = self.step()
        early = heads_word(self.model, [out.hidden_states[j][:, -1] for j in self.layers], self.normed)
        return [out.logits[:, -1].float(), *early]

    def step(self) -> Any:
        """The model's output for what it has not read yet."""
        if not self.started:
            with each_picture_once(self.model):
                out = self.model._prefill(self.ids, self.config, self.kwargs)
        else:
            new = 1 if self.kwargs.get("use_cache") else None           # without a cache all is read again
            inputs = self.model.prepare_inputs_for_generation(self.ids, next_sequence_length=new, **self.kwargs)
            out = self.forward(**inputs, return_dict=True)
        self.kwargs = self.model._update_model_kwargs_for_generation(out, self.kwargs)
        if not self.started:                                            # one-token steps are compiled where `generate` would
            compiles = self.model._valid_auto_compile_criteria(self.kwargs, self.config)
            self.forward = self.model.get_compiled_call(self.config.compile_config) if compiles else self.model
        self.started = True
        return out

    def append(self, tokens: Tensor) -> None:                           # (R,)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)


@torch.no_grad()
def open_stream(model: Any, inputs: dict[str, Tensor], layers: tuple[int, ...] = (), normed: bool = False,
                **settings: Any) -> Stream:
    """A stream that `generate` has prepared, with its `settings`: positions, mask and cache. layers, normed: `Stream`'s."""
    def prepared(model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
                 **kwargs: Any) -> Stream:
        return Stream(model, input_ids, generation_config, kwargs, layers=layers, normed=normed)

    with each_picture_once(model):
        return model.generate(**inputs, custom_generate=prepared, **settings)


def heads_word(model: Any, states: Sequence[Tensor], normed: bool) -> list[Tensor]:
    """Float32 logits (..., V) that the model's head gives for states (..., E) of earlier layers; normed: through the final
    norm first."""
    head, norm = model.get_output_embeddings(), final_norm(model) if normed else lambda h: h
    return [head(norm(h)).float() for h in states]


def final_norm(model: Any) -> Any:
    """The norm before the head. Raises `NotanError` where none has a usual name."""
    for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm"):
        if hasattr(model.base_model, name):
            return getattr(model.base_model, name)
    raise NotanError(f"{type(model).__name__} has no final norm with a usual name", "norm or ln_f", "leave the norm out")


class Combined:
    """A generation method: `model.generate(**main, custom_generate=Combined(strategy, streams))`, main being the B main rows.

    streams: each with the places in the strategy's order that its rows fill, so many times B rows; what their `layers` say
    comes after all places. From `generate` come the processors, the stopping criteria and the end, made for B rows; the
    reading is the streams'. emit: called with the tokens (B,) of every step.
    """

    def __init__(self, strategy: Strategy, streams: Sequence[tuple[Stream, Sequence[int]]], emit: Emit | None = None) -> None:
        self.strategy, self.streams, self.emit = strategy, streams, emit

    def __call__(self, model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
                 **model_kwargs: Any) -> Tensor:
        draw = Draw(input_ids, logits_processor, stopping_criteria, generation_config, self.emit)
        for t in itertools.count():
            tokens = draw(self.scores(t, input_ids.device))
            if draw.done:
                break
            for stream, places in self.streams:
                stream.append(tokens.repeat(len(places)).to(stream.ids.device))
        return draw.ids

    @torch.no_grad()
    def scores(self, t: int, device: Any) -> Tensor:
        """The strategy's scores (B, V) of what may come at step t, before processors."""
        z: dict[int, Tensor] = {}                                       # place -> (B, V)
        early: list[Tensor] = []
        for stream, places in self.streams:
            last, *layers = (x.to(device) for x in stream.logits())
            z |= zip(places, last.chunk(len(places)))
            early += [part for x in layers for part in x.chunk(len(places))]
        return self.strategy.combine([*(z[place] for place in sorted(z)), *early], t)


class Draw:
    """From scores to tokens, as `generate` does it: processors, one draw or the best, padding after the end, stopping."""

    def __init__(self, ids: Tensor, processors: Any, criteria: Any, config: Any, emit: Emit | None) -> None:
        self.ids, self.processors, self.criteria, self.config, self.emit = ids, processors, criteria, config, emit
        self.unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)

    @property
    def done(self) -> bool:
        return not self.unfinished.any()

    def __call__(self, scores: Tensor) -> Tensor:                       # (B, V) -> (B,)
        scores = self.processors(self.ids, scores)
        if self.config.do_sample:
            return self.take(torch.multinomial(scores.softmax(1), 1)[:, 0])
        return self.take(scores.argmax(1))

    def take(self, tokens: Tensor) -> Tensor:
        """Append the chosen tokens (B,); a row that has ended gets padding."""
        if (pad := self.config._pad_token_tensor) is not None:
            tokens = torch.where(self.unfinished, tokens, pad.to(tokens.device))
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self.unfinished = self.unfinished & ~self.criteria(self.ids, None)
        if self.emit is not None:
            self.emit(tokens)
        return tokens


@contextmanager
def each_picture_once(model: Any) -> Iterator[None]:
    """Inside, the model's picture encoder reads rows of equal pixels (N, C, H, W) once and gives all of them the result.

    Contexts that differ in their words alone share a picture. Encoders that take pictures in pieces read all of them.
    """
    towers = [m for name, m in model.named_modules() if name.rpartition(".")[2] in ("vision_tower", "vision_model", "visual")]
    inverse: list[int] = []

    def distinct(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        pixels = args[0] if args else kwargs.get("pixel_values")
        inverse.clear()
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            return None
        first: dict[bytes, int] = {}
        places = [first.setdefault(hashlib.blake2b(x.float().cpu().numpy().tobytes()).digest(), i) for i, x in enumerate(pixels)]
        rows = list(first.values())
        inverse.extend(rows.index(i) for i in places)
        return ((pixels[rows], *args[1:]), kwargs) if args else (args, {**kwargs, "pixel_values": pixels[rows]})

    def spread(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
        return _map(out, lambda x: x[inverse]) if inverse else out

    handles = [h for m in towers[:1] for h in (m.register_forward_pre_hook(distinct, with_kwargs=True),
                                               m.register_forward_hook(spread, with_kwargs=True))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _map(x: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """f of every tensor in a tensor, tuple or model output."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return type(x)(**{k: _map(v, f) for k, v in x.items()})
    return type(x)(_map(v, f) for v in x) if isinstance(x, (tuple, list)) else x
