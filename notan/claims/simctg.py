"""SimCTG's claim: pushing states apart makes a language model isotropic and what contrastive search writes with it better."""

from __future__ import annotations

import copy
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from notan.claims._statistics import Interval, Values, mean, paired
from notan.claims._train import built, fit
from notan.data import Rows, cache_root, keys, open_data
from notan.data.sources import brown
from notan.methods._progress import Progress
from notan.methods.simctg import SimCTG
from notan.nets.language import CausalLM, gpt2, new_tokenizer
from notan.probes.text import coherence_nll, diversity
from notan.runs.decode import decode

CLAIM = {
    "sentence": "Training a language model further with the contrast of its states (rho = 0.5) makes it more isotropic, and "
                "what contrastive search writes with it better, than as many steps without (rho = 0), at no worse perplexity.",
    "arms": ["rho 0", "rho 0.5", "not trained further"],
    "baseline": "rho 0",
    "data": "the Brown corpus: of its 500 texts two fifths for the model, two fifths for the judge, one fifth held out",
    "metric": "isotropy and perplexity on held-out passages; quality: the judge's likelihood of what contrastive search "
              "writes (nats per token), at equal diversity: the mean at 0.9, 0.95 and that of people's continuations",
    "shown": ["isotropy", "perplexity", "quality", "diversity 0", "likelihood 0", "diversity 0.25", "likelihood 0.25",
              "diversity 0.5", "likelihood 0.5", "diversity 0.75", "likelihood 0.75", "diversity 1", "likelihood 1"],
    "seeds": [0, 1, 2],
    "confirms": "rho 0.5 minus rho 0: the paired 95% intervals of isotropy and of quality lie above 0, and the mean perplexity "
                "is at most 2% higher",
    "refutes": "rho 0.5 minus rho 0: the mean difference of isotropy or of quality is not above 0, or the mean perplexity is "
               "more than 2% higher",
    "protocol": "Model: GPT-2's architecture with 2 blocks, width 128, 4 heads and 2,000 tokens made from its texts; fresh "
                "weights, 900 steps of 16 passages, at most 96 tokens each, AdamW 3e-3, decay 0.01, 10% warm-up then cosine, "
                "without the contrast. From there each arm takes 300 steps at 1e-3 on the same batches, with rho 0 or 0.5. "
                "Isotropy and perplexity: 300 held-out passages cut to 96 tokens. Texts: one prompt of 32 tokens from each of "
                "the 100 held-out texts, drawn anew for each seed, 64 new tokens by contrastive search with k = 5 and alpha 0 "
                "(greedy), 0.25, 0.5, 0.75 and 1. Diversity is the product of the shares of different 2-, 3- and 4-grams of "
                "words. As alpha trades likelihood for diversity, models are compared at equal diversity, on the line through "
                "the five points; beyond the most diverse point its likelihood counts. Judge: 3 blocks, width 192, 6 heads, "
                "other texts, tokens of its own, 700 steps; it is the same for all seeds, and as small as it is it judges "
                "phrases and no sense. A pilot with seed 100 and fewer steps settled the range of alpha and that quality is "
                "read at three diversities: people's alone lay at the end of the curve. Arms of a seed share weights, batches "
                "and prompts. Far smaller than the paper's model, which was anisotropic where this one is not: whether a cure "
                "helps the healthy is what is tested.",
    "minutes": 30,
}

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)                                          # of the search; 0 is greedy
LENGTH, BEFORE, NEW = 96, 32, 64                                        # tokens: in training, of a prompt, written after it
STEPS, MORE, BATCH = 900, 300, 16
JUDGES = 700                                                            # steps of the judge
DIVERSITIES = (0.9, 0.95)                                               # at which texts are judged, beside people's
RATE, LATER = 3e-3, 1e-3                                                # peak of the learning rate, and when training further


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Isotropy, perplexity and quality of one model; diversity and likelihood of its texts for every alpha."""
    method = trained(arm, seed, quick)
    with torch.no_grad():
        seen = method.loss({"text": held_out(quick)}, Progress())
    found = {"isotropy": float(seen["isotropy"]), "perplexity": float(seen["mle"].exp()), "contrast": float(seen["contrast"])}
    prompts, originals = excerpts(method.model.tokenizer, seed, quick)
    people, points = varied(originals), []
    for alpha in ALPHAS:
        texts = decode("contrastive_search", method.model.model, prompts, tokenizer=method.model.tokenizer, chat=False,
                       settings={"k": 5, "alpha": alpha}, max_new_tokens=NEW)
        points.append((varied(texts), coherence_nll(*judged_by(quick), prompts, texts)))
        found |= {f"diversity {alpha:g}": points[-1][0], f"likelihood {alpha:g}": points[-1][1]}
    likely = coherence_nll(*judged_by(quick), prompts, originals)
    quality = float(np.mean([at(d, points) for d in (*DIVERSITIES, people)]))
    return found | {"quality": quality, "people's diversity": people,
                    "people's likelihood": likely}


def judge(values: Values) -> tuple[str, str]:
    isotropy, quality = (paired(values, "rho 0.5", "rho 0", m) for m in ("isotropy", "quality"))
    worse = mean(values, "rho 0.5", "perplexity") / mean(values, "rho 0", "perplexity") - 1
    sentence = (
        f"rho 0.5 minus rho 0: isotropy {isotropy}, the judge's likelihood at equal diversity {quality} nats per token, "
        f"perplexity {worse:+.2%}. {_levels(values)}"
    )
    if isotropy.mean <= 0 or quality.mean <= 0 or worse > 0.02:
        return "refuted", sentence
    return ("confirmed" if _above(isotropy) and _above(quality) else "open"), sentence


def _above(interval: Interval) -> bool:
    return interval.low > 0


def _levels(values: Values) -> str:
    """Where all of it lies."""
    said = [f"{arm}: isotropy {mean(values, arm, 'isotropy'):.3f}, perplexity {mean(values, arm, 'perplexity'):.1f}, likelihood "
            f"{mean(values, arm, 'quality'):.3f}, diversity of greedy text {mean(values, arm, 'diversity 0'):.3f}"
            for arm in values]
    first = next(iter(values))
    people = (mean(values, first, "people's diversity"), mean(values, first, "people's likelihood"))
    return "; ".join(said) + f". People: diversity {people[0]:.3f}, likelihood {people[1]:.3f}."


def at(diverse: float, points: list[tuple[float, float]]) -> float:
    """The likelihood at a diversity, on the line through the points (diversity, likelihood); beyond its ends that of the end."""
    d, likelihood = np.array(sorted(points)).T
    return float(np.interp(diverse, d, likelihood))


def varied(texts: list[str]) -> float:
    """Diversity; 0 where nothing has two words, as texts of a barely trained model."""
    return diversity(texts) if any(len(text.split()) > 3 for text in texts) else 0.0


# ------------------------------------------------------------------------------------------------------------- the models

def trained(arm: str, seed: int, quick: bool) -> SimCTG:
    """The model of a seed, trained further as the arm says."""
    method = copy.deepcopy(base(seed, quick))
    if arm == "not trained further":
        return method
    method.rho = float(arm.split()[1])
    return fit(method, texts_for(0, quick), steps=3 if quick else MORE, batch=BATCH, lr=LATER, seed=seed + 1000,
               weight_decay=0.01)


@lru_cache(maxsize=1)
def base(seed: int, quick: bool) -> SimCTG:
    """Plain training from fresh weights."""
    made = built(seed, lambda: SimCTG(fresh(tokenizer(0, quick), 128, 2, 4), rho=0.0, length=LENGTH))
    return fit(made, texts_for(0, quick), steps=3 if quick else STEPS, batch=BATCH, lr=RATE, seed=seed, weight_decay=0.01)


@lru_cache
def judged_by(quick: bool) -> tuple[Any, Any]:
    """(model, tokenizer) of the judge: larger, of other texts, with tokens of its own."""
    made = built(7, lambda: SimCTG(fresh(tokenizer(1, quick), 192, 3, 6), rho=0.0, length=LENGTH + 32))
    method = fit(made, texts_for(1, quick), steps=3 if quick else JUDGES, batch=BATCH, lr=RATE, seed=7, weight_decay=0.01)
    return method.model.model, method.model.tokenizer


def fresh(words: Any, dim: int, depth: int, heads: int) -> CausalLM:
    return gpt2(words, dim=dim, depth=depth, heads=heads, context=256)


@cache
def tokenizer(part: int, quick: bool) -> Any:
    """2,000 tokens, made from all texts of a part."""
    rows = texts_for(part, quick)
    return new_tokenizer(rows.take(np.arange(len(rows)))["text"], 300 if quick else 2000, 256)


# --------------------------------------------------------------------------------------------------------------- the texts

@cache
def parts(quick: bool) -> list[list[list[str]]]:
    """Passages, text by text: of the model's texts, of the judge's, and of those held out. A quick run reads docstrings."""
    if quick:
        rows = open_data("docstrings").train
        documents = [[text * 12] for text in dict.fromkeys(rows.take(np.arange(150))["text"])][:100]
    else:
        documents = [list(brown.passages(sentences)) for _, sentences in brown.documents(cache_root() / "sources" / "brown")]
    found: list[list[list[str]]] = [[], [], []]
    for i, document in enumerate(documents):                            # in the order of genres, so every part has each
        found[i % 5 // 2].append(document)
    return found


def texts_for(part: int, quick: bool) -> Rows:
    return Rows({"text": [passage for document in parts(quick)[part] for passage in document]})


def held_out(quick: bool) -> list[str]:
    """Three passages of each held-out text."""
    return [passage for document in parts(quick)[2] for passage in document[1:30:10]] or [d[0] for d in parts(quick)[2]]


def excerpts(words: Any, seed: int, quick: bool) -> tuple[list[str], list[str]]:
    """32 tokens from the beginning of a passage of each held-out text, and the 64 tokens that follow them there."""
    ids = []
    for i, document in enumerate(parts(quick)[2][: 4 if quick else None]):
        at_least = [row for row in (words(text, truncation=True)["input_ids"] for text in document) if len(row) >= BEFORE + NEW]
        ids.append(at_least[keys.shuffle(seed, i, len(at_least))[0]])
    return [words.decode(i[:BEFORE]) for i in ids], [words.decode(i[BEFORE : BEFORE + NEW]) for i in ids]
