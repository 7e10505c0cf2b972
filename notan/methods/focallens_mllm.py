"""FocalLens on a language model that sees: it looks at a picture, reads what is asked, and says it as a vector.

Hsieh and others, "FocalLens: Instruction Tuning Enables Zero-Shot Conditional Image
Representations", 2025 (arXiv 2504.08368). This is its form on a model of LLaVA's kind; `focallens` is the one on CLIP.

**What it is.** A model that answers questions about pictures has already worked out, by the end of the question, what it would
say. So the question's end gets a token of its own, R, and the state above it becomes the vector; the picture encoder never
learns what is asked. From triples of a picture x, an instruction i and what one would answer, o:

    z(x, i) = P h_R   of [picture; instruction; R]
    u(o)    = P h_R   of [answer; R], read by the same model
    L = 1/2 (softmax contrast of z(x, i) with all u(o)  +  of u(o) with all z(x, i))

Answers that are the same words are right for each other's pictures, and rows of one picture under several instructions come in
one batch, as in `focallens`. What is between the picture encoder and the language model learns, with R and P; of the language
model low-rank changes (`lora`), or all of it; the picture encoder only where `picture_encoder` says so.

**Data.** Rows of `image`, `instruction` and `answer`: see `focallens`. `emoji-questions` is built in. `--recipe paper` with
`--model hf:NAME` takes a causal image-text-to-text model of `transformers` with its chat template (processors of most families
but LLaVA's ask for `pip install 'notan[seeing]'`); the run's `model/` is again one that opens there. Without a name a small LLaVA
learns from nothing.

**When it helps.** Instructions that a picture encoder could not follow from a vector: long ones, ones that name things and
compare them. Texts are read by the same model, so no CLIP is needed. Where instructions are few and short, `focallens` costs
a fraction.

**What it costs.** One pass of the whole model per triple and one per distinct answer, and a gallery is encoded anew for each
instruction. `--micro-batch` trains large batches in small memory.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from notan.errors import check_between
from notan.methods._asked import answer_contrast, answers_of, asked_batches, each_once
from notan.methods._pairs import check_tau, learned_tau, whole
from notan.methods._progress import Progress
from notan.nets.lora import add_lora
from notan.nets.protocols import SeeingModel
from notan.nets.seeing import freeze

CARD = {
    "title": "FocalLens: Instruction Tuning Enables Zero-Shot Conditional Image Representations", "arxiv": "2504.08368",
    "year": 2025, "needs": ["image", "instruction", "answer"], "task": "features", "exports": ["safetensors"],
    "exports_why": "a language model that sees is no graph of one input; its folder opens in transformers as it is",
    "keyed": False, "contrasts_rows": True,
    "claim": "A language model that sees, tuned on pictures with instructions and answers, gives for each instruction the "
             "features it asks for.",
    "paper": "As reported: retrieval by 29 attributes of CelebA, scaled mAP 22.7, where its form on CLIP has 21.3 and CLIP 13.6.",
    "cost": "One pass of the whole model per triple, and one per distinct answer.",
    "deviations": [
        "Neither code nor weights were released and the paper's section on the method could not be read: the readout token, "
        "what it is compared with, the loss and all settings are reconstructed from its abstract and from what others report.",
        "Answers are read by the same model, not by a frozen CLIP: pictures and texts have one space without a second model.",
        "The recipe `paper` makes low-rank changes to the language model and keeps the picture encoder; `small` trains all.",
        "The contrast alone: no loss of the next token beside it.",
        "No augmentation: crops and mirrors break answers about sides and counts.",
    ],
    "floor": {"data": "emoji-questions", "metric": "loss", "steps": 60, "value": 4.0, "random": 5.627},
}

RECIPES = {
    "paper": {
        "model": {"name": "hf", "source": "llava-hf/llava-1.5-7b-hf", "dim": 768},
        "optimiser": {"name": "adamw", "lr": 1e-4, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "batch": 1024, "epochs": 1, "warmup": 0.03, "method": {"lora": 16},
    },
    "small": {
        "model": {"name": "llava", "dim": 128, "depth": 3, "heads": 4, "context": 192, "patch": 8, "picture_depth": 3},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "batch": 64, "epochs": 10, "warmup": 0.1, "method": {"lora": 0, "picture_encoder": True},
    },
}


class FocalLensMLLM(nn.Module):
    """A language model that sees, read at a token of its own.

    tau: temperature at first; it is learned, and at least 0.01.
    lora: rank of what is added to each linear layer of the language model, which then stays as it is; 0 trains all of it.
    picture_encoder: let the picture encoder learn, too.
    turns: rows of one picture that come together in a batch; 1 lets them fall as they do.
    equal_answers: answers of the same words (apart from case and punctuation) are right for each other's pictures.
    """

    def __init__(self, model: SeeingModel, *, tau: float = 0.07, lora: int = 16, picture_encoder: bool = False, turns: int = 2,
                 equal_answers: bool = True) -> None:
        super().__init__()
        check_tau(tau, 0.01)
        check_between(0, math.inf, lora=lora)
        check_between(1, math.inf, turns=turns)
        self.model, self.turns, self.equal_answers = model, turns, equal_answers
        freeze(model.model, pictures=not picture_encoder, words=lora > 0)
        if lora:
            add_lora(model.model.get_decoder(), lora, alpha=2.0 * lora)                         # type: ignore[operator]
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau)))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        z = self.model.image(whole(batch, self.model.image_size), batch["instruction"])         # (B, d)
        u = each_once(self.model.text, batch["answer"])                 # (B, d)
        tau = learned_tau(self.log_scale)
        return {"loss": answer_contrast(z, u, batch["answer"], tau=tau, equal=self.equal_answers), "tau": tau.detach()}

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        return asked_batches(columns, batch_size, self.turns, seed, epoch)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image` under the rows' `instruction` or under none; `text` of `answer`, or of texts: (B, d) each."""
        found = {}
        if "image" in batch:
            found["image"] = self.model.image(whole(batch, self.model.image_size), batch.get("instruction"))
        if said := answers_of(batch):
            found["text"] = self.model.text(said)
        return found


def example(rows: int, dtype: torch.dtype) -> tuple[FocalLensMLLM, dict]:
    """A tiny instance, and pictures in pairs of rows with two instructions and answers of which some are equal."""
    from notan.methods._example import asked, tiny_seeing_model

    torch.manual_seed(0)
    return FocalLensMLLM(tiny_seeing_model(), lora=0, picture_encoder=True).to(dtype), asked(rows)
