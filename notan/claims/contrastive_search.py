"""Contrastive search's claim: text as diverse as a sampler's that another model finds likelier."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from notan.claims import _pretrained
from notan.claims._statistics import Interval, Values, mean, t_interval
from notan.data import keys
from notan.inspectors.isotropy import measure
from notan.probes.text import coherence_nll, diversity
from notan.runs.decode import decode, greedy
from notan.runs.inspect import Reading
from notan.runs.reader import load
from notan.strategies._reference import Reference

CLAIM = {
    "sentence": "Contrastive search writes text that a language model which wrote none of it finds likelier than what any "
                "sampler writes at the same diversity.",
    "arms": ["greedy", "contrastive 0.3", "contrastive 0.6", "nucleus 0.8", "nucleus 0.95", "top-k 10", "top-k 50",
             "temperature 0.5", "temperature 0.7", "temperature 1", "people"],
    "baseline": "greedy",
    "strategies": ["contrastive_search"],
    "methods": [],
    "uses": ["_pretrained.py"],
    "data": "60 texts of the Brown corpus; SmolLM2-135M-Instruct writes, Gemma 3 270M judges, both pretrained, in 4 bits and "
            "computed in float32",
    "metric": "diversity (1 - the share of repeated n-grams, multiplied over n = 2, 3, 4) against coherence (mean log-likelihood "
              "of a token under the judge, nats)",
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "contrastive search lies above the samplers' frontier at its own diversity, with a paired 95% interval above 0, "
                "at both alpha = 0.3 and alpha = 0.6",
    "refutes": "at the paper's alpha = 0.6 a sampler, or a mix of two, matches it in both numbers: the mean gap to the frontier "
               "is not above 0",
    "protocol": "Each seed has 12 texts that no other seed has: the first 32 tokens of a text are a prompt, without a chat"
                " template, and 64 tokens are written after it; tokens that end a text are suppressed, so all texts are "
                "equally long. Contrastive search at k = 5 and two alphas; samplers swept over p, k and temperature, one "
                "at a time; a seed draws its own samples. Nothing is tuned, and every point of the sweep is reported. The "
                "frontier is the upper envelope of greedy and the seven samplers and of the straight lines between any two"
                " of them, which texts of both mixed would about give: the likelihood reached at a diversity of so much or"
                " more; beyond the most diverse sampler, that one's likelihood. Diversity is counted over the texts of a "
                "seed. people: how the texts go on themselves. Isotropy is that of the writer's states on the texts, 1 - "
                "mean cosine within a text. No judgement of people, and a small writer, tuned to follow instructions, away"
                " from its chat template.",
    "minutes": 35,
}

PROMPTS, BEFORE, NEW = 12, 32, 64                                       # prompts of a seed; tokens before and after
SAMPLERS: dict[str, dict[str, float]] = {
    "nucleus 0.8": {"top_p": 0.8}, "nucleus 0.95": {"top_p": 0.95}, "top-k 10": {"top_k": 10}, "top-k 50": {"top_k": 50},
    "temperature 0.5": {"temperature": 0.5}, "temperature 0.7": {"temperature": 0.7}, "temperature 1": {},
}
SEARCHES = {"contrastive 0.3": 0.3, "contrastive 0.6": 0.6}             # alpha
FRONTIER = ("greedy", *SAMPLERS)


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Diversity, likelihood under the judge and length of what an arm writes after the prompts of a seed."""
    writer, judge_of = (loaded(name, quick) for name in ("writer", "judge"))
    prompts, originals = excerpts(seed, quick)
    texts = originals if arm == "people" else written(arm, writer, prompts, seed)
    found = {"diversity": diversity(texts), "diversity, official": diversity(texts, official=True),
             "coherence": coherence_nll(*judge_of, prompts, texts), "words": float(np.mean([len(t.split()) for t in texts]))}
    return found | ({"isotropy": isotropy(writer, [p + t for p, t in zip(prompts, texts)])} if arm == "people" else {})


def judge(values: Values) -> tuple[str, str]:
    gap = {arm: gaps(values, arm) for arm in SEARCHES}
    points = "; ".join(f"{arm} {mean(values, arm, 'diversity'):.3f} and {mean(values, arm, 'coherence'):.2f}"
                       for arm in (*SEARCHES, *FRONTIER, "people"))
    sentence = (f"Contrastive search minus the samplers' frontier, nats per token: {gap['contrastive 0.6']} at alpha = 0.6, "
                f"{gap['contrastive 0.3']} at alpha = 0.3. Diversity and likelihood of all: {points}. Isotropy of the writer "
                f"{mean(values, 'people', 'isotropy'):.2f}.")
    if all(g.low > 0 for g in gap.values()):
        return "confirmed", sentence
    return ("refuted" if gap["contrastive 0.6"].mean <= 0 else "open"), sentence


