"""How a strategy scores given answers, token by token: what TruthfulQA and FACTOR measure it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.runs.generation import heads_word
from notan.runs.prompts import contexts_of, given_with, rows_of
from notan.runs.reader import layers_of

MASKED = -1000.0                                                        # of a token outside the head; the released scorers' value


@torch.no_grad()
def answer_scores(strategy: Any, model: Any, tokenizer: Any, prompt: str, answers: Sequence[str], *, amateur: Any = None,
                  renormalise: bool = False, chat: bool | None = None) -> list[list[float]]:
    """The strategy's score of every token of each answer after `prompt`, one list for each answer.

    Streams enter as log-probabilities, so without contrast a score is the token's log-probability; differences of them can
    be above 0. renormalise: over the vocabulary, which makes probabilities of them again. The released scorers of DoLa and
    ICD do not renormalise and use no head (beta = 0) for TruthfulQA, and do both (beta = 0.1) for FACTOR.

    Raises `NotanError` for an answer without tokens, a missing amateur, and a strategy that looks ahead instead of adding
    streams.
    """
    if not hasattr(strategy, "combine"):
        raise NotanError(f"{type(strategy).__name__} chooses by looking ahead and gives no scores to tokens",
                         "a strategy that adds streams", "see `notan decode list`")
    readers = {"main": model, "amateur": amateur}
    contexts = contexts_of(strategy, given_with([prompt], None, 0), amateur is not None)[0]
    found = []
    for answer in answers:
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise NotanError(f"the answer {answer!r} has no tokens", "some text")
        last: list[Tensor] = []
        early: list[Tensor] = []
        for name in ("main", "amateur"):                                # stream by stream, as in decoding
            read = [_read(readers[name], rows_of((readers[name], tokenizer), [c], chat, len(ids)), ids, strategy)
                    for c in contexts if c.model == name]
            last += [z[0] for z in read]
            early += [z[j] for j in range(1, len(read[0]) if read else 0) for z in read]
        s = strategy.combine([z.log_softmax(1) for z in (*last, *early)], 0)            # (n, V)
        s = s.log_softmax(1) if renormalise else s
        taken = s.gather(1, torch.tensor(ids, device=s.device)[:, None])[:, 0]
        found.append(taken.masked_fill(taken == -torch.inf, MASKED).tolist())
    return found


def _read(model: Any, rows: dict[str, Tensor], answer: list[int], strategy: Any) -> list[Tensor]:
    """Logits (n, V) before each token of the answer, and what the head says of the strategy's layers there."""
    (layers, normed), n = layers_of(strategy, model), len(answer)
    ids = torch.cat([rows["input_ids"], torch.tensor([answer], device=rows["input_ids"].device)], dim=1)
    out = model(ids, output_hidden_states=bool(layers))
    early = heads_word(model, [out.hidden_states[j][0, -n - 1: -1] for j in layers], normed)
    return [out.logits[0, -n - 1: -1].float(), *early]
