"""GA-DMS: words of a caption that its picture does not bear out are hidden before the two are matched, others are guessed.

Zheng, Ni, An, Xie, Wang and others, "Gradient-Attention Guided Dual-Masking Synergetic Framework for Robust Text-based Person
Retrieval", EMNLP 2025 (arXiv 2509.09118).

**What it is.** Captions written by a model have wrong words in them. A score s_i in [0, 1] says how much the cosine of a picture
v and its caption t rests on word i: gradient times attention in the last L blocks of the text tower (GASS, section 3.2; see
`notan/nets/attribution.py`). From the scores of the caption's last turn two copies of it are made, each word by itself:

    hidden as noise:      p_n(i) = a_n / (1 + exp(-lambda ((1 - s_i) - g_n)))       what little rests on          section 3.3
    hidden to be guessed: p_m(i) = a_m / (1 + exp(-lambda (s_i - g_m)))             what much rests on

The first is matched with the pictures of the batch, the hidden words of the second are guessed by a decoder that reads the
picture:

    L_SDM = KL(p | q) in both directions, p_ij = softmax_j(v_i . t_j / tau), q_ij evenly over j of i's identity
    L_MTP = mean over hidden words of -log softmax(decoder(h, picture))[word]
    L = L_SDM + beta L_MTP                                                                               equation 10

A caption that is new has s = 0.85 everywhere: nothing of it is hidden as noise, and 30% to be guessed. Afterwards captions are
read plain, and scores and decoder are dropped.

**When it helps.** Captions are many and partly wrong, and the encoders already know enough to see it: begin with a released
CLIP or a run of `clip` (`--model`). In the paper's ablation nearly all of the gain is that of hiding noise: rank-1 on
CUHK-PEDES, without fine-tuning, 56.75 without masks, 63.87 with it, 64.25 with guessing too; masks by plain cosine reach 63.29.
Several pictures of one person, or of one class, belong together with `--identity label`.

**What it costs.** The text tower reads each caption three times, once with a gradient of its own, and a decoder guesses.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError, check_between
from notan.methods._contrast import by_identity
from notan.methods._pairs import both, caption_numbers, check_tau, cropped, one_caption, whole
from notan.methods._progress import Progress
from notan.nets.attribution import Words, at_ends, ends, is_word, likeness, to_one, word_scores
from notan.nets.fusion import FusionDecoder
from notan.nets.protocols import DualEncoder
from notan.views.masks import chosen_tokens, hide_most_tokens, hide_tokens
from notan.views.random import fold

CARD = {
    "title": "Gradient-Attention Guided Dual-Masking Synergetic Framework for Robust Text-based Person Retrieval",
    "arxiv": "2509.09118", "year": 2025,
    "needs": ["image", "text or captions"], "task": "features", "exports": ["safetensors"],
    "exports_why": "it is two encoders, which no single stock class holds",
    "claim": "Hiding the words of a caption that its picture does not bear out, before the two are matched, makes retrieval "
             "robust against wrong captions; guessing the other words adds to it.",
    "paper": "CLIP ViT-B/16 on five million pictures of people with written captions, then fine-tuned: rank-1 / mAP on "
             "CUHK-PEDES 77.60 / 69.82, ICFG-PEDES 69.51 / 42.30, RSTPReid 71.25 / 55.43. Not the best everywhere: on "
             "ICFG-PEDES another method has mAP 42.93, and one has a higher rank-1 without fine-tuning (57.13 against 54.64). "
             "One seed, no spread.",
    "cost": "Three readings of each caption, one with a gradient of its own, and a decoder over its words and the picture's "
            "tokens.",
    "deviations": [
        "Paper and code differ. The default follows the paper where it says something: attention with all heads, relevance "
        "brought to shares over the words, each caption's largest score at 1 (the paper does not say how scores come to [0, "
        "1]), [MASK] alone among what is hidden as noise. variant=code follows the code: one head, a sum that may be near 0 "
        "under the shares, the whole batch's largest score at 1, 80/10/10 in both copies, the first word hidden where nothing "
        "is.",
        "The gradient is that of what attention gives at the end token, as in the code; the paper's symbol is that token's "
        "state.",
        "By default neighbours are pooled, and likeness is brought to [0, 1], over a caption's own tokens; the code fills all "
        "up to 77.",
        "Scores are kept by caption, gathered from all processes; the code's processes keep lists of their own while rows move "
        "on.",
        "Padding is not seen by the decoder; in the code it is. Its blocks have an exact GELU.",
        "Pictures are cropped and mirrored; the code pads by 10 pixels, crops, and erases rectangles.",
        "beta, rate and batch are the paper's in the recipe `paper` and the launch script's in `code`; the paper gives no slope "
        "and no turning points, they are the code's.",
        "A rare word (49405) is CLIP's mask; a tokenizer of ours has the byte 255, which no text holds.",
        "The random word of 80/10/10 is any word but the mask and the ends.",
        "The small recipe has fresh encoders, and tau = 0.2 for their sake: at 0.02 and at 0.07 they stay where all features "
        "are equal for the 60 steps that were tried. The paper starts from CLIP.",
    ],
    "floor": {"data": "emoji", "metric": "sdm", "steps": 60, "value": 27.9, "random": 28.03},
}

RECIPES = {
    "paper": {
        "model": {"name": "hf", "source": "openai/clip-vit-base-patch16"},
        "optimiser": {"name": "adam", "lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-3, "weight_decay": 4e-5},
        "batch": 512, "epochs": 30, "warmup": 0.167, "method": {"crop": 0.9, "flip": 0.5},
    },
    "code": {
        "model": {"name": "hf", "source": "openai/clip-vit-base-patch16"},
        "optimiser": {"name": "adam", "lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-3, "weight_decay": 4e-5},
        "batch": 1024, "epochs": 30, "warmup": 0.167, "method": {"variant": "code", "beta": 0.3, "crop": 0.9, "flip": 0.5},
    },
    "small": {
        "model": {"name": "dual", "dim": 128,
                  "image_encoder": {"name": "vit", "dim": 128, "depth": 3, "heads": 4},
                  "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32}},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1},
        "batch": 128, "epochs": 40, "warmup": 0.1,
        "method": {"layers": 1, "tau": 0.2, "decoder_depth": 1, "decoder_heads": 4},
    },
}
NEW = 0.85                                                              # the scores of a caption that was not read yet


class GADMS(nn.Module):
    """A dual encoder, scores of its captions' words, and a decoder that guesses words.

    variant: what to follow where the paper and its code differ.
    tau: temperature of the matching, fixed.
    beta: weight of the guessing; 0 does without.
    scorer: what masks follow, GASS or the cosine of each word with the picture.
    online: mask by the scores of this very reading; otherwise by those of the caption's last one.
    noise_rate: the chance of being hidden as noise that a word has at most (a_n); 0 hides none.
    noise_turn: where in 1 - s that chance is a half of it (g_n).
    guess_rate: the chance of being hidden to be guessed that a word has at most (a_m).
    guess_turn: where in s that chance is a half of it (g_m).
    slope: how steep both are (lambda).
    layers: how many of the text tower's last blocks are asked for scores (L).
    scales: widths at which neighbouring words are pooled.
    identity: what belongs together, captions and pictures of one row, or of one label.
    captions: of how many captions of a row scores are kept.
    decoder_depth: blocks of the decoder.
    decoder_heads: its attention heads.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring a picture; captions may name sides.
    """

    kept: Tensor                                                        # (rows times captions, context)
    words: Tensor                                                       # what a random word is one of

    def __init__(self, model: DualEncoder, *, variant: Literal["paper", "code"] = "paper", tau: float = 0.02, beta: float = 0.4,
                 scorer: Literal["gass", "cosine"] = "gass", online: bool = False, noise_rate: float = 0.2,
                 noise_turn: float = 0.9, guess_rate: float = 0.3, guess_turn: float = 0.1, slope: float = 20.0, layers: int = 8,
                 scales: tuple[int, ...] = (1, 2), identity: Literal["row", "label"] = "row", captions: int = 5,
                 decoder_depth: int = 4, decoder_heads: int = 8, crop: float = 0.6, flip: float = 0.0, data: DataInfo) -> None:
        super().__init__()
        check_tau(tau, 1e-4)
        check_between(0, 1, noise_rate=noise_rate, guess_rate=guess_rate)
        check_between(0, math.inf, beta=beta, slope=slope)
        check_between(1, math.inf, captions=captions, scales=min(scales, default=0))
        check_between(1, len(Words.of(model.text_encoder).blocks), layers=layers)
        if beta and not hasattr(model.image_encoder, "states"):
            raise NotanError(f"the picture encoder is a {type(model.image_encoder).__name__}, which has no tokens",
                             "a vision transformer, whose tokens the decoder reads",
                             "a run with --image-encoder vit, or hf:NAME; or --beta 0")
        self.model = cast(Any, model)
        self.code, self.tau, self.beta, self.scorer, self.online = variant == "code", tau, beta, scorer, online
        self.noise, self.guess, self.slope = (noise_rate, noise_turn), (guess_rate, guess_turn), slope
        self.layers, self.scales, self.identity, self.crop, self.flip = layers, tuple(scales), identity, crop, flip
        self.model.log_scale.requires_grad_(False).fill_(-math.log(tau))                        # what is saved says it
        tokenizer = model.text_encoder.tokenizer
        self.mask_id = mask_id(tokenizer)
        special = {*tokenizer.all_special_ids, self.mask_id}
        self.register_buffer("words", torch.tensor([i for i in range(len(tokenizer)) if i not in special]), persistent=False)
        self.decoder = FusionDecoder(model.dim, decoder_heads, decoder_depth, len(tokenizer)) if beta else None
        self.places = 1 if "text" in data.columns else captions         # of a row
        rows = 0 if online else data.rows * self.places
        self.register_buffer("kept", torch.full((rows, model.text_encoder.context), NEW))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Any]:
        v, tokens = self.look(cropped(batch, self.model.image_size, scale=self.crop, flip=self.flip))  # (B, d), (B, L, d)
        ids, pad = self.model.text_encoder.tokens(one_caption(batch))   # (B, T)
        end = ends(self.model.text_encoder, ids, pad)
        word, place = is_word(end, ids.shape[1]), self.place(batch)
        s = self.scores(ids, pad, v.detach(), word)                     # (B, T)
        used = s if self.online else self.kept[place][:, : ids.shape[1]].to(s)
        noise = self.noise_in(used, word)                               # (B, T)
        noisy, guessed, chosen = self.copies(ids, noise, self.guess_chance(used) * word, batch["key"])
        t = self.model.text_head(at_ends(self.model.text_encoder(noisy, pad), end))             # (B, d)
        sdm = by_identity(v, t, self.identities(batch), tau=self.tau)
        found = {"loss": sdm, "sdm": sdm, "hidden": world.mean(noise.sum(), word.sum())}
        if self.decoder is not None:
            h = self.model.text_head(self.model.text_encoder(guessed, pad))                     # (B, T, d)
            logits = self.decoder.guess(self.decoder(h, tokens, pad)[chosen])                   # (chosen, V)
            found["mtp"] = world.mean(F.cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, ids[chosen],
                                                      reduction="sum"), chosen.sum())
            found["loss"] = sdm + self.beta * found["mtp"]              # equation 10
        whole_width = F.pad(s, (0, self.kept.shape[1] - s.shape[1])).to(self.kept.dtype)
        return found if self.online else {**found, "keep": {"place": place, "scores": whole_width}}

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, S, S) as (B, d), and all their tokens (B, L, d), in the joint space."""
        if self.decoder is None:
            v = self.model.image(x)
            return v, v[:, None]
        states = self.model.image_encoder.states(x)
        return self.model.image_head(self.model.image_encoder.summary(states)), self.model.image_head(states)

    @torch.no_grad()
    def scores(self, ids: Tensor, pad: Tensor, v: Tensor, word: Tensor) -> Tensor:
        """s in [0, 1] of the words of plain captions, 0 elsewhere: (B, T). Nothing is left behind in gradients."""
        if self.noise[0] == 0 and self.decoder is None:                 # nothing follows them
            return torch.zeros(ids.shape, dtype=v.dtype, device=v.device)
        encoder, head = self.model.text_encoder, self.model.text_head
        if self.scorer == "cosine":
            return likeness(head(encoder(ids, pad)), v, word)
        s = word_scores(encoder, head, ids, pad, v, layers=self.layers, scales=self.scales, as_code=self.code)
        if not self.code:
            return to_one(s)
        most = world.gather_plain(s.amax()[None]).amax()                # of the batch of all ranks; the least is 0
        return s / torch.where(most > 0, most, 1)

    def copies(self, ids: Tensor, noise: Tensor, guess: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both copies of captions ids (B, T), hidden with these chances (B, T), and what is to be guessed, bool (B, T)."""
        first, second = fold(key, 1), fold(key, 2)
        out, chosen = chosen_tokens(first, noise, first=self.code), chosen_tokens(second, guess, first=True)
        noisy = hide_most_tokens(first, ids, out, self.mask_id, self.words) if self.code else hide_tokens(ids, out, self.mask_id)
        return noisy, hide_most_tokens(second, ids, chosen, self.mask_id, self.words), chosen

    def noise_in(self, s: Tensor, word: Tensor) -> Tensor:
        """The chance of being hidden as noise, of words alone: (B, T)."""
        return self.noise_chance(s) * word

    def noise_chance(self, s: Tensor) -> Tensor:
        return self.noise[0] * (self.slope * (1 - s - self.noise[1])).sigmoid()                 # section 3.3

    def guess_chance(self, s: Tensor) -> Tensor:
        return self.guess[0] * (self.slope * (s - self.guess[1])).sigmoid()

    def place(self, batch: dict) -> Tensor:
        """Where each row's caption has its scores: int64 (B,)."""
        most = 1 if "text" in batch else max(map(len, batch["captions"]))
        if most > self.places and not self.online:
            raise NotanError(f"a row has {most} captions, and scores are kept of {self.places}", "a place for each of them",
                             f"--captions {most}, or --online true")
        return batch["row"] * self.places + torch.tensor(caption_numbers(batch), device=batch["row"].device)

    def identities(self, batch: dict) -> Tensor:
        """What belongs together, int64 (B,): rows, or labels, and of those the unknown ones each by itself."""
        if self.identity == "row":
            return batch["row"]
        if "label" not in batch:
            raise NotanError(f"identity = label, and rows have {', '.join(batch)}", "a column `label`",
                             "--column THEIRS=label, or --identity row")
        return torch.where(batch["label"] < 0, -1 - batch["row"], batch["label"])

    def after_step(self, keep: dict[str, Tensor] | None, progress: Progress) -> None:
        if keep is not None:
            self.kept[keep["place"]] = keep["scores"]

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return both(batch, self.model)

    def dense(self, batch: dict) -> Tensor:
        return self.model.maps(whole(batch, self.model.image_size))     # (B, D, h, w)


def mask_id(tokenizer: Any) -> int:
    """The token for a hidden word: the tokenizer's own; CLIP's 49405; else the byte 255, which no text in UTF-8 has."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    if len(tokenizer) == 49408:                                         # CLIP's
        return 49405
    found = tokenizer.get_vocab().get("ÿ")                              # as byte-level tokenizers write that byte
    if found is None:
        raise NotanError(f"the tokenizer, a {type(tokenizer).__name__} of {len(tokenizer):,} tokens, has no mask",
                         "a mask token, or bytes", "another text encoder")
    return found


def example(rows: int, dtype: torch.dtype) -> tuple[GADMS, dict]:
    from notan.methods._example import captioned, tiny_dual_encoder

    torch.manual_seed(0)
    info = DataInfo("example", rows, ("image", "captions", "label"), 16, 3)
    method = GADMS(tiny_dual_encoder(), layers=1, captions=3, decoder_depth=1, decoder_heads=2, tau=0.1, data=info)
    return method.to(dtype), captioned(rows)
