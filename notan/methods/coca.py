"""CoCa: one model that finds a picture's caption among others and writes it, learned in one pass.

Yu, Wang, Vasudevan, Yeung, Seyedhosseini and Wu, "CoCa: Contrastive Captioners are Image-Text Foundation Models", TMLR 2022
(arXiv 2205.01917). Google released neither code nor weights; what the paper leaves open is as in its re-implementations.

**What it is.** A picture encoder gives tokens H. A pooler, n learned queries and one attention, reads them for the captioner;
another with one query reads what the first one gives (cascade) or H itself (parallel) for the contrast. The decoder of captions
is cut in two: its first half never sees the picture, and behind a caption y it has a learned vector, which sums y up; its
second half goes on from the words' states and reads the picture:

    G = pool_n(H),   v = W_v pool_1(G) / |.|                                    picture                  (1)
    h_1, ..., h_L, h_CLS = unimodal(y_1, ..., y_L, CLS),   causal               text                     (2)
    t = W_t norm(h_CLS) / |.|                                                                            (3)
    L_Con = 1/2 mean_i -log softmax_j(v_i . t_j / tau)[i] + 1/2 the same of columns                      (4)
    L_Cap = mean over tokens of -log P(y_l | y_1, ..., y_(l-1), G), P from multimodal(h_1, ..., h_(l-1); G)      (5)
    L = L_Con + 2 L_Cap                                                                                  (6)

No state of a word sees CLS, so one pass serves both losses. tau is learned, and never below 0.01.

**When it helps.** You have captions and want both: search and classes by words (`encode`), and words for pictures (`caption`,
`notan probe --protocol captions`). Answers to questions about a picture need both at once too. For search alone `clip` is
cheaper: in the paper's own comparison the second loss adds 0.9 points to zero-shot classification.

**What it costs.** CLIP's step and the second half of the decoder with its vocabulary: 1.18 times in the paper.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError, check_between
from notan.methods._contrast import both_ways
from notan.methods._pairs import check_tau, cropped, first_caption, learned_tau, one_caption, whole
from notan.methods._progress import Progress
from notan.nets.captioner import CrossDecoder, Reading, likeliest
from notan.nets.dual import head
from notan.nets.insert import taken_out
from notan.nets.pooler import Pooler
from notan.nets.protocols import TextEncoder, TokenEncoder
from notan.nets.text import TextTransformer, groups, in_groups
from notan.views.geometry import resize

CARD = {
    "title": "CoCa: Contrastive Captioners are Image-Text Foundation Models", "arxiv": "2205.01917", "year": 2022,
    "needs": ["image", "text or captions"], "task": "features", "image_encoder": "vit", "text_encoder": "text",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Captioning beside contrast gives one model that does what either does alone, for little more than captioning.",
    "paper": "2.1 billion parameters, JFT-3B and ALIGN: ImageNet 86.3 zero-shot, 90.6 frozen, 91.0 fine-tuned; COCO retrieval "
             "R@1 66.3 and 51.2, captions CIDEr 143.6; VQA 82.3. Base size, contrast / captioning / both: zero-shot 70.7 / none "
             "/ 71.6, VQA 59.2 / 68.9 / 69.0, cost 1 / 1.17 / 1.18.",
    "cost": "CLIP's step and a decoder that reads the picture.",
    "deviations": [
        "The two directions of the contrast are averaged; the paper's equation adds them (--direction sum).",
        "The captioning loss is a mean over the tokens of the whole batch; how the paper normalises it is not said.",
        "The vector that sums a text up stands right behind it, not at one place for all: causal attention gives the same.",
        "Poolers have norms before and after their attention, no residual sum and no MLP; blocks of the second half are the "
        "usual self-attention, cross-attention and MLP; the head is not tied to the embedding. The paper does not say.",
        "The encoder's class token is among the tokens that poolers read.",
        "AdamW; the paper's is Adafactor. The rate falls as a half cosine; the paper's falls linearly.",
        "The tokenizer is made from the captions at hand (byte-level BPE); the paper's has 64k pieces. One token starts and ends "
        "a text.",
        "The towers that a run saves by themselves lack poolers, heads and the vector that sums a text up: search with the run.",
        "Of several captions one is drawn by key each epoch. Captions are written by beam search without a penalty of length.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 14.6, "random": 20.459},
}

RECIPES = {
    "paper": {
        "image_encoder": {"name": "vit-base", "patch": 18, "positions": "learned"},
        "text_encoder": {"name": "text", "dim": 768, "depth": 12, "heads": 12, "context": 77, "vocabulary": 64000},
        "optimiser": {"name": "adamw", "lr": 8e-4, "betas": [0.9, 0.999], "weight_decay": 0.01},
        "batch": 65536, "epochs": 5, "warmup": 0.02, "method": {},
    },
    "small": {
        "image_encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4},
        "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.05},
        "batch": 128, "epochs": 40, "warmup": 0.1, "method": {"queries": 16, "decoder_depth": 2, "dim": 128},
    },
}


class CoCa(nn.Module):
    """A picture encoder, a decoder of captions in two halves, and a joint space.

    contrast_weight: of the contrast in the loss; at 0 only captioning is learned.
    caption_weight: of captioning in the loss; at 0 only contrast is learned.
    pooler: what the contrast reads, the captioner's tokens of the picture (cascade) or the encoder's (parallel).
    queries: tokens of a picture that the captioner reads.
    direction: whether the contrast is the mean of its two directions, or their sum.
    decoder_depth: blocks of the half that reads the picture; the text encoder is the other half.
    tau: temperature at first; learned, and never below 0.01.
    dim: width of the joint space.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring a picture; captions may name sides.
    """

    def __init__(
        self, image_encoder: TokenEncoder, text_encoder: TextEncoder, *, contrast_weight: float = 1.0,
        caption_weight: float = 2.0, pooler: Literal["cascade", "parallel"] = "cascade", queries: int = 256,
        direction: Literal["mean", "sum"] = "mean", decoder_depth: int = 12, tau: float = 0.07, dim: int = 512,
        crop: float = 0.5, flip: float = 0.0,
    ) -> None:
        super().__init__()
        check_tau(tau, 0.01)
        text_encoder = _causal(text_encoder)
        self.weights = _checked({"contrast": contrast_weight, "caption": caption_weight})
        self.cascade, self.ways = pooler == "cascade", {"mean": 1, "sum": 2}[direction]
        self.image_encoder, self.text_encoder, self.crop, self.flip = image_encoder, text_encoder, crop, flip
        width, heads = text_encoder.dim, text_encoder.config["heads"]
        self.generative = Pooler(queries, width, heads, image_encoder.dim)
        self.contrastive = Pooler(1, width, heads, width if self.cascade else image_encoder.dim)
        self.image_head, self.text_head = head(width, dim), head(width, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / tau)))
        self.decoder = CrossDecoder(width, decoder_depth, heads, width, text_encoder.config["vocabulary"])
        for part in self._idle():
            part.requires_grad_(False)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = cropped(batch, self.image_encoder.image_size, scale=self.crop, flip=self.flip)      # (B, C, S, S)
        h = self.image_encoder(x)                                       # (B, 1 + N, D)
        g = self.generative(h)                                          # (B, n, d)              (1)
        t, nll, count = self.read(one_caption(batch), g)
        terms = {}
        if self.weights["contrast"]:
            terms["contrast"] = self.ways * both_ways(self.summary(h, g), t, tau=self.tau)      # (4)
        if self.weights["caption"]:
            terms["caption"] = world.mean(nll.sum(), count.sum())       #                         (5)
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()   # (6)
        return {"loss": loss, **{name: term.detach() for name, term in terms.items()}, "tau": self.tau.detach()}

    def read(self, texts: list[str], g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Texts, each beside the tokens (B, n, d) of its picture, in one pass: t (B, d), -log P of each whole text (B,), and how
        many tokens that is of (B,). What has no weight is not computed: no column, or 0.
        """
        ids, pad = self.text_encoder.tokens(texts)                      # (B, L)
        found = [(rows, *self.read_some(ids[rows, :longest], pad[rows, :longest], g[rows])) for rows, longest in groups(pad)]
        order, t, nll = (torch.cat(parts) for parts in zip(*found))
        back = order.argsort()
        return t[back], nll[back], (~pad[:, 1:]).sum(1)

    def read_some(self, y: Tensor, pad: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The first two of texts of like length (B, L)."""
        if self.weights["contrast"]:
            states, t = self.unimodal(y, pad)
        else:
            states, t = self.text_encoder.states(y, pad), g.new_zeros(len(y), 0)
        if not self.weights["caption"]:
            return t, t.new_zeros(len(y))
        logits = self.decoder.head(self.decoder(states[:, :-1], g))     # (B, L - 1, V): of y_2, ..., y_L
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nll = F.cross_entropy(logits.flatten(0, 1), y[:, 1:].flatten(), reduction="none").view_as(y[:, 1:])
        return t, (nll * ~pad[:, 1:]).sum(1)

    def unimodal(self, y: Tensor, pad: Tensor) -> tuple[Tensor, Tensor]:
        """States of words (B, L, D) before the last norm, and t (B, d), of length 1."""
        states, last = taken_out(self.text_encoder.states(y, pad, self.cls_token), (~pad).sum(1))              # (2)
        return states, F.normalize(self.text_head(self.text_encoder.norm(last)), dim=1)         # (3)

    def summary(self, h: Tensor, g: Tensor) -> Tensor:
        """v of a picture's tokens h (B, 1 + N, D) and g (B, n, d): (B, d), of length 1."""
        return F.normalize(self.image_head(self.contrastive(g if self.cascade else h)[:, 0]), dim=1)           # (1)

    @property
    def tau(self) -> Tensor:
        return learned_tau(self.log_scale)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        found = {}
        if "image" in batch:
            h = self.image_encoder(whole(batch, self.image_encoder.image_size))
            found["image"] = self.summary(h, self.generative(h))
        if "text" in batch or "captions" in batch:
            found["text"] = in_groups(lambda y, pad: self.unimodal(y, pad)[1], *self.text_encoder.tokens(first_caption(batch)))
        return found

    @torch.no_grad()
    def caption(self, pixels: Tensor, *, most: int | None = None, beams: int = 1) -> list[str]:
        """What it writes of pictures (B, C, S, S) in [0, 1], in at most `most` tokens: the likeliest one at each step, or of what
        `beams` searches the likeliest text. Raises `NotanError` where captioning was not learned.
        """
        check_between(1, math.inf, most=1 if most is None else most, beams=beams)
        g, words = self.seen(pixels), self.text_encoder.tokenizer
        room, end = self.text_encoder.context - 1, words.eos_token_id
        ids = likeliest(Reading(self.text_encoder, self.decoder, g), end, end, most=min(most or room, room), beams=beams)
        rows = [row[: row.index(end)] if end in row else row for row in ids.tolist()]
        return [words.decode(row, clean_up_tokenization_spaces=False) for row in rows]

    @torch.no_grad()
    def caption_nll(self, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """-log P in nats of each text for its picture, its end with it, and of how many tokens: (B,) and (B,)."""
        return self.read(texts, self.seen(pixels))[1:]

    def seen(self, pixels: Tensor) -> Tensor:
        """What the captioner reads of pictures: (B, n, d)."""
        if not self.weights["caption"]:
            raise NotanError("this model was trained with --caption-weight 0: it writes no captions", "captioning in the loss",
                             "--caption-weight 2")
        return self.generative(self.image_encoder(resize(pixels, self.image_encoder.image_size)))

    def dense(self, batch: dict) -> Tensor:
        return self.image_encoder.maps(whole(batch, self.image_encoder.image_size))             # (B, D, h, w)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        side = self.image_encoder.image_size
        return {"picture": whole(batch, side), "crop": cropped(batch, side, scale=self.crop, flip=self.flip)}

    def _idle(self) -> list[nn.Module | nn.Parameter]:
        """What no term with a weight reaches, and so does not learn."""
        idle: list[nn.Module | nn.Parameter] = []
        if not self.weights["contrast"]:
            idle += [self.contrastive, self.image_head, self.text_head, self.text_encoder.norm, self.cls_token, self.log_scale]
        if not self.weights["caption"]:
            idle += [self.decoder] if self.cascade else [self.decoder, self.generative]
        return idle


def _causal(encoder: Any) -> TextTransformer:
    if not isinstance(encoder, TextTransformer):
        raise NotanError(f"the text encoder is a {type(encoder).__name__}, whose words may see what comes after them",
                         "the half of a decoder, in which they do not", "--text-encoder text")
    return encoder


def _checked(weights: dict[str, float]) -> dict[str, float]:
    if min(weights.values()) < 0 or max(weights.values()) == 0:
        raise NotanError(f"weights of contrast and captioning {list(weights.values())}", "none below 0, and one above",
                         "--contrast-weight 1 --caption-weight 2")
    return weights


def example(rows: int, dtype: torch.dtype) -> tuple[CoCa, dict]:
    from notan.methods._example import captioned, tiny_text_encoder
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    vit = ViT(image_size=16, patch=4, dim=24, depth=2, heads=2)         # another width than the texts'
    return CoCa(vit, tiny_text_encoder(), queries=4, decoder_depth=2, dim=16).to(dtype), captioned(rows)
