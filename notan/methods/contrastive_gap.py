"""The contrastive gap: closing the distance between pictures and texts that the contrastive loss itself opens.

Fahim, Murphy and Fyshe, "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap" (arXiv 2405.18570, 2024).
Its text could not be read: the equations below are those of the authors' code, which has no licence and was only read.

**What it is.** In CLIP's space all pictures lie in one region and all texts in another. The paper finds the same gap between two
encoders of the *same* pictures, so it is no matter of modality: a contrast of two encoders solves its task without using the
sphere. Three terms are added to CLIP's loss, for unit vectors x of pictures and y of texts and a fixed tau of 0.01:

    L_U  = 1/2 sum over both of log mean over i < j of exp(-2 |u_i - u_j|^2)      uniformity: each side uses the sphere
    L_A  = mean_i |x_i - y_i|^2                                                   alignment: pairs lie together
    L_XU = log mean over i != j of exp(-2 |x_i - y_j|^2)                          uniformity across, matched pairs left out
    CUA = L_CLIP + L_U + L_A,     CUAXU = CUA + L_XU

L_XU alone is least when all pictures are opposite to all texts: it widens the gap, and it is alignment that holds the two
together. So it is refused without alignment.

**When it helps.** You reckon in the shared space: the mean of a picture and a text, an arithmetic of names, classes by words.
In the authors' own figures zero-shot classification gains 1 to 2 points and retrieval loses up to 2 (CUA) or nothing (CUAXU);
in 32 dimensions there is hardly a gap to close. Nobody compared it with subtracting the two means afterwards.

**What it costs.** CLIP's step, and three sums over all pairs of the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.geometry import alignment as distances
from notan.methods._contrast import both_ways, evenness, evenness_between
from notan.methods._pairs import check_tau, cropped, joint, one_caption, whole
from notan.methods._progress import Progress
from notan.nets.dual import Dual, head
from notan.nets.protocols import ImageEncoder, TextEncoder

CARD = {
    "title": "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap", "arxiv": "2405.18570", "year": 2024,
    "needs": ["image", "text or captions"], "task": "features", "image_encoder": "vit", "text_encoder": "text",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "The gap between pictures and texts comes from the contrastive loss of two encoders, not from there being two kinds "
             "of data; adding uniformity and alignment closes it and helps zero-shot classification and arithmetic.",
    "paper": "CLIP ViT-B/32 with fresh heads of 128 numbers, fine-tuned on COCO, 3 seeds, CLIP's loss / CUA / CUAXU: distance of "
             "means 0.66 / 0.08 / 0.13, zero-shot over 13 sets 28.4 / 29.7 / 30.1, text to picture R@1 26.8 / 25.4 / 26.9. "
             "Contested in review (ICLR 2025, not accepted): no untuned CLIP and no other way of closing the gap beside it.",
    "cost": "CLIP's step, and three sums over all pairs of the batch.",
    "deviations": [
        "The equations are the authors' code's; the paper's text could not be read.",
        "Uniformity is taken over the rows of all processes, so that it does not depend on how many there are.",
        "Uniformity across without alignment, which widens the gap, is refused.",
        "Of several captions one is drawn by key each epoch; that code always takes the second.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 1.4, "random": 7.915},
}

RECIPES = {
    "paper": {
        "image_encoder": {"name": "hf", "source": "openai/clip-vit-base-patch32"},
        "text_encoder": {"name": "hf", "source": "openai/clip-vit-base-patch32"},
        "optimiser": {"name": "adamw", "lr": 1e-6, "betas": [0.9, 0.99], "weight_decay": 0.1},
        "batch": 64, "epochs": 9, "warmup": 0.0, "method": {"crop": 1.0},
    },
    "small": {
        "image_encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1},
        "batch": 128, "epochs": 40, "warmup": 0.1, "method": {},
    },
}


class ContrastiveGap(nn.Module):
    """CLIP's loss with uniformity and alignment; all weights at 1 are CUAXU, cross=0 is CUA.

    tau: temperature, fixed.
    contrast: weight of CLIP's loss.
    uniformity: weight of each side's uniformity.
    align: weight of the distance of pairs.
    cross: weight of the uniformity across, which needs align above 0.
    dim: width of the joint space.
    crop: smallest share of a picture in a crop.
    """

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, *, tau: float = 0.01, contrast: float = 1.0,
                 uniformity: float = 1.0, align: float = 1.0, cross: float = 1.0, dim: int = 128, crop: float = 0.6) -> None:
        super().__init__()
        check_tau(tau, 1e-4)
        if min(contrast, uniformity, align, cross) < 0:
            raise NotanError(f"weights {contrast}, {uniformity}, {align}, {cross}", "none below 0", "--cross 0 leaves a term out")
        if cross > 0 and align == 0:
            raise NotanError("uniformity across without alignment, whose least value is the widest gap", "align above 0",
                             "--align 1, or --cross 0")
        self.image_encoder, self.text_encoder, self.tau, self.crop = image_encoder, text_encoder, tau, crop
        self.weights = {"contrast": contrast, "uniformity": uniformity, "alignment": align, "cross": cross}
        self.image_head, self.text_head = head(image_encoder.dim, dim), head(text_encoder.dim, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        a = self.image_head(self.image_encoder.features(cropped(batch, self.image_encoder.image_size, scale=self.crop)))
        b = self.text_head(self.text_encoder.features(one_caption(batch)))                      # (B, d)
        terms = gap_terms(a, b, self.tau, {name for name, w in self.weights.items() if w > 0})
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return joint(batch, self.image_encoder, self.image_head, self.text_encoder, self.text_head)

    def dual(self) -> Dual:
        return Dual(self.image_encoder, self.text_encoder, self.image_head, self.text_head, tau=self.tau)

    def dense(self, batch: dict) -> Tensor:
        return self.image_encoder.maps(whole(batch, self.image_encoder.image_size))             # (B, D, h, w)


def gap_terms(a: Tensor, b: Tensor, tau: float, wanted: set[str]) -> dict[str, Tensor]:
    """Those of the four terms that are wanted, of pairs (B, d) on this rank, over the pairs of all."""
    x, y = F.normalize(a, dim=1), F.normalize(b, dim=1)
    terms = {
        "contrast": lambda: both_ways(a, b, tau=tau),
        "uniformity": lambda: (evenness(x, t=2.0) + evenness(y, t=2.0)) / 2,
        "alignment": lambda: world.mean(distances(x, y).sum(), len(x)),
        "cross": lambda: evenness_between(x, y, t=2.0),
    }
    return {name: term() for name, term in terms.items() if name in wanted}


def example(rows: int, dtype: torch.dtype) -> tuple[ContrastiveGap, dict]:
    from notan.methods._example import captioned, tiny_text_encoder
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    vit = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return ContrastiveGap(vit, tiny_text_encoder(), dim=16).to(dtype), captioned(rows)
