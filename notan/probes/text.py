"""How generated text is: how much it repeats itself, how likely another model finds it, how near it is to people's.

Su et al. 2022 (arXiv 2202.06417) and Su and Collier 2023 (arXiv 2210.14140), whose released counts differ a little from
their text: `official=True` counts as they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
def mauve(prediction: Sequence[str], reference: Sequence[str], model: Any, tokenizer: Any, *, most: int = 200) -> float:
    """MAUVE (Pillutla et al. 2021, arXiv 2102.01454): how near two sets of texts are as distributions, 0 to 1.

    Their features, the last state of `model` after each text, are quantised together and the histograms compared, by the
    package `mauve-text` with its own settings. As Su and Collier do, each pair is cut to its common number of tokens, at
    most `most`, and pairs without a token are dropped. The figure depends on the model (the papers': gpt2-large) and on
    how many texts there are: compare only equal ones; a few hundred are few.

    Raises `NotanError` for fewer than 20 pairs and without the package.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise NotanError(f"MAUVE needs a package that is not installed: {error}", "the extra that brings it",
                         "pip install 'notan[mauve]'") from None
    features: tuple[list[Tensor], list[Tensor]] = ([], [])
    for pair in zip(prediction, reference, strict=True):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
        n = min(most, *map(len, ids))
        for side, tokens in zip(features, ids if n else ()):
            read = model.base_model(torch.tensor([tokens[:n]], device=model.device))
            side.append(read.last_hidden_state[0, -1].float().cpu())
    if len(features[0]) < 20:
        raise NotanError(f"{len(features[0])} pairs of texts have tokens", "at least 20 to compare as distributions")
    p, q = (torch.stack(side).numpy() for side in features)             # (N, E)
    return float(compute_mauve(p_features=p, q_features=q).mauve)


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
