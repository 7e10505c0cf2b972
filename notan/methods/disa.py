"""DiSa: prompts that are held to what the frozen model says, across pictures and texts, and to the direction of its classes.

Talemi and others, "DiSa: Directional Saliency-Aware Prompt Learning for Generalizable Vision-Language Models", KDD 2025 (arXiv
2505.19373). **A reconstruction**: there is no code, and its text could not be read. Prompts, cross-entropy, the
cross term and the sum are as summaries of the paper give them; the form of the score term is PromptSRC's; how salient patches
are found and what direction means are our reading of their words.

**What it is.** Prompts p in the first blocks of both encoders of a CLIP (IVLP) learn from a few labelled pictures, and soon
forget classes that were not among them. Three terms hold them back. Unit features of pictures are f_p with prompts and f_o
without, of the names of classes g_p and g_o; P(f, g) = softmax over classes of f . g / tau.

    L_CE  = -mean log P(f_p, g_p)[y]
    L_SR  = mean KL( P(f_o, g_o) || P(f_p, g_p) )                               scores stay near the frozen model's
    L_CIR = mean KL( P(f_p^m, g_o) || P(f_o, g_p) )                             cross-interactive: each side with the other's
    L_DiR = mean 1 - cos(f_p, mu_y)                                             directional, mu_c the mean of f_o in class c
    L     = L_CE + L_SR + L_CIR + lambda L_DiR

f_p^m sees only the patches that are nearest to the frozen text of the picture's class. Of unit vectors 1 - cos is half the
squared distance, so direction says nothing beyond the length that is gone anyway; --mode displacement takes the step f_p - f_o
for what has a direction, and compares it with mu_y - f_o. A CLIP's patches are often *less* like the text where the object is
(--saliency text_patch_neg); look before you trust it.

**When it helps.** A few labelled pictures of some classes, and others to come. --score 0 --cross 0 --direction 0 is IVLP,
and --cross 0 --direction 0 IVLP with PromptSRC's score term, the rows to compare it with. Weights that were not trained on
pictures with names have nothing to keep: give --model hf:NAME or a run of `clip`.

**What it costs.** Two passes of the pictures with prompts, there and back, one without, and the names of all classes; before
the first step one pass over the rows learned from. 46,080 numbers of a ViT-B/16 are learned. With --shots a budget in epochs
still counts all rows of the data: give --steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError, check_between
from notan.methods._pairs import both, cropped, whole
from notan.methods._progress import Progress
from notan.methods._prompting import batches_of, chosen, class_names, classified, frozen_texts, unit
from notan.nets.attended import class_attention, relevance
from notan.nets.prompted import Prompted
from notan.nets.protocols import DualEncoder
from notan.views.random import uniform

CARD = {
    "title": "DiSa: Directional Saliency-Aware Prompt Learning for Generalizable Vision-Language Models", "arxiv": "2505.19373",
    "year": 2025, "needs": ["image", "label"], "task": "features", "exports": ["safetensors"],
    "exports_why": "vectors stand among its tokens, for which no stock class has a place",
    "claim": "Prompts that are matched with the frozen model across pictures and texts, on salient patches, and drawn towards "
             "its class means classify new classes better than other prompt learners, and old ones as well.",
    "paper": "Better than earlier prompt learners on 11 data sets, by its abstract; its figures could not be read. Base, novel "
             "and harmonic mean of those, CLIP ViT-B/16: CLIP 69.3 / 74.2 / 71.7, CoOp 82.7 / 63.2 / 71.7, IVLP 84.2 / 71.8 / "
             "77.5, PromptSRC 84.3 / 76.1 / 80.0.",
    "cost": "Two passes of pictures with prompts, one without, and the names of all classes each step.",
    "deviations": [
        "A reconstruction from summaries: saliency, lambda, the share of patches hidden and the form of L_SR and L_DiR are ours.",
        "Patches are dropped, not masked in attention, which comes to the same.",
        "Class means are of pictures as they are, in training rows that are learned from, once before the first step.",
        "Frozen texts are of the template; others are named by --templates.",
        "No averaging of weights over epochs (PromptSRC's).",
        "Crops are resampled with an antialiased triangle filter; the base method's are bicubic. Names are as the data has them.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 3.2, "random": 4.488},
}

RECIPES = {
    "paper": {                                                          # of the base method
        "model": "hf:openai/clip-vit-base-patch16",
        "optimiser": {"name": "sgd", "lr": 2.5e-3, "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 4, "epochs": 20, "warmup": 0.05, "method": {},
    },
    "small": {
        "model": {"name": "dual", "image_encoder": {"name": "vit", "dim": 64, "depth": 2, "heads": 2},
                  "text_encoder": {"name": "text", "dim": 64, "depth": 2, "heads": 2, "context": 32}, "dim": 64, "tau": 0.07},
        "optimiser": {"name": "sgd", "lr": 2e-2, "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 32, "epochs": 20, "warmup": 0.05, "method": {},
    },
}


class DiSa(nn.Module):
    """Prompts on a frozen dual encoder.

    template: a sentence with {} for the name; text prompts begin at the words before it, and it is what the frozen model reads.
    templates: other sentences for the frozen model, whose features are averaged.
    image_prompts: vectors in each block of the picture encoder that has some.
    text_prompts: the same of the text encoder.
    depth: blocks of either encoder that have prompts of their own, the first ones, as many as there are.
    score: weight of L_SR.
    reduction: of L_SR, by rows, or by rows times classes as PromptSRC's code has it.
    cross: weight of L_CIR.
    symmetric: L_CIR as the mean of both directions.
    detach: which of the two scores of L_CIR gets no gradient.
    hidden: share of patches that f_p^m does not see.
    saliency: how patches are rated. text_patch: by their cosine with the frozen text of the class; text_patch_neg: by its
        negative; cls_attention: by the class token's attention in the last block; grad: by gradient times attention; random.
    scope: whether f_p^m takes part in L_CIR alone, or takes the place of f_p in all terms.
    direction: weight of L_DiR, lambda.
    mode: of L_DiR, cosine of features, or displacement from the frozen ones.
    shots: pictures of each class to learn from, drawn by the seed; all of them when none is named.
    classes: learn from all classes, or from the base half alone, the first of the sorted ones.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring.
    """

    frozen: Tensor                                                      # g_o: (C, d)
    means: Tensor                                                       # mu: (C, d)

    def __init__(
        self, model: DualEncoder, *, data: DataInfo, template: str = "a photo of a {}.", templates: list[str] | None = None,
        image_prompts: int = 4, text_prompts: int = 4, depth: int = 9, score: float = 1.0,
        reduction: Literal["rows", "numel"] = "rows", cross: float = 1.0, symmetric: bool = False,
        detach: Literal["none", "q1", "q2"] = "none", hidden: float = 0.25,
        saliency: Literal["text_patch", "text_patch_neg", "cls_attention", "grad", "random"] = "text_patch",
        scope: Literal["cross", "all"] = "cross", direction: float = 1.0, mode: Literal["cosine", "displacement"] = "cosine",
        shots: int | None = None, classes: Literal["all", "base"] = "all", crop: float = 0.08, flip: float = 0.5,
    ) -> None:
        super().__init__()
        check_between(0, float("inf"), score=score, cross=cross, direction=direction)
        check_between(0, 0.99, hidden=hidden)
        if image_prompts + text_prompts < 1:
            raise NotanError("no prompts at all", "some, of pictures or of texts", "--text-prompts 4")
        self.names, self.shots, self.crop, self.flip = class_names(data, classes), shots, crop, flip
        self.templates = templates or [template]
        self.weights = {"ce": 1.0, "score": score, "cross": cross, "direction": direction}
        self.reduction, self.symmetric, self.detach, self.mode = reduction, symmetric, detach, mode
        self.hidden, self.saliency, self.scope = hidden, saliency, scope
        self.model: Any = Prompted(model, images=image_prompts, texts=text_prompts, depth=depth, template=template)
        for name in ("frozen", "means"):
            self.register_buffer(name, torch.zeros(len(self.names), self.model.dim))

    @torch.no_grad()
    def begin(self, look: Callable[..., Tensor], columns: dict[str, np.ndarray], seed: int) -> None:
        """Before the first step: what the frozen model says of the classes' names, and means over their pictures."""
        rows = chosen(columns["label"], len(self.names), self.shots, seed)
        texts, means = frozen_texts(self.model.base, self.names, self.templates), self.means
        if self.weights["direction"]:
            means = class_means(look(self.without, index=rows), torch.from_numpy(columns["label"][rows]), len(self.names))
        found: Any = world.broadcast_object((texts.cpu(), means.cpu()))          # the same bits on all ranks
        self.frozen.copy_(found[0])
        self.means.copy_(found[1])

    def without(self, batch: dict) -> Tensor:
        return unit(self.model.base.image(whole(batch, self.model.image_size)))                 # (B, d)

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        return batches_of(chosen(columns["label"], len(self.names), self.shots, seed), batch_size, seed, epoch)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x, y = cropped(batch, self.model.image_size, scale=self.crop, flip=self.flip), batch["label"]       # (B, C, S, S), (B,)
        with torch.no_grad():
            f_o = unit(self.model.base.image(x)) if self.weights != IVLP else None              # (B, d)
        g_p = unit(self.model.text(self.names))                         # (C, d)
        seen = unit(self.model.image(x, self.mask(x, batch))) if self.masked else None
        f_p = seen if seen is not None and self.scope == "all" else unit(self.model.image(x))
        found = classified(f_p @ g_p.T / self.model.tau, y)
        terms = {"ce": found["ce"]}
        if f_o is not None:
            terms |= self.held(f_o, f_p, f_p if seen is None else seen, g_p, y)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, "accuracy": found["accuracy"]}

    def held(self, f_o: Tensor, f_p: Tensor, seen: Tensor, g_p: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms that hold prompts to the frozen model, of features (B, d) and names (C, d): those with a weight."""
        g_o, tau = self.frozen, self.model.tau
        terms = {
            "score": lambda: score_kept(f_o @ g_o.T / tau, f_p @ g_p.T / tau, self.reduction),
            "cross": lambda: crossed(seen @ g_o.T / tau, f_o @ g_p.T / tau, self.symmetric, self.detach),
            "direction": lambda: directed(f_p, f_o, self.means[y], self.mode),
        }
        return {name: term() for name, term in terms.items() if self.weights[name]}

    @property
    def masked(self) -> bool:
        """Whether any pass hides patches."""
        return bool(self.hidden and (self.weights["cross"] or self.scope == "all"))

    def mask(self, x: Tensor, batch: dict) -> Tensor:
        """Which patches of pixels are hidden, the least salient ones: bool (B, N)."""
        return hide_least(self.salience(x, batch), self.hidden)

    def salience(self, x: Tensor, batch: dict) -> Tensor:
        """How much the frozen model makes of each patch of pixels (B, C, S, S), for the class of the row: (B, N)."""
        base, own = self.model.base, self.frozen[batch["label"]]        # (B, d)
        if self.saliency == "cls_attention":
            return class_attention(base.image_encoder, lambda: base.image(x))
        if self.saliency == "grad":
            return relevance(base.image_encoder, lambda: (unit(base.image(x)) * own).sum(1))
        with torch.no_grad():
            s = torch.einsum("bnd,bd->bn", F.normalize(base.patches(x), dim=2), own)
        if self.saliency == "random":
            return uniform(batch["key"], "salience", s.shape[1]).to(s)
        return s if self.saliency == "text_patch" else -s

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Pictures and texts, which are names of classes."""
        return both(batch, self.model)

    def dense(self, batch: dict) -> Tensor:
        return self.model.maps(whole(batch, self.model.image_size))     # (B, D, h, w)

    def pictures(self, batch: dict) -> dict[str, Tensor]:
        x = cropped(batch, self.model.image_size, scale=self.crop, flip=self.flip)
        hidden = self.mask(x, batch).view(len(x), 1, *self.model.image_encoder.grid)
        grey = F.interpolate(hidden.to(x), x.shape[2:])                 # (B, 1, S, S)
        return {"picture": whole(batch, self.model.image_size), "crop": x, "salient": x * (1 - grey) + 0.5 * grey}


IVLP = {"ce": 1.0, "score": 0.0, "cross": 0.0, "direction": 0.0}        # without what DiSa adds


def score_kept(frozen: Tensor, prompted: Tensor, reduction: str) -> Tensor:
    """L_SR of logits (B, C): KL(frozen || prompted), the mean over rows, or over rows and classes."""
    rows = kl(frozen, prompted)
    return world.mean(rows.sum(), len(rows) * (frozen.shape[1] if reduction == "numel" else 1))


def crossed(first: Tensor, second: Tensor, symmetric: bool, detach: str) -> Tensor:
    """L_CIR of logits (B, C) of prompted pictures with frozen texts and of frozen pictures with prompted texts."""
    first, second = first.detach() if detach == "q1" else first, second.detach() if detach == "q2" else second
    rows = (kl(first, second) + kl(second, first)) / 2 if symmetric else kl(first, second)
    return world.mean(rows.sum(), len(rows))


def directed(f_p: Tensor, f_o: Tensor, mu: Tensor, mode: str) -> Tensor:
    """L_DiR of unit features (B, d) and the means of their classes; rows without a mean, or a step, do not count."""
    counts = mu.square().sum(1) > 0
    if mode == "displacement":
        step, way = f_p - f_o, mu - f_o
        counts = counts & (step.detach().norm(dim=1) >= 1e-6) & (way.norm(dim=1) >= 1e-6)
        f_p, mu = step, way
    rows = 1 - F.cosine_similarity(f_p, mu, dim=1, eps=1e-12)           # (B,)
    return world.mean(torch.where(counts, rows, 0).sum(), counts.sum())


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(softmax p || softmax q) of logits (B, C): (B,)."""
    p, q = p.log_softmax(1), q.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def class_means(z: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Directions of the means of unit features (N, d) by class: (classes, d), 0 of a class without rows."""
    sums = torch.zeros(classes, z.shape[1], dtype=torch.float64).index_add_(0, labels.cpu(), z.double().cpu())
    return unit(sums)


def hide_least(salience: Tensor, share: float) -> Tensor:
    """All but the round((1 - share) N) most salient of N patches: bool (B, N). Of equal ones those that come first stay."""
    kept = max(1, round((1 - share) * salience.shape[1]))
    order = salience.argsort(dim=1, descending=True, stable=True)[:, :kept]
    return torch.ones_like(salience, dtype=torch.bool).scatter_(1, order, False)


def example(rows: int, dtype: torch.dtype) -> tuple[DiSa, dict]:
    from notan.methods._example import images, tiny_dual_encoder

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("cat", "dog", "old house"))
    method, batch = DiSa(tiny_dual_encoder(), data=data, crop=0.5).to(dtype), images(rows)
    every = images(6)
    method.begin(lambda encode, index: encode({"image": every["image"][index]}), {"label": every["label"].numpy()}, 0)
    return method, batch
