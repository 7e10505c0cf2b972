"""A decoder in which a text reads a picture and guesses its hidden words (IRRA: Jiang and Ye 2023, arXiv 2303.12501)."""

from __future__ import annotations

from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.pooler import CrossAttention
from notan.nets.vit import Block, init_linear


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
        self.norm_words, self.norm_picture = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.look = CrossAttention(dim, heads, dim)
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc, self.norm_head, self.out = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, vocabulary)
        self.apply(init_linear)

    def forward(self, words: Tensor, picture: Tensor, pad: Tensor) -> Tensor:
        """Words (B, T, D), of which pad (B, T) are none, and a picture's tokens (B, L, D) to states (B, T, D)."""
        x = self.look(self.norm_words(words), self.norm_picture(picture))
        for block in self.blocks:
            x = block(x, ~pad)
        return self.norm(x)

    def guess(self, states: Tensor) -> Tensor:
        """States (..., D) to logits (..., V)."""
        x = self.fc(states)
        return self.out(self.norm_head(x * (1.702 * x).sigmoid()))      # QuickGELU
