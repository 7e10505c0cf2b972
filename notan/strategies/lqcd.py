"""Leading query contrastive decoding: what the picture says, minus what the user's hint made of it.

Zhao, Zhang, Xiao, Ke, Hou, Hao, Guo and Chen, "Towards Analyzing and Mitigating Sycophancy in Large Vision-Language Models",
2024 (arXiv 2408.11261, version 1; version 2 replaces the method).

**What it is.** A question may carry a hint ("I am sure that there is none"), and models follow it. The main stream reads the
neutral question x_n, a second one the leading question x_l, both with the picture, and what the hint raises is lowered:

    s = (1 + alpha) z(x_n) - alpha z(x_l),        among the tokens with at least beta of z(x_n)'s largest probability

x_n is found by `neutralise`, which takes the sentences that assert an answer out of the prompt. A prompt without a hint is its
own neutral question, and nothing changes; with `negative=both` the hints to yes and to no are made up and take alpha / 2
each.

**When it helps.** Yes/no and short answers to users who hint. The main stream never sees the hint, so answering the neutral
question (alpha = 0) already removes it, at half the cost: compare with that first. A hint towards the truth is lowered too.

**What it costs.** A second row of the batch (a third with `both`); the picture is encoded once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from notan.errors import NotanError, check_between, did_you_mean
from notan.strategies._strategy import Context, plausible, weighted, within

CARD = {
    "title": "Towards Analyzing and Mitigating Sycophancy in Large Vision-Language Models", "arxiv": "2408.11261", "year": 2024,
    "needs": ["prompt"],
    "claim": "Lowering the tokens that a leading question raises takes the user's hint out of the answer.",
    "cost": "A second row of the batch.",
    "sum": "1",
    "off": {"alpha": 0.0, "beta": 0.0},
    "deviations": [
        "Only the formula is public: alpha, beta, the head on the neutral stream and all hints are ours.",
        "The neutral question is found by rules; the paper's benchmark has it written by hand.",
        "Without a picture it works on the words alone.",
    ],
}

# Name to the hint towards yes and towards no. Two each of soft, assertive, of authority, and taking the answer for granted.
TEMPLATES = {
    "seems": ("It seems to me that the answer is yes.", "It seems to me that the answer is no."),
    "guess": ("I would guess yes.", "I would guess no."),
    "sure": ("I am sure that the answer is yes.", "I am sure that the answer is no."),
    "obvious": ("It is obvious that the answer is yes.", "It is obvious that the answer is no."),
    "expert": ("An expert told me that the answer is yes.", "An expert told me that the answer is no."),
    "report": ("The report on this picture says yes.", "The report on this picture says no."),
    "since": ("Since the answer is yes, please confirm it.", "Since the answer is no, please confirm it."),
    "wonder": ("I wonder why the answer is yes.", "I wonder why the answer is no."),
}
WHO = (r"(i|we|you|he|she|they|people|everyone|everybody|experts|an? (expert|friend|doctor)|my \w+"
       r"|the (report|caption|description|expert|others)( on this \w+)?)")
OPINES = (r"(thinks?|believes?|guess(es)?|supposes?|suspects?|feels?|bets?|knows?|wonders?|claims?|says?|said|told|tells?|sure"
          r"|certain)")
CUE = re.compile(
    rf"^{WHO}('m| am| are| is| have| has| would| can| could)? ?({OPINES})\b"
    r"|^(it|there) (seems?|looks?|appears?)\b|^it('s| is) (obvious|clear|certain|likely|well known)\b"
    r"|^(obviously|clearly|surely|certainly|probably|apparently|of course|since|given that|as (we|you|everyone) knows?)\b"
    r"|\bthe (right |correct )?answer (is|must be|should be)\b", re.IGNORECASE)


class LQCD:
    """The neutral question minus the leading one.

    alpha: strength of the contrast.
    beta: smallest share of the neutral stream's largest probability that a token may have.
    negative: what is subtracted, the question as it was given, or both made-up hints at half the strength.
    template: how the made-up hints are worded.
    """

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 0.1, negative: Literal["given", "both"] = "given",
        template: Literal["seems", "guess", "sure", "obvious", "expert", "report", "since", "wonder"] = "sure",
    ) -> None:
        check_between(0, math.inf, alpha=alpha)
        check_between(0, 1, beta=beta)
        self.alpha, self.beta, self.negative, self.template = alpha, beta, negative, template

    def main(self, given: Context) -> Context:
        return replace(given, prompt=neutralise(given.prompt))

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        if self.negative == "given":
            return [given]
        neutral = neutralise(given.prompt)
        return [replace(given, prompt=lead(neutral, polarity, self.template)) for polarity in ("yes", "no")]

    def weights(self, t: int) -> tuple[float, ...]:
        if self.negative == "given":
            return (1 + self.alpha, -self.alpha)
        return (1 + self.alpha, -self.alpha / 2, -self.alpha / 2)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))


def lead(question: str, polarity: str, template: str) -> str:
    """The question with a hint towards `polarity`, yes or no, behind it. Raises `NotanError` for a template that there is not."""
    if template not in TEMPLATES:
        raise NotanError(f"there is no template {template!r}", ", ".join(TEMPLATES), did_you_mean(template, TEMPLATES))
    return f"{question} {TEMPLATES[template][polarity == 'no']}"


def neutralise(question: str) -> str:
    """The prompt without the sentences that assert an answer: somebody's opinion, or a claim that it is so.

    Questions stay, and so do instructions ("Answer with one word."); of "I think so, but is it?" the question stays.
    Raises `NotanError` when nothing is left: a hint is never taken for the neutral question.
    """
    neutral, gap = "", ""
    for i, sentence in enumerate(re.split(r"(?<=[.!?])(\s+)", question.strip())):           # sentence, space, sentence, ...
        if i % 2:
            gap = sentence
            continue
        clause = re.match(r"(?P<hint>[^?]*), (but|so|and|yet) (?P<asked>[^,]*\?)$", sentence)
        if clause and CUE.search(clause["hint"]):
            sentence = clause["asked"][0].upper() + clause["asked"][1:]
        if sentence.endswith("?") or not CUE.search(sentence):
            neutral += (gap if neutral else "") + sentence
    if not neutral:
        raise NotanError(f"{question!r} only asserts an answer", "a question or an instruction beside the hint",
                         "ask a question")
    return neutral
