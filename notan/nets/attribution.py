"""Which words of a caption, and which patches of a picture, their cosine rests on: gradient times attention in the last blocks.

Words: GASS (GA-DMS: Zheng et al. 2025, arXiv 2509.09118, section 3.2). Both build on Grad-ECLIP (Zhao et al., ICML 2024): what
attention gives is a sum over the tokens that it looks at, so its gradient says what each of them did to the cosine. Nothing here
leaves a gradient in a parameter.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.hub import blocks_of
from notan.nets.text import GROUP, HubText, TextTransformer

EPSILON = 1e-8
HEADS = {"heads", "num_heads", "head_dim", "scale"}                     # what says of an attention how many heads it has


class Seen(NamedTuple):
    """What one attention read and gave: q, k, v and o (B, L, D), heads side by side. o is what its output projection reads; all
    that comes later depends on it with a gradient. The others have none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    heads: int


@contextmanager
def recorded(blocks: Iterable[nn.Module], *, one_head: bool = False) -> Iterator[list[Seen]]:
    """While it lasts, what each block's attention reads and gives comes into the list, in the order in which they run.

    Gradients go back as far as the first of them. one_head: they attend with one head as wide as all of theirs.
    """
    found: list[Seen] = []
    attentions = [_attention(block) for block in blocks]
    before = [{name: value for name, value in vars(attn).items() if name in HEADS} for attn, _, _ in attentions]
    hooks = [hook for one in attentions for hook in _listening(one, found)]
    try:
        for attn, _, gives in attentions if one_head else []:
            vars(attn).update({"heads": 1} if hasattr(attn, "heads") else
                              {"num_heads": 1, "head_dim": gives.in_features, "scale": gives.in_features**-0.5})
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for (attn, _, _), was in zip(attentions, before):
            vars(attn).update(was)


