"""How near written captions are to people's: BLEU, ROUGE-L and CIDEr-D as COCO counts them, and exact matches.

A caption is its words: runs of letters and digits, in lower case. METEOR and SPICE are left out, which need a thesaurus and a
parser in Java; COCO's own tokenizer is in Java as well, and splits at hyphens and apostrophes in a way of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from notan.errors import NotanError
from notan.probes.protocol import Protocol

Words = tuple[str, ...]
N = 4                                                                   # longest n-grams
BETA = 1.2                                                              # of ROUGE-L: recall counts more
SIGMA = 6.0                                                             # of CIDEr-D: in words


def caption_scores(said: Sequence[str], nats: float, tokens: int, truth: Sequence[Sequence[str]], *, how: str = "greedy",
                   split: str = "the test split", notes: str = "") -> dict[str, Any]:
    """All measures of captions, one a picture, against the one or several of each picture.

    nats: -log P of the true captions in all, of `tokens` tokens; how: a caption was searched for.
    Returns `cider`, `bleu4`, `rouge_l`, `exact` (the share that is one of its picture's), `ce` (nats a token), `perplexity`, `n`
    and `protocol`. Raises `NotanError` for no pictures, and a picture without a caption.
    """
    ours = [words_of(text) for text in said]
    theirs = [[words_of(text) for text in every] for every in truth]
    _check(ours, theirs)
    protocol = Protocol(f"captions written from pictures ({how})", split, 0, len(ours), notes=notes)
    exact = sum(text in every for text, every in zip(ours, theirs)) / len(ours)
    return {"cider": cider_d(ours, theirs), "bleu4": bleu(ours, theirs), "rouge_l": rouge_l(ours, theirs), "exact": exact,
            "ce": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700.0)), "n": len(ours), "protocol": protocol}


def words_of(text: str) -> Words:
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def bleu(said: Sequence[Words], truth: Sequence[Sequence[Words]], n: int = N) -> float:
    """BLEU of a corpus (Papineni et al. 2002): the geometric mean over lengths 1 to n of the share of n-grams that are in one of
    the picture's captions, counted no more often than there, times exp(1 - r / c) where the captions' c words are fewer than r,
    the words of the captions nearest to them in length.
    """
    right, every, c, r = [0] * n, [0] * n, 0, 0
    for ours, theirs in zip(said, truth, strict=True):
        c += len(ours)
        r += min((abs(len(ref) - len(ours)), len(ref)) for ref in theirs)[1]                    # of two as near the shorter
        for k in range(n):
            grams, most = _grams(ours, k + 1), Counter[Words]()
            for ref in theirs:
                most |= _grams(ref, k + 1)
            right[k] += (grams & most).total()
            every[k] += grams.total()
    if min(right) == 0:
        return 0.0
    return min(1.0, math.exp(1 - r / c)) * math.exp(sum(math.log(a / b) for a, b in zip(right, every)) / n)


def rouge_l(said: Sequence[Words], truth: Sequence[Sequence[Words]]) -> float:
    """ROUGE-L (Lin 2004), the mean over pictures: F of the longest common subsequence with beta 1.2, as COCO does it of the best
    precision and of the best recall over a picture's captions.
    """
    total = 0.0
    for ours, theirs in zip(said, truth, strict=True):
        common = [(_common(ours, ref), len(ref)) for ref in theirs]
        p = max(n / len(ours) if ours else 0.0 for n, _ in common)
        r = max(n / length if length else 0.0 for n, length in common)
        total += (1 + BETA**2) * p * r / (r + BETA**2 * p) if p and r else 0.0
    return total / len(said)


def cider_d(said: Sequence[Words], truth: Sequence[Sequence[Words]], n: int = N) -> float:
    """CIDEr-D (Vedantam et al. 2015, section 4 and appendix A), the mean over pictures, from 0 to 10.

    Cosines of counts of k-grams, k = 1 to n, weighted by how rare they are: the log of the share of pictures with one in their
    captions. A k-gram counts no more than in the other caption, and a difference of lengths costs exp(-d^2 / 72). Rarity is that
    among these pictures: one picture, or pictures whose captions are all equal, get 0.
    """
    pictures = len(said)
    df = Counter(gram for every in truth for gram in {g for ref in every for k in range(n) for g in _grams(ref, k + 1)})

    def weighed(text: Words) -> list[dict[Words, float]]:
        return [{g: count * math.log(pictures / max(1, df[g])) for g, count in _grams(text, k + 1).items()} for k in range(n)]

    total = 0.0
    for ours, theirs in zip(said, truth, strict=True):
        mine, score = weighed(ours), 0.0
        for ref in theirs:
            near = sum(_cosine(a, b) for a, b in zip(mine, weighed(ref))) / n
            score += near * math.exp(-((len(ours) - len(ref)) ** 2) / (2 * SIGMA**2))
        total += 10 * score / len(theirs)
    return total / pictures


def _cosine(a: dict[Words, float], b: dict[Words, float]) -> float:
    """Of weights, those of a clipped at those of b in the product."""
    lengths = [math.sqrt(sum(x * x for x in v.values())) for v in (a, b)]
    if 0.0 in lengths:
        return 0.0
    return sum(min(x, b[g]) * b[g] for g, x in a.items() if g in b) / (lengths[0] * lengths[1])


def _grams(words: Words, k: int) -> Counter[Words]:
    return Counter(words[i : i + k] for i in range(len(words) - k + 1))


def _common(a: Words, b: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return row[-1]


def _check(ours: Sequence[Words], theirs: Sequence[Sequence[Words]]) -> None:
    if not ours or len(ours) != len(theirs):
        raise NotanError(f"{len(ours):,} captions for {len(theirs):,} pictures", "one for each, and at least one picture")
    if empty := sum(not every for every in theirs):
        raise NotanError(f"{empty:,} of {len(theirs):,} pictures have no caption", "at least one each", "leave them out")
