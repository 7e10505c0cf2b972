"""SimCTG: a language model whose states differ from token to token.

Su, Lan, Wang, Yogatama, Kong and Collier, "A Contrastive Framework for Neural Text Generation", NeurIPS 2022 (arXiv
2202.06417). What it was made for is the strategy `contrastive_search`; Su and Collier 2023 (arXiv 2210.14140) find that most
language models do not need it.

**What it is.** A causal language model reads the tokens x_1, ..., x_n of a text; h_i is the last layer's state at x_i and
s_ij = cos(h_i, h_j). Beside the likelihood of the next token, two different tokens of a text are pushed apart until their
cosine is at most 1 - rho (section 3 of the paper):

    L_MLE = -mean over tokens of log p(x_{i+1} | x_1, ..., x_i)                                         (1)
    L_CL  = mean over pairs i != j of one text of max(0, rho - s_ii + s_ij),       s_ii = 1             (2)
    L = L_MLE + L_CL                                                                                    (3)

No text meets another: there are no negatives from the batch, no temperature and no views. rho = 0 is plain training.

**When it helps.** A model whose states all point one way (`isotropy` near 0: the two smallest English GPT-2), so that
contrastive search, which punishes similar states, cannot tell candidates apart. A small model trained on little text is
isotropic already. As features, states of language models are a weak reading of a text; `compare` says how weak.

**What it costs.** A T x T matrix of cosines beside the pass of the model: a few percent of a step at 256 tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.token_contrast import token_contrast, token_cosines
from notan.methods._progress import Progress
from notan.nets.protocols import LanguageModel

CARD = {
    "title": "A Contrastive Framework for Neural Text Generation", "arxiv": "2202.06417", "year": 2022,
    "needs": ["text"], "task": "language", "exports": ["hf"],
    "exports_why": "a language model writes token by token, and its folder is one of transformers already",
    "keyed": False, "averages_over": "tokens and pairs of tokens",
    "claim": "Pushing the states of a text's tokens apart makes a language model isotropic, and what contrastive search "
             "writes with it better, at no worse perplexity.",
    "paper": "GPT-2 small on Wikitext-103, 40,000 steps (recollected, not read again): perplexity 23.82, plain training 24.32; "
             "with contrastive search diversity 0.95 against 0.24 and MAUVE 0.94 against 0.18 of plain training. Measured by "
             "the authors' later code: isotropy of gpt2 0.10, gpt2-medium 0.25, other models 0.53 to 0.83.",
    "cost": "The pass of a language model, and the cosines of a text's tokens.",
    "deviations": [
        "The pairs of all texts of the batch are averaged together, as in the released code; the paper averages each text's.",
        "The rate falls as a half cosine; the paper's falls on a line.",
        "No accumulation: the released code clips the gradient of each part again, and parts hold unequally many tokens.",
        "Padding is known by a text's length; the released code takes every end-of-text token for padding.",
        "The paper counts steps, a recipe epochs: --recipe paper --steps 40000 is its length.",
    ],
    "floor": {"data": "docstrings", "metric": "mle", "steps": 30, "value": 6.3, "random": 7.6},
}

RECIPES = {
    "paper": {
        "model": {"name": "hf", "source": "gpt2"},
        "optimiser": {"name": "adamw", "lr": 2e-5, "weight_decay": 0.0},
        "batch": 128, "epochs": 1, "warmup": 0.1, "clip": 1.0, "method": {},
    },
    "small": {
        "model": {"name": "gpt2", "dim": 128, "depth": 2, "heads": 4, "context": 256, "vocabulary": 2000},
        "optimiser": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01},
        "batch": 32, "epochs": 8, "warmup": 0.1, "clip": 1.0, "method": {"length": 64},
    },
}


class SimCTG(nn.Module):
    """A causal language model and the contrast of its states.

    rho: margin of the contrast, 0 to 2; 0 is plain training.
    length: most tokens of a text that are read in training; what is beyond is cut off.
    """

    def __init__(self, model: LanguageModel, *, rho: float = 0.5, length: int = 256) -> None:
        super().__init__()
        if not 0 <= rho <= 2:
            raise NotanError(f"rho = {rho}", "0 to 2: cosines are at most 2 apart", "--rho 0.5")
        if length < 2:
            raise NotanError(f"length = {length}", "at least 2 tokens: one to read, one to guess", "--length 256")
        self.model, self.rho, self.length = model, rho, length

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        ids, pad = self.model.tokens(batch["text"], self.length)        # (B, T + 1)
        x, y, pad = ids[:, :-1], ids[:, 1:], pad[:, 1:]                 # (B, T): what is read, what is guessed
        logits, h = self.model(x)                                       # (B, T, V), (B, T, D)
        nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
        mle = world.mean((nll * ~pad).sum(), (~pad).sum())              #                         (1)
        s, pairs = token_cosines(h, pad)                                # (B, T, T)
        contrast = world.mean(token_contrast(s, pairs, self.rho).sum(), pairs.sum())            # (2)
        similar = world.mean((s.detach() * pairs).sum(), pairs.sum())
        return {"loss": mle + contrast, "mle": mle, "contrast": contrast, "isotropy": 1 - similar}      # (3)

    def encode(self, batch: dict) -> Tensor:
        return self.model.features(batch["text"])                       # (B, D)


def example(rows: int, dtype: torch.dtype) -> tuple[SimCTG, dict]:
    """A tiny instance and texts of different lengths, for the contracts."""
    from notan.methods._example import texts, tiny_language_model

    torch.manual_seed(0)
    return SimCTG(tiny_language_model(), rho=1.0).to(dtype), texts(rows)    # fresh states are far apart: a wider margin
