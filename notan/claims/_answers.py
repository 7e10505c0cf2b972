"""Scores of given answers under a strategy, for hundreds of questions at once: `notan.runs.score` in batches.

What a model says before every token of every answer is read once and shared by all settings of a strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from notan.runs.generation import heads_word
from notan.runs.reader import layers_of
from notan.runs.score import MASKED

BATCH = 512                                                             # rows of one pass


class Reader:
    """Log-probabilities (n, V) before each of the n tokens of all `answers`, one after another, each after its prompt.

    pairs: (prompt, answer). `says(model, system, layer)` is what the head says of a layer, -1 for the model's own last
    word, when the model reads `system` before the prompt; `normed`: through the final norm. Read once and kept.
    """

    def __init__(self, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> None:
        self.tokenizer, self.pairs = tokenizer, pairs
        self.answers = [tokenizer(a, add_special_tokens=False)["input_ids"] for _, a in pairs]
        self.ids = torch.tensor([i for a in self.answers for i in a])                       # (n,)
        self.says, self.states = cache(self.says), cache(self.states)                       # type: ignore[method-assign]

    @torch.no_grad()
    def says(self, model: Any, system: str, layer: int = -1, normed: bool = False) -> Tensor:
        states = self.states(model, system)                             # the last one has passed the final norm already
        return heads_word(model, [states[layer]], normed and layer != -1)[0].log_softmax(1)

    @torch.no_grad()
    def states(self, model: Any, system: str) -> tuple[Tensor, ...]:
        """States of all layers before each token of the answers, (n, E) each; 0 is the embeddings."""
        found = [self._read(model, system, start) for start in range(0, len(self.pairs), BATCH)]
        return tuple(torch.cat(parts) for parts in zip(*found))

    def _read(self, model: Any, system: str, start: int) -> list[Tensor]:
        rows = []
        for (prompt, _), answer in zip(self.pairs[start: start + BATCH], self.answers[start: start + BATCH]):
            text = f"{system}\n{prompt}" if system else prompt
            rows.append((self.tokenizer(text)["input_ids"], answer))
        longest = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        before = torch.zeros(len(rows), longest, dtype=torch.bool)      # the positions that an answer's tokens follow
        for row, (prompt, answer) in enumerate(rows):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            before[row, len(prompt) - 1: len(prompt) + len(answer) - 1] = True
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)              # padding comes last, unseen
        return [h[before] for h in out.hidden_states]


def of_answers(s: Tensor, reader: Reader, renormalise: bool) -> list[list[float]]:
    """Scores (n, V) at the tokens of each answer; a token outside the head has the released scorers' value. renormalise:
    over the vocabulary first."""
    found = s.gather(1, reader.ids[:, None])[:, 0]
    found = found - s.logsumexp(1) if renormalise else found
    return [part.tolist() for part in found.masked_fill(found == -torch.inf, MASKED).split([len(a) for a in reader.answers])]


def streams(strategy: Any, reader: Reader, contexts: Sequence[tuple[Any, str]]) -> list[Tensor]:
    """What `strategy.combine` wants, in its order: the last layers' words of all contexts, then the earlier layers'.

    contexts: (model, what it reads first), the main one first, those of one model side by side.
    """
    normed = getattr(strategy, "norm", False)
    last, early = [], []
    for model in dict.fromkeys(m for m, _ in contexts):
        systems = [system for m, system in contexts if m is model]
        last += [reader.says(model, system) for system in systems]
        early += [reader.says(model, system, j, normed) for j in layers_of(strategy, model)[0] for system in systems]
    return [*last, *early]
