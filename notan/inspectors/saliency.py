"""Saliency of pictures and words: what the cosine of a picture and its caption rests on, patch by patch and word by word.

Words are scored by GASS of GA-DMS (Zheng et al. 2025, arXiv 2509.09118), patches by the same idea on the picture's side, which is
Grad-ECLIP's (Zhao et al., ICML 2024); see `notan/nets/attribution.py`.

**What it is.** In the last `layers` blocks what attention gives is taken apart into what each token gave to it, and each part
counts by the gradient of the cosine: the heat. Beside it stands the cosine of each patch by itself with the caption, the
similarity. Whether either of them is right is tried out:

    hottest, coldest = how much lower the cosine is when the hottest, or the coldest, quarter of the patches is hidden
    sign = share of pairs in which hiding the hottest costs more: 0.5 by chance, below it the map is the wrong way round
    the same for the one word that most, or least, rests on, which is left out
    AUC = patches that `segmentation` says are not 0 against the others, by heat and by similarity, where rows have it

`blind` is the share of captions without any word that helps, `effective words` and `effective patches` how many share the weight
(exp of the entropy of a pair's shares), `agreement` the rank correlation of heat and similarity.

**The trap.** In a CLIP the similarity of patches is often the wrong way round: ground that says nothing comes out nearest to
the caption, because the last blocks use such patches as notepads (Li et al. 2023, arXiv 2304.05653). A handsome map can be the
negative of the right one, so look at its sign before you believe it.

**When it helps.** You want to see why a picture was found, whether a model looks at the thing or at its background, and which
words of a caption the picture does not bear out.

**What it costs.** Two passes of each encoder with gradients, and five without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import spearman
from notan.methods._pairs import first_caption, whole
from notan.nets.attribution import at_ends, ends, is_word, patch_scores, to_one, word_scores

CARD = {
    "title": "Gradient-Attention Guided Dual-Masking Synergetic Framework for Robust Text-based Person Retrieval",
    "arxiv": "2509.09118", "year": 2025, "needs": ["image", "text or captions"], "asks": "dual",
    "claim": "The gradient of the cosine, times attention, tells the words of a caption that its picture bears out from those "
             "that it does not, better than the words' own cosines do.",
    "cost": "Two passes of each encoder with gradients, and five without.",
    "deviations": [
        "The paper scores words alone. Patches are scored by the sum over all tokens that looked at them, so that pictures that "
        "are the mean of their patches have a heat too.",
        "Scores are brought to 1 at a caption's and a picture's largest.",
        "Of several captions the first is taken.",
    ],
}
PART, SHOWN = 32, 6                                                     # pairs read at a time, and pairs in the figure


@torch.no_grad()
def measure(model: Any, data: Any, *, layers: int = 1) -> dict[str, Any]:
    """What the module says, means over pairs.

    layers: how many of the last blocks of either tower are asked.

    Raises `NotanError` for no pairs, encoders whose attention cannot be reached, and features that are not finite.
    """
    training, parts = model.training, []
    shown: list[dict[str, Any]] = []
    try:
        model.eval()
        for batch in data:
            for start in range(0, len(batch["image"]), PART):
                some = {k: v[start : start + PART] for k, v in batch.items()}
                parts.append(found := looked(model, some, layers))
                shown += pictured(model, some, found, SHOWN - len(shown))
    finally:
        model.train(training)
    if not parts:
        raise NotanError("no pairs", "pictures with captions", "--rows 2000")
    every = {k: torch.cat([p[k] for p in parts]) for k in parts[0] if k not in ("heat", "raw", "words")}
    numbers: dict[str, Any] = {"pairs": len(every["cosine"])}
    numbers |= {k: float(v[v.isfinite()].mean()) for k, v in every.items() if bool(v.isfinite().any())}
    if not np.isfinite(numbers.get("cosine", np.nan)) or not bool(every["cosine"].isfinite().all()):
        raise NotanError("features are not finite", "finite numbers", "the encoder has diverged: train at a lower rate")
    return {**numbers, "figure": drawn(shown, numbers)}


def looked(model: Any, batch: dict, layers: int) -> dict[str, Tensor]:
    """Of each pair its maps and words, and what is measured of them: (n,) float64 each, NaN where it does not apply."""
    x = pixels_of(model, batch)
    ids, pad = model.text_encoder.tokens(first_caption(batch))
    v = model.image(x)
    t = text_of(model, ids, pad)
    heat = patch_scores(model.image_encoder, model.image_head, x, t, layers=layers)             # (n, N)
    raw = F.cosine_similarity(model.patches(x), t[:, None], dim=2)                              # (n, N)
    words = to_one(word_scores(model.text_encoder, model.text_head, ids, pad, v, layers=layers))           # (n, T)
    cosine = F.cosine_similarity(v, t, dim=1)
    found = {"cosine": cosine, **hidden(model, x, t, cosine, heat, ""), **hidden(model, x, t, cosine, raw, " by similarity"),
             **left_out(model, ids, pad, v, cosine, words), "blind": (words.amax(1) == 0).to(cosine),
             "effective words": effective(words), "effective patches": effective(heat),
             "agreement": torch.tensor([spearman(a, b) if a.unique().numel() > 1 else torch.nan for a, b in zip(heat, raw)])}
    if "segmentation" in batch:
        found |= {"AUC": areas(heat, batch["segmentation"], model), "AUC by similarity": areas(raw, batch["segmentation"], model)}
    return {k: v.double().cpu() for k, v in found.items()} | {"heat": heat.cpu(), "raw": raw.cpu(), "words": words.cpu()}


def pixels_of(model: Any, batch: dict) -> Tensor:
    p = next(model.parameters())
    x = whole({"image": batch["image"].to(p.device)}, model.image_size)
    return (x if x.shape[1] == model.channels else x.mean(1, keepdim=True).expand(-1, model.channels, -1, -1)).to(p.dtype)


def text_of(model: Any, ids: Tensor, pad: Tensor) -> Tensor:
    """Tokens (n, T) to (n, d)."""
    return model.text_head(at_ends(model.text_encoder(ids, pad), ends(model.text_encoder, ids, pad)))


def hidden(model: Any, x: Tensor, t: Tensor, cosine: Tensor, scores: Tensor, how: str) -> dict[str, Tensor]:
    """What it costs to hide the quarter of the patches that scores (n, N) put first, or last."""
    order, few = scores.argsort(dim=1, descending=True, stable=True), max(1, scores.shape[1] // 4)
    costs = []
    for chosen in (order[:, :few], order[:, -few:]):
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
        costs.append(cosine - F.cosine_similarity(model.image(x, mask), t, dim=1))
    return {f"hottest{how}": costs[0], f"coldest{how}": costs[1], f"sign{how}": (costs[0] > costs[1]).to(cosine)}


def left_out(model: Any, ids: Tensor, pad: Tensor, v: Tensor, cosine: Tensor, words: Tensor) -> dict[str, Tensor]:
    """What it costs to leave out the word that most, or least, rests on; NaN for captions of fewer than two."""
    word = is_word(ends(model.text_encoder, ids, pad), ids.shape[1])
    costs = []
    for place in (words.masked_fill(~word, -1).argmax(1), words.masked_fill(~word, 2).argmin(1)):
        at = torch.arange(ids.shape[1], device=ids.device)
        index = torch.where(at < place[:, None], at, at + 1).clamp(max=ids.shape[1] - 1)
        fewer = F.pad(pad.gather(1, index)[:, :-1], (0, 1), value=True)
        costs.append(cosine - F.cosine_similarity(v, text_of(model, ids.gather(1, index), fewer), dim=1))
    few = word.sum(1) < 2
    sign = (costs[0] > costs[1]).to(cosine)
    return {"top word": costs[0].masked_fill(few, torch.nan), "bottom word": costs[1].masked_fill(few, torch.nan),
            "sign of words": sign.masked_fill(few, torch.nan)}


def effective(scores: Tensor) -> Tensor:
    """exp of the entropy of shares (n, K): how many take part; NaN where all are 0."""
    p = scores / scores.sum(1, keepdim=True)
    return (-torch.xlogy(p, p).sum(1)).exp()


def areas(scores: Tensor, segmentation: Tensor, model: Any) -> Tensor:
    """Of each picture, the chance that a patch of a thing has a higher score than one of none (n,); NaN where it has but one
    kind.

    A patch is of a thing where more than half of its pixels that count (not 255) are not 0; one without any does not count.
    """
    counts, thing = (segmentation != 255).float()[:, None], ((segmentation != 255) & (segmentation != 0)).float()[:, None]
    side = model.image_encoder.grid
    known, part = (F.adaptive_avg_pool2d(m, side).flatten(1) for m in (counts, thing))          # (n, N)
    found = []
    for s, k, p in zip(scores.cpu(), known.cpu(), part.cpu()):
        inside, outside = s[(k > 0) & (p > k / 2)], s[(k > 0) & (p <= k / 2)]
        ahead = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
        found.append(ahead.mean() if ahead.numel() else torch.tensor(torch.nan, dtype=torch.float64))
    return torch.stack(found)


# -------------------------------------------------------------------------------------------------------------- the figure

def pictured(model: Any, batch: dict, found: dict[str, Tensor], most: int) -> list[dict[str, Any]]:
    """What the figure shows of the first pairs: pixels, maps on the grid, and the caption in pieces with their scores."""
    ids, pad = model.text_encoder.tokens(first_caption(batch))
    word = is_word(ends(model.text_encoder, ids, pad), ids.shape[1]).cpu()
    tokenizer, grid, shown = model.text_encoder.tokenizer, model.image_encoder.grid, []
    for i in range(min(most, len(ids))):
        names = tokenizer.convert_ids_to_tokens(ids[i][word[i].to(ids.device)].tolist())
        shown.append({"picture": pixels_of(model, {"image": batch["image"][i : i + 1]})[0].float().cpu(),
                      "heat": found["heat"][i].view(grid), "raw": found["raw"][i].view(grid), "pieces": pieces(tokenizer, names),
                      "scores": found["words"][i][word[i]].tolist(), "cosine": float(found["cosine"][i])})
    return shown


def pieces(tokenizer: Any, names: list[str]) -> list[str]:
    """Tokens as they are read, a space before each that begins a word."""
    begins = [i == 0 or n.startswith(("Ġ", "▁")) or names[i - 1].endswith("</w>") for i, n in enumerate(names)]
    return [" " * b + tokenizer.convert_tokens_to_string([n]).strip() for n, b in zip(names, begins)]


def drawn(shown: list[dict[str, Any]], numbers: dict[str, Any]) -> Any:
    """A row for each pair: the picture, the heat and the similarity laid over it, and the caption with its words shaded."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.6 + 1.75 * len(shown)))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(shown), 4, width_ratios=(1, 1, 1, 2.8), left=0.01, right=0.99, bottom=0.01, wspace=0.05,
                               top=1 - 0.55 / (0.6 + 1.75 * len(shown)), hspace=0.08)
    signs = [f"{name}\nsign {numbers[key]:.2f}" + (f", AUC {numbers[auc]:.2f}" if auc in numbers else "")
             for name, key, auc in (("heat", "sign", "AUC"),
                                    ("similarity of patches", "sign by similarity", "AUC by similarity"))]
    words = "words, the darker the more rests on them\n"
    words += f"sign {numbers['sign of words']:.2f}" if "sign of words" in numbers else ""
    for row, one in enumerate(shown):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
        h, w = one["picture"].shape[1:]
        for axis, name in zip(axes, ("picture", "heat", "raw")):
            axis.set_axis_off()
            if name == "picture":
                axis.imshow(one["picture"].permute(1, 2, 0).squeeze(-1).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
                continue
            axis.imshow(one["picture"].mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
            values = one[name].float()
            span = float(values.max() - values.min())
            axis.imshow((values - values.min()) / (span or 1.0), cmap="inferno", alpha=0.6, interpolation="bilinear", vmin=0,
                        vmax=1, extent=(-0.5, w - 0.5, h - 0.5, -0.5))
        shaded(figure, axes[3], one)
        for axis, title in zip(axes, ("picture", *signs, words) if row == 0 else ()):
            axis.set_title(title, fontsize=9, loc="left" if axis is axes[3] else "center")
    return figure


def shaded(figure: Any, axis: Any, one: dict[str, Any]) -> None:
    """The caption in lines, each piece on a ground as strong as its score."""
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    renderer, box = figure.canvas.get_renderer(), axis.get_window_extent()
    x, y, line, space = 0.03, 0.86, 0.16, 0.02
    for piece, score in zip(one["pieces"], one["scores"]):
        if y < 0.15:                                                    # a caption of many lines
            axis.text(0.03, y, "...", fontsize=9, va="center")
            break
        text = axis.text(0, y, piece.strip(), fontsize=9, va="center",
                         bbox={"facecolor": (0.85, 0.2, 0.05, 0.85 * score), "edgecolor": "none", "pad": 1.5})
        width = text.get_window_extent(renderer).width / box.width
        x += space if piece.startswith(" ") and x > 0.03 else 0.0
        if x + width > 0.98 and x > 0.03:
            x, y = 0.03, y - line
        text.set_position((x, y))
        x += width + 0.004
    axis.text(0.03, 0.06, f"cosine {one['cosine']:.2f}", fontsize=8, color="0.4", va="center")


def example() -> tuple[Any, list[dict]]:
    from notan.methods._example import captioned, tiny_dual_encoder

    torch.manual_seed(0)
    model, batch = tiny_dual_encoder().double(), captioned(14)
    batch["segmentation"] = torch.zeros(14, 16, 16, dtype=torch.int64)
    batch["segmentation"][:, 4:12, 4:12] = 1
    return model, [{k: v[:9] for k, v in batch.items()}, {k: v[9:] for k, v in batch.items()}]
