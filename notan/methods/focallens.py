"""FocalLens: what a picture is depends on what is asked of it.

Hsieh and others, "FocalLens: Instruction Tuning Enables Zero-Shot Conditional Image
Representations", 2025 (arXiv 2504.08368). This is its form on CLIP; `focallens_mllm` is the one on a language model that sees.

**What it is.** An instruction i in plain words ("which flower is this?") enters a picture encoder as a token of its own, so that
one picture x has as many vectors as there are instructions. Learned from triples of a picture, an instruction and what one
would answer, o. With g the text encoder of the same model, which does not learn:

    c = W g(i) / |g(i)| + b,   put behind the patches, without a position
    z(x, i) = what the encoder makes of [class token; patches; c], in the joint space
    L = 1/2 (softmax contrast of z(x, i) with all g(o)  +  of g(o) with all z(x, i))

Answers that are the same words are right for each other's pictures. Rows of one picture under several instructions come in one
batch: equal pixels with other answers are the only negatives that make ignoring the instruction cost anything. z lies where
CLIP's pictures lie, so it is compared with any text, and with any picture under the same instruction.

**Data.** Rows of `image`, `instruction` and `answer`, such as a jsonl with paths of pictures; rows that name one file show one
picture. `python -m notan.data.instructions` makes them of attributes or labels and a few questions, or of conversations in
LLaVA's layout; `emoji-questions` is built in. Begin with a model that knows pictures and words: `--model hf:NAME` of a CLIP or
SigLIP, or a run of `clip`. `notan probe RUN --protocol conditional` shows whether it listens: the same pictures under their own
instruction, under another, and under none. The run reads instructions; the encoder taken out of it alone does not.

**When it helps.** One collection, asked about in several ways: by what is in front, by the ground, by how many. Both what one
searches with and what one searches in are encoded under the same instruction, again for each. Where a fixed vector does, it
costs and gives nothing.

**What it costs.** One pass of the picture encoder per triple, of the text encoder per distinct text and without a gradient; a
gallery is encoded anew for each instruction.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.methods._asked import answer_contrast, answers_of, asked_batches, each_once
from notan.methods._pairs import learned_tau, whole
from notan.methods._progress import Progress
from notan.nets.protocols import DualEncoder

CARD = {
    "title": "FocalLens: Instruction Tuning Enables Zero-Shot Conditional Image Representations", "arxiv": "2504.08368",
    "year": 2025, "needs": ["image", "instruction", "answer"], "task": "features", "exports": ["safetensors"],
    "exports_why": "two encoders and a joint space have no stock class that reads an instruction beside the patches",
    "keyed": False, "contrasts_rows": True,
    "claim": "Tuned on pictures with instructions and answers, one encoder gives for each instruction the features it asks for, "
             "which one fixed vector cannot.",
    "paper": "As reported: over CLIP +5 points on SugarCrepe and +10 on MMVP-VLM on average; retrieval by 29 attributes of "
             "CelebA, scaled mAP 21.3 where CLIP has 13.6.",
    "cost": "One pass of the picture encoder per triple, one without a gradient of the text encoder per distinct text.",
    "deviations": [
        "Neither code nor weights were released and the paper's section on the method could not be read: how the instruction "
        "enters, the loss and all settings are reconstructed from its abstract and from what others report of it.",
        "The instruction enters as one vector (or several) made of its pooled embedding, before the first block; the text "
        "encoder stays as it is.",
        "Contrast in both directions, equal answers as positives of each other, a learned temperature of at least 0.01.",
        "No augmentation: crops and mirrors break answers about sides and counts.",
        "Its form on a language model that sees (FocalLens-MLLM) is `focallens_mllm`.",
    ],
    "floor": {"data": "emoji-questions", "metric": "loss", "steps": 60, "value": 3.6, "random": 4.736},
}

RECIPES = {
    "paper": {
        "model": {"name": "hf", "source": "openai/clip-vit-large-patch14-336"},
        "optimiser": {"name": "adamw", "lr": 1e-5, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "batch": 1024, "epochs": 1, "warmup": 0.03, "method": {},
    },
    "small": {
        "model": {"name": "dual", "dim": 128, "tau": 0.07,
                  "image_encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4, "pool": "cls", "positions": "learned"},
                  "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32}},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "batch": 128, "epochs": 10, "warmup": 0.1, "method": {},
    },
}


class FocalLens(nn.Module):
    """A picture encoder that reads an instruction beside its patches.

    conditions: vectors that an instruction becomes.
    turns: rows of one picture that come together in a batch; 1 lets them fall as they do.
    pace: how many times as fast as the encoder W and b learn, with Adam.
    equal_answers: answers of the same words (apart from case and punctuation) are right for each other's pictures.
    """

    def __init__(self, model: DualEncoder, *, conditions: int = 1, turns: int = 2, pace: float = 10.0,
                 equal_answers: bool = True) -> None:
        super().__init__()
        for name, value in (("conditions", conditions), ("turns", turns)):
            if value < 1:
                raise NotanError(f"{name} = {value}", "at least 1", f"--{name} {1 if name == 'conditions' else 2}")
        if not 0 < pace < math.inf:
            raise NotanError(f"pace = {pace}", "above 0", "--pace 10")
        if not hasattr(model.image_encoder, "states"):
            raise NotanError(f"the picture encoder is a {type(model.image_encoder).__name__}, which has no tokens to put an "
                             "instruction among", "a vision transformer", "a model with a ViT: hf:NAME, or a run with --image-"
                             "encoder vit")
        self.model, self.turns, self.pace, self.equal_answers = model, turns, pace, equal_answers
        for name, p in model.named_parameters():                        # type: ignore[attr-defined]
            p.requires_grad_(name.startswith("image_"))                 # the text encoder and its head stay as they are
        self.width = model.image_encoder.dim
        self.condition = nn.Linear(model.dim, conditions * self.width)
        nn.init.normal_(self.condition.weight, std=0.02 / pace)         # W and b are `pace` times these: Adam's steps are as
        nn.init.normal_(self.condition.bias, std=0.02 / pace)           # large whatever the gradient is
        self.log_scale = nn.Parameter(torch.tensor(min(-math.log(float(model.tau.detach())), math.log(100))))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        z = self.focused(whole(batch, self.model.image_size), batch["instruction"])             # (B, d)
        u = self.words(batch["answer"])                                 # (B, d)
        return {"loss": answer_contrast(z, u, batch["answer"], tau=self.tau, equal=self.equal_answers), "tau": self.tau.detach()}

    @property
    def tau(self) -> Tensor:
        return learned_tau(self.log_scale)

    def focused(self, pixels: Tensor, instructions: list[str]) -> Tensor:
        """z of pixels (B, C, S, S) under an instruction each: (B, d), not normalised."""
        return self.model.image(pixels, None, (self.tokens(instructions),))

    def tokens(self, instructions: list[str]) -> Tensor:
        """What stands behind the patches, c: (B, K, D)."""
        return self.pace * self.condition(self.words(instructions)).unflatten(1, (-1, self.width))

    @torch.no_grad()
    def words(self, texts: list[str]) -> Tensor:
        """g(text), of unit length: (B, d)."""
        return F.normalize(each_once(self.model.text, texts), dim=1)

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        return asked_batches(columns, batch_size, self.turns, seed, epoch)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image` under the rows' `instruction`, or as the model alone has it; `text` of `answer`, or of texts: (B, d) each."""
        found = {}
        if "image" in batch:
            x = whole(batch, self.model.image_size)
            found["image"] = self.focused(x, batch["instruction"]) if "instruction" in batch else self.model.image(x)
        if said := answers_of(batch):
            found["text"] = self.model.text(said)
        return found


def example(rows: int, dtype: torch.dtype) -> tuple[FocalLens, dict]:
    """A tiny instance, and pictures in pairs of rows with two instructions and answers of which some are equal."""
    from notan.methods._example import asked, tiny_dual_encoder

    torch.manual_seed(0)
    return FocalLens(tiny_dual_encoder()).to(dtype), asked(rows)