def gaps(values: Values, arm: str) -> Interval:
    """Likelihood of an arm above the samplers' frontier at its own diversity, over seeds."""
    found = []
    for seed, row in values[arm].items():
        points = [(values[s][seed]["diversity"], values[s][seed]["coherence"]) for s in FRONTIER]
        found.append(row["coherence"] - frontier(points, row["diversity"]))
    return t_interval(found)


def frontier(points: Sequence[tuple[float, float]], at: float) -> float:
    """The best likelihood that samplers, or texts of two samplers mixed, reach at a diversity of `at` or more.

    points: (diversity, likelihood). Beyond the most diverse one, its own likelihood: more than it would reach there.
    """
    best = [c for d, c in points if d >= at]
    best += [c + (at - d) / (e - d) * (f - c) for d, c in points for e, f in points if d < at < e]
    return max(best) if best else max(points)[1]


def written(arm: str, writer: tuple[Any, Any], prompts: list[str], seed: int) -> list[str]:
    """What the writer says after the prompts, 64 tokens each, without a chat template."""
    model, tokenizer = writer
    if arm == "greedy":
        return greedy(model, tokenizer, prompts, max_new_tokens=NEW, chat=False)
    if arm in SEARCHES:
        return decode("contrastive_search", model, prompts, tokenizer=tokenizer, settings={"k": 5, "alpha": SEARCHES[arm]},
                      max_new_tokens=NEW, chat=False)
    return decode(Reference(), model, prompts, tokenizer=tokenizer, max_new_tokens=NEW, chat=False, sample=True, seed=seed,
                  **SAMPLERS[arm])                                      # type: ignore[arg-type]


def isotropy(writer: tuple[Any, Any], texts: Sequence[str]) -> float:
    """1 - the mean cosine of the head's states of two tokens of a text, over all pairs of all texts."""
    return measure(Reading(*writer, 512), [{"text": [text]} for text in texts])["isotropy"]


def excerpts(seed: int, quick: bool) -> tuple[list[str], list[str]]:
    """Prompts of 32 tokens of the writer, the start of texts that no other seed sees, and the 64 tokens that follow there."""
    texts, count = corpus(quick), 4 if quick else PROMPTS
    mine = [texts[i] for i in keys.shuffle(0, 0, len(texts))[seed * count: (seed + 1) * count]]
    tokenizer = loaded("writer", quick)[1]
    ids = [tokenizer(text[:3000], add_special_tokens=False)["input_ids"] for text in mine]
    return ([tokenizer.decode(i[:BEFORE]) for i in ids], [tokenizer.decode(i[BEFORE: BEFORE + NEW]) for i in ids])


@lru_cache
def corpus(quick: bool) -> list[str]:
    """The texts of the Brown corpus; in a quick run documentation of Python, which needs no download."""
    if not quick:
        return _pretrained.brown()
    import argparse
    import logging
    import subprocess
    import typing

    docs = {getattr(v, "__doc__", None) for m in (argparse, logging, subprocess, typing) for v in vars(m).values()}
    return sorted(d for d in docs if isinstance(d, str) and len(d.split()) > BEFORE + NEW)


@lru_cache
def loaded(name: str, quick: bool) -> tuple[Any, Any]:
    """(model, tokenizer) of the writer or the judge; in a quick run a tiny model with random weights."""
    if quick:
        return tiny(corpus(True), seed=len(name))
    model, tokenizer = load(_pretrained.smollm2() if name == "writer" else _pretrained.gemma())
    if name == "writer":                                                # all texts have 64 tokens, so diversities compare
        model.generation_config.suppress_tokens = sorted(tokenizer.added_tokens_decoder)
    return torch.nn.Module.float(model), tokenizer                      # `transformers` refuses it for a model read from .gguf


def tiny(texts: list[str], seed: int) -> tuple[Any, Any]:
    """A GPT-2 of one layer with random weights and a token for every word of `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = ["<end>", *sorted({w for text in texts for w in text.split()})]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_embd=32, n_layer=1, n_head=2, n_positions=256,
                                           bos_token_id=None, eos_token_id=0, pad_token_id=0))
    return load(model, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>"))
