"""How a strategy scores given answers, token by token: what TruthfulQA and FACTOR measure it by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.runs.generation import heads_word
from notan.runs.prompts import check_adds, contexts_of, given_with, rows_of
from notan.runs.reader import layers_of

MASKED = -1000.0                                                        # of a token outside the head; the released scorers' value


def answer_scores(strategy: Any, model: Any, tokenizer: Any, prompt: str, answers: Sequence[str], *, amateur: Any = None,
                  renormalise: bool = False, chat: bool | None = None) -> list[list[float]]:
    """The strategy's score of every token of each answer after `prompt`, one list for each answer.

    Streams enter as log-probabilities, so without contrast a score is the token's log-probability; differences of them can
    be above 0. renormalise: over the vocabulary, which makes probabilities of them again. The released scorers of DoLa and
    ICD do not renormalise and use no head (beta = 0) for TruthfulQA, and do both (beta = 0.1) for FACTOR.

    Raises `NotanError` for an answer without tokens, a missing amateur, and a strategy that looks ahead instead of adding
    streams.
    """
    found = both_scores(strategy, model, tokenizer, prompt, answers, amateur=amateur, chat=chat)
    return [both[renormalise] for both in found]


@torch.no_grad()
def both_scores(strategy: Any, model: Any, tokenizer: Any, prompt: str, answers: Sequence[str], *, amateur: Any = None,
                chat: bool | None = None) -> list[tuple[list[float], list[float]]]:
    """`answer_scores` as they are and renormalised, from one reading: each stream reads the prompt once, and then the answers
    as rows of one batch that share its cache. Each token is combined alone and at its own step, as decoding does.
    """
    check_adds(strategy)
    readers = {"main": model, "amateur": amateur}
    contexts = contexts_of(strategy, given_with([prompt], None, 0), amateur is not None)[0]
    ids = [_tokens(tokenizer, prompt, answer) for answer in answers]
    for answer, tokens in zip(answers, ids):
        if not tokens:
            raise NotanError(f"the answer {answer!r} has no tokens", "some text")
    new = max(map(len, ids))
    read = {name: [_read(one, rows_of((one, tokenizer), [c], chat, new), ids, strategy) for c in contexts if c.model == name]
            for name, one in readers.items()}
    found = []
    for a, tokens in enumerate(ids):
        z = [x.log_softmax(1) for x in _streams(read, readers, a, strategy)]                # (n, V) each
        s = torch.cat([strategy.combine([x[t: t + 1] for x in z], t) for t in range(len(tokens))])
        found.append((_taken(s, tokens), _taken(s.log_softmax(1), tokens)))
    return found


def _tokens(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """The answer's tokens as they come after the prompt: alone, tokenizers after SentencePiece put a space before them. Where
    the answer's beginning melts into the prompt's last token, they are those that it has alone."""
    before, whole, alone = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer, answer))
    return whole[len(before):] if whole[: len(before)] == before else alone


def _streams(read: dict[str, list], readers: dict[str, Any], a: int, strategy: Any) -> list[Tensor]:
    """Float32 logits (n, V) at the tokens of answer a, in the order of decoding: what all contexts' last layers say, model by
    model, then what the strategy's layers say."""
    last: list[Tensor] = []
    early: list[Tensor] = []
    for name, contexts in read.items():
        last += [answers[a][0].float() for answers in contexts]
        normed = layers_of(strategy, readers[name])[1] if contexts else False
        said = [heads_word(readers[name], answers[a][1:], normed) for answers in contexts]
        early += [z[j] for j in range(len(said[0]) if said else 0) for z in said]
    return [*last, *early]


def _taken(s: Tensor, tokens: list[int]) -> list[float]:
    """The scores (n, V) of the answer's own tokens."""
    taken = s.gather(1, torch.tensor(tokens, device=s.device)[:, None])[:, 0]
    return taken.masked_fill(taken == -torch.inf, MASKED).tolist()


def _read(model: Any, rows: dict[str, Tensor], answers: list[list[int]], strategy: Any) -> list[list[Tensor]]:
    """For each answer the logits (n, V) before each of its tokens, and the states (n, E) of the strategy's layers there."""
    layers, N = layers_of(strategy, model)[0], max(map(len, answers))
    ids = torch.tensor([tokens + [0] * (N - len(tokens)) for tokens in answers], device=model.device)     # after an end: unseen
    how = {"use_cache": True, "output_hidden_states": bool(layers)}
    prompt = model(**rows, **how, **({"logits_to_keep": 1} if model._supports_logits_to_keep() else {}))
    read = [x[:, -1:].expand(len(ids), -1, -1) for x in _parts(prompt, layers)]            # (A, 1, V), (A, 1, E), ...
    name = "cache" if "cache" in prompt else "past_key_values"          # by version
    cache: Any = prompt.get(name)
    if N > 1 and all(hasattr(layer, "batch_repeat_interleave") for layer in getattr(cache, "layers", [None])):
        cache.batch_repeat_interleave(len(ids))
        after = model(input_ids=ids[:, :-1], **{name: cache}, **how)
        read = [torch.cat(both, dim=1) for both in zip(read, _parts(after, layers))]
    elif N > 1:                                                         # a recurrent model: the prompt again in every row
        whole = torch.cat([rows["input_ids"].expand(len(ids), -1), ids[:, :-1]], dim=1)
        read = [x[:, -N:] for x in _parts(model(input_ids=whole, output_hidden_states=bool(layers)), layers)]
    return [[x[a, : len(tokens)] for x in read] for a, tokens in enumerate(answers)]


def _parts(out: Any, layers: Sequence[int]) -> list[Tensor]:
    return [out.logits, *(out.hidden_states[j] for j in layers)]

