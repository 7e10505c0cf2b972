"""A causal decoder that reads a picture (CoCa, Yu et al. 2022), and writing with it: one token at a time, from what is kept.

`CrossDecoder` goes on where a text transformer's blocks end. `Reading` steps the two in a row and keeps keys and values;
`likeliest` searches for what to write.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.nets.pooler import CrossAttention, Pair
from notan.nets.text import TextTransformer
from notan.nets.vit import Attention, Block, Mlp, attention, init_linear


class CrossBlock(nn.Module):
    """x + Attention(norm(x)), causal; x + CrossAttention(norm(x), context); x + MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, context_dim: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.cross = CrossAttention(dim, heads, context_dim)
        self.attn, self.mlp = Attention(dim, heads, causal=True), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:            # (B, T, D), (B, M, E) -> (B, T, D)
        x = x + self.attn(self.norm1(x))
        x = x + self.cross(self.norm2(x), context)
        return x + self.mlp(self.norm3(x))


class CrossDecoder(nn.Module):
    """Blocks, a last norm, and a head with as many rows as there are tokens, N(0, dim^-1/2) at first and without a bias."""

    def __init__(self, dim: int, depth: int, heads: int, context_dim: int, vocabulary: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([CrossBlock(dim, heads, context_dim) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(init_linear)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        nn.init.normal_(self.head.weight, std=dim**-0.5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """What the head reads: (B, T, D) and (B, M, E) to (B, T, D)."""
        for block in self.blocks:
            x = block(x, context)
        return self.norm(x)


class Reading:
    """Texts that are read token by token, beside pictures (R, M, E).

    Each call takes the next token of every row, int64 (R,), and gives the logits (R, V) of the one after it: those that
    reading all at once gives at the last place.
    """

    def __init__(self, text: TextTransformer, decoder: CrossDecoder, context: Tensor) -> None:
        self.text, self.decoder, self.rows, self.place = text, decoder, len(context), 0
        self.past: dict[int, Pair] = {}                                 # by block: of the tokens so far
        self.seen: list[Pair] = [block.cross.keys(context) for block in decoder.blocks]         # type: ignore[union-attr, operator]

    def __call__(self, tokens: Tensor) -> Tensor:
        x = (self.text.token_embedding(tokens) + self.text.pos_embed[self.place])[:, None]      # (R, 1, D)
        for i, block in enumerate(self.text.blocks):
            assert isinstance(block, Block)
            x = x + self.attend(block.attn, i, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        for i, (block, seen) in enumerate(zip(self.decoder.blocks, self.seen), start=len(self.text.blocks)):
            assert isinstance(block, CrossBlock)
            x = x + self.attend(block.attn, i, block.norm1(x))
            x = x + block.cross.read(block.norm2(x), *seen)
            x = x + block.mlp(block.norm3(x))
        self.place += 1
        return self.decoder.head(self.decoder.norm(x)[:, 0])

    def attend(self, layer: Attention, i: int, x: Tensor) -> Tensor:
        """What the next tokens (R, 1, D) take from those before them and from themselves, in block i."""
        q, k, v = layer.qkv(x).unflatten(2, (3, layer.heads, -1)).transpose(1, 3).unbind(2)     # (R, heads, 1, .)
        if i in self.past:
            k, v = (torch.cat([old, new], dim=2) for old, new in zip(self.past[i], (k, v)))
        self.past[i] = k, v
        return layer.proj(attention(q, k, v).transpose(1, 2).flatten(2))

    def pick(self, rows: Tensor) -> None:
        """Go on with these rows, int64 (R',), in this order; a row may be there more than once."""
        self.past = {i: (k[rows], v[rows]) for i, (k, v) in self.past.items()}
        self.seen, self.rows = [(k[rows], v[rows]) for k, v in self.seen], len(rows)


@torch.no_grad()
def likeliest(reading: Reading, start: int, end: int, *, most: int, beams: int = 1) -> Tensor:
    """What is written after `start` in each of B rows, int64 (B, at most `most`), the ends with it: of what is searched the
    text with the largest sum of log-probabilities, its end among them if it has one.

    One beam takes the likeliest token at each step. What has ended goes on with further ends, which cost nothing.
    """
    device, B = reading.text.pos_embed.device, reading.rows
    first = torch.arange(B, device=device)
    if beams > 1:
        reading.pick(first.repeat_interleave(beams))
    ids = torch.empty(B * beams, 0, dtype=torch.int64, device=device)
    tokens = torch.full((B * beams,), start, device=device)
    done = torch.zeros(B * beams, dtype=torch.bool, device=device)
    total = torch.full((B, beams), -torch.inf, device=device)           # at first all beams of a row are one
    total[:, 0] = 0
    for _ in range(most):
        logp = reading(tokens).float().log_softmax(1)                   # (B * beams, V)
        ended = torch.full_like(logp[0], -torch.inf)
        ended[end] = 0
        logp = torch.where(done[:, None], ended, logp)
        total, best = (total[..., None] + logp.view(B, beams, -1)).flatten(1).topk(beams)       # (B, beams)
        rows = (best // logp.shape[1] + first[:, None] * beams).flatten()
        tokens = (best % logp.shape[1]).flatten()
        ids, done = torch.cat([ids[rows], tokens[:, None]], dim=1), done[rows] | (tokens == end)
        if bool(done.all()):
            break
        if beams > 1:
            reading.pick(rows)
    return ids.view(B, beams, -1)[:, 0]
