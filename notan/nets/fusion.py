"""A decoder in which a text reads a picture and guesses its hidden words (IRRA: Jiang and Ye 2023, arXiv 2303.12501)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.vit import Block, attention, init_linear


class FusionDecoder(nn.Module):
    """The words look at the picture once, then at each other, both ways, in `depth` blocks; a norm.

    dim: of words and of the picture's tokens. heads: of all attention, they divide dim. vocabulary: how many words there are.
    `forward` gives states, `guess` logits of those that are asked for. The picture is looked at without a residual sum.
    """

    def __init__(self, dim: int, heads: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        if depth < 0 or heads < 1 or dim % heads:
            raise NotanError(f"a decoder of width {dim} with {heads} heads and {depth} blocks", "a width that heads divide",
                             "--decoder-heads 4")
        self.heads = heads
        self.norm_words, self.norm_picture = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc, self.norm_head, self.out = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, vocabulary)
        self.apply(init_linear)

    def forward(self, words: Tensor, picture: Tensor, pad: Tensor) -> Tensor:
        """Words (B, T, D), of which pad (B, T) are none, and a picture's tokens (B, L, D) to states (B, T, D)."""
        q = self._split(self.q(self.norm_words(words)))                 # (B, heads, T, D / heads)
        k, v = (self._split(x) for x in self.kv(self.norm_picture(picture)).chunk(2, 2))
        x = self.proj(attention(q, k, v).transpose(1, 2).flatten(2))
        for block in self.blocks:
            x = self._mixed(block, x, ~pad[:, None, None])
        return self.norm(x)

    def guess(self, states: Tensor) -> Tensor:
        """States (..., D) to logits (..., V)."""
        x = self.fc(states)
        return self.out(self.norm_head(x * (1.702 * x).sigmoid()))      # QuickGELU

    def _mixed(self, block: nn.Module, x: Tensor, shown: Tensor) -> Tensor:
        """The block, in which nothing sees padding."""
        assert isinstance(block, Block)
        q, k, v = (self._split(y) for y in block.attn.qkv(block.norm1(x)).chunk(3, 2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
        return x + block.mlp(block.norm2(x))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