def _attention(block: Any) -> tuple[Any, list[nn.Linear], nn.Linear]:
    """A block's attention, what makes its queries, keys and values, and its output projection."""
    attn: Any = getattr(block, "attn", getattr(block, "self_attn", None))
    if hasattr(attn, "qkv") and hasattr(attn, "proj"):                  # ours
        return attn, [attn.qkv], attn.proj
    parts: list[Any] = [getattr(attn, name, None) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    if None in parts:
        raise NotanError(f"the attention of a {type(block).__name__} cannot be reached", "blocks of ours, of CLIP or of SigLIP",
                         "another model")
    return attn, parts[:3], parts[3]


def _listening(attention: tuple[Any, list[nn.Linear], nn.Linear], found: list[Seen]) -> list[Any]:
    attn, makes, gives = attention
    read: list[Tensor] = []                                             # q, k, v of the call that is under way

    def made(_module: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        read.extend(y.detach().chunk(y.shape[2] // inputs[0].shape[2], 2))

    def given(_module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        o = inputs[0] if found else inputs[0].detach().requires_grad_()
        q, k, v = read
        read.clear()
        found.append(Seen(q, k, v, o, attn.heads if hasattr(attn, "heads") else attn.num_heads))
        return (o,)

    return [*(linear.register_forward_hook(made) for linear in makes), gives.register_forward_pre_hook(given)]


# --------------------------------------------------------------------------------------------------------------------- words

class Words(NamedTuple):
    """A text tower that sums a text up at its end: its blocks, and what gives its states, ids and pad (B, T) to (B, T, D)."""

    blocks: nn.ModuleList
    read: Any

    @staticmethod
    def of(encoder: Any) -> Words:
        """Raises `NotanError` for a tower that reads both ways, or sums up otherwise."""
        clip = isinstance(encoder, HubText) and encoder.model.config.model_type == "clip_text_model"   # type: ignore[union-attr]
        if clip or isinstance(encoder, TextTransformer):
            return Words(blocks_of(encoder), inspect.unwrap(encoder.forward))   # without what --micro-batch laid around it
        kind = type(getattr(encoder, "model", encoder)).__name__
        raise NotanError(f"the text tower is a {kind}", "one that reads forwards and sums a text up at its end: a fresh one, or "
                         "that of a CLIP", "another dual encoder")


def ends(encoder: Any, ids: Tensor, pad: Tensor) -> Tensor:
    """The place of each text's end token, ids and pad (B, T) to int64 (B,)."""
    if isinstance(encoder, TextTransformer):
        return (~pad).sum(1) - 1
    end = encoder.model.config.eos_token_id                             # as `transformers` finds it
    return ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)


def at_ends(states: Tensor, end: Tensor) -> Tensor:
    """(B, T, D) at places (B,): (B, D)."""
    return states[torch.arange(len(states), device=states.device), end]


def is_word(end: Tensor, length: int) -> Tensor:
    """Which places lie between the start and the end: bool (B, T)."""
    place = torch.arange(length, device=end.device)
    return (place > 0) & (place < end[:, None])


def word_scores(encoder: Any, head: nn.Module, ids: Tensor, pad: Tensor, v: Tensor, *, layers: int = 8,
                scales: Sequence[int] = (1, 2), as_code: bool = False) -> Tensor:
    """GASS: how much the cosine of a text with its picture v (B, d) rests on each word, at least 0: (B, T), without a gradient.

    With q, k, v, o of the last `layers` blocks' attention, e the end token, g = d cos / d o_e and MSP the mean over `scales` of
    `multi_scale`:

        w_i = minmax_i cos(MSP(q)_e, MSP(k)_i),   S_g = (g . v_i) w_i,   S_a = A_ei / sum over words j of A_ej
        S = ReLU(mean over layers of S_g S_a), 0 outside of words

    A is the mean over heads. Each row is by itself, whatever else is in the batch. as_code: as the authors' code has it: all
    blocks with one head, texts filled up to the context and w over all of it, the sum of S_g over all tokens + 1e-8 under A,
    layers added.
    """
    tower, end = Words.of(encoder), ends(encoder, ids, pad)
    if not 1 <= layers <= len(tower.blocks):
        raise NotanError(f"layers = {layers} of a text tower of {len(tower.blocks)}", "1 or more, no more than it has",
                         f"--layers {max(1, len(tower.blocks) // 2)}")
    found = torch.zeros(ids.shape, dtype=v.dtype, device=ids.device)
    if as_code:
        extra = encoder.context - ids.shape[1]
        ids, pad = torch.cat([ids, ids[:, -1:].expand(-1, extra)], 1), F.pad(pad, (0, extra), value=True)
    for rows in end.argsort(stable=True).split(GROUP):
        T = ids.shape[1] if as_code else int(end[rows].max()) + 1
        found[rows, :T] = _scored(tower, head, ids[rows, :T], pad[rows, :T], end[rows], v[rows], layers, scales,
                                  as_code).to(found.dtype)[:, : found.shape[1]]
    return found


def _scored(tower: Words, head: nn.Module, ids: Tensor, pad: Tensor, end: Tensor, v: Tensor, layers: int, scales: Sequence[int],
            as_code: bool) -> Tensor:
    with torch.enable_grad(), recorded(tower.blocks[-layers:], one_head=as_code) as seen:
        t = head(at_ends(tower.read(ids, pad), end))                    # (B, d)
        cosine = F.cosine_similarity(v.detach(), t, dim=1).sum()        # of each row with its own picture alone
        grads = torch.autograd.grad(cosine, [s.o for s in seen])
    length = torch.full_like(end, ids.shape[1]) if as_code else end + 1
    own, word = torch.arange(ids.shape[1], device=ids.device) < length[:, None], is_word(end, ids.shape[1])
    total = torch.zeros(ids.shape, dtype=v.dtype, device=ids.device)
    for s, grad in zip(seen, grads):
        q, k = (multi_scale(x, length, scales) for x in (s.q, s.k))
        near = F.cosine_similarity(at_ends(q, end)[:, None], k, dim=2)  # (B, T)
        s_g = torch.einsum("bd,btd->bt", at_ends(grad, end), s.v) * minmax(near, own)                    # (B, T)
        a = attention_of(s, end) * word
        total = total + s_g * a / (s_g.sum(1, keepdim=True) + EPSILON if as_code else a.sum(1, keepdim=True).clamp(min=EPSILON))
    return (total / (1 if as_code else layers)).relu() * word


def attention_of(s: Seen, at: Tensor) -> Tensor:
    """How much the token at places (B,) looks at those up to it, mean over heads: (B, T)."""
    q, k = at_ends(s.q, at).unflatten(1, (s.heads, -1)), s.k.unflatten(2, (s.heads, -1))
    logits = torch.einsum("bhd,bthd->bht", q, k) * q.shape[2] ** -0.5
    later = torch.arange(k.shape[1], device=at.device) > at[:, None]
    return logits.masked_fill(later[:, None], -torch.inf).softmax(2).mean(1)


def multi_scale(x: Tensor, length: Tensor, scales: Sequence[int]) -> Tensor:
    """The mean over scales c of x (B, L, D), averaged over c neighbours (what is left at the end by itself) and drawn out again
    by straight lines; of each row the first length (B,) tokens, the rest is 0.
    """
    L = x.shape[1]
    place = torch.arange(L, device=x.device)
    own = (place < length[:, None]).to(x.dtype)[..., None]              # (B, L, 1)
    total = torch.zeros_like(x)
    for c in scales:
        cut = [F.pad(y, (0, 0, 0, -L % c)).unflatten(1, (-1, c)).sum(2) for y in (x * own, own)]
        mean, count = cut[0] / cut[1].clamp(min=1), (length + c - 1) // c
        at = ((place + 0.5) * (count.to(x.dtype) / length)[:, None] - 0.5).clamp(min=0)                 # (B, L)
        low = at.long().clamp(max=count[:, None] - 1)
        high = torch.minimum(low + 1, count[:, None] - 1)
        pair = [mean.gather(1, i[..., None].expand(-1, -1, x.shape[2])) for i in (low, high)]
        total = total + pair[0] + (at - low)[..., None].clamp(0, 1) * (pair[1] - pair[0])
    return total * own / len(scales)


def minmax(x: Tensor, own: Tensor) -> Tensor:
    """The numbers of each row (B, L) that are its own, bool (B, L), brought to [0, 1]; 0 where they are equal, and elsewhere."""
    low = x.masked_fill(~own, torch.inf).amin(1, keepdim=True)
    span = x.masked_fill(~own, -torch.inf).amax(1, keepdim=True) - low
    return torch.where(own & (span > 0), (x - low) / torch.where(span > 0, span, 1), 0)


def likeness(states: Tensor, v: Tensor, word: Tensor) -> Tensor:
    """Cosines of tokens (B, T, d) with the picture v (B, d), brought to [0, 1] within a text, 0 outside of words: (B, T)."""
    return minmax(F.cosine_similarity(states, v[:, None], dim=2), word)


def to_one(scores: Tensor) -> Tensor:
    """Scores of at least 0 (B, T) with each row's largest at 1; rows of zeros stay."""
    most = scores.amax(1, keepdim=True)
    return scores / torch.where(most > 0, most, 1)


# ------------------------------------------------------------------------------------------------------------------- patches

def patch_scores(encoder: Any, head: nn.Module, pixels: Tensor, t: Tensor, *, layers: int = 1) -> Tensor:
    """How much the cosine of each picture (B, C, S, S) with its text t (B, d) rests on each patch, at least 0: (B, N).

    With A, v and o of the last `layers` blocks' attention and G = d cos / d o: ReLU of the mean over layers of the sum over heads
    and over all tokens p of A_pi (G_p . v_i): what patch i gave to the tokens that looked at it, along the gradient. Where one
    token sums the picture up, that of the last block is Grad-ECLIP's without its weight by likeness.
    """
    if not hasattr(encoder, "states"):
        raise NotanError(f"the picture encoder is a {type(encoder).__name__}, which has no tokens", "a vision transformer",
                         "a run with --image-encoder vit, or hf:NAME")
    blocks = blocks_of(encoder)
    if not 1 <= layers <= len(blocks):
        raise NotanError(f"layers = {layers} of a picture tower of {len(blocks)}", "1 or more, no more than it has", "--layers 1")
    with torch.enable_grad(), recorded(blocks[-layers:]) as seen:
        v = head(encoder.summary(encoder.states(pixels)))
        grads = torch.autograd.grad(F.cosine_similarity(v, t.detach(), dim=1).sum(), [s.o for s in seen])
    found = torch.stack([given(s, grad) for s, grad in zip(seen, grads)]).mean(0)
    return found[:, encoder.prefix:].relu()


def given(s: Seen, grad: Tensor) -> Tensor:
    """What each token gave to all, along the gradient (B, L, D) of o: (B, L). They add up to the gradient times o."""
    q, k, v, g = (x.unflatten(2, (s.heads, -1)).transpose(1, 2) for x in (s.q, s.k, s.v, grad))         # (B, H, L, D / H)
    return ((q @ k.mT * q.shape[3] ** -0.5).softmax(3) * (g @ v.mT)).sum((1, 2))
