"""How generated text is: how much it repeats itself, and how likely another model finds it.

Su et al. 2022 (arXiv 2202.06417) and Su and Collier 2023 (arXiv 2210.14140), whose released counts differ a little from
their text: `official=True` counts as they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from notan.errors import NotanError


def repetition(texts: Sequence[str], n: int, *, official: bool = False) -> float:
    """rep_n = 1 - unique n-grams / n-grams of whitespace words, counted in each text and added over texts: 0 to 1.

    official: each text's last n-gram is left out, as the released code does, and the share is rounded to 0.01%.
    Raises `NotanError` when no text has n words.
    """
    unique = total = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i: i + n]) for i in range(len(words) - n + (0 if official else 1))]
        unique, total = unique + len(set(grams)), total + len(grams)
    if not total:
        raise NotanError(f"none of {len(texts)} texts is long enough for {n}-grams", f"at least {n + official} words")
    share = 1 - unique / total
    return round(100 * share, 2) / 100 if official else share


def diversity(texts: Sequence[str], *, official: bool = False) -> float:
    """Product over n = 2, 3, 4 of 1 - rep_n: 1 when no n-gram comes twice, near 0 in a loop. Raises as `repetition`."""
    share = 1.0
    for n in (2, 3, 4):
        share *= 1 - repetition(texts, n, official=official)
    return share


@torch.no_grad()
def coherence_nll(model: Any, tokenizer: Any, prompts: Sequence[str], continuations: Sequence[str]) -> float:
    """Mean over texts of the mean log-likelihood (nats per token) of a continuation after its prompt.

    Under a model that wrote neither: its own text is always likely to a model. Prompt and continuation are tokenised
    apart, after the tokenizer's first token if it has one. Repetition is likely too: read it beside `diversity`.
    Raises `NotanError` for an empty continuation.
    """
    found = []
    for prompt, text in zip(prompts, continuations, strict=True):
        first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        before = first + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        after = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not after or not before:
            raise NotanError(f"a {'continuation' if before else 'prompt'} has no tokens", "some text")
        ids = torch.tensor([before + after], device=model.device)
        q = model(ids).logits[0, len(before) - 1: -1].float().log_softmax(1)            # what comes after each position
        found.append(float(q.gather(1, ids[0, len(before):, None]).mean()))
    return sum(found) / len(found)
