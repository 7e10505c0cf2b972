"""Decoders of masked encoders (MAE, He et al. 2022, section 3), in two parts that HPM needs apart.

`MaskTokens` turns what the encoder saw into the decoder's input, `TokenDecoder` turns that into predictions, and
`MaskedDecoder` is the two in a row. Tokens carry their positions, so nothing is moved back into raster order: the class
token comes first, then the visible tokens, then the hidden ones, the latter two each in raster order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.nets.pixels import patchify as patchify
from notan.nets.pixels import unpatchify as unpatchify
from notan.nets.positions import sincos_2d
from notan.nets.vit import Block, init_linear
from notan.views.masks import hidden_indices, keep_indices


class MaskTokens(nn.Module):
    """Decoder input: embedded encoder tokens and one learned vector for each hidden place, each with its position.

    encoder_dim: width of the encoder. grid: its (h, w) patches. dim: width of the decoder.
    """

    decoder_pos_embed: Tensor

    def __init__(self, encoder_dim: int, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("decoder_pos_embed", F.pad(sincos_2d(grid, dim), (0, 0, 1, 0))[None])
        init_linear(self.decoder_embed)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """z (B, 1 + K, encoder_dim) and mask (B, N), True = hidden, to (B, 1 + N, dim): class, visible, hidden.

        Without a mask z holds all N tokens, and they stay in raster order.
        """
        x = self.decoder_embed(z)
        if mask is None:
            return x + self.decoder_pos_embed
        positions = self.decoder_pos_embed[0, 1:]                       # (N, dim)
        hidden = self.mask_token + positions[hidden_indices(mask)]      # (B, M, dim)
        cls = x[:, :1] + self.decoder_pos_embed[:, :1]
        visible = x[:, 1:] + positions[keep_indices(mask)]              # (B, K, dim)
        return torch.cat([cls, visible, hidden.to(x.dtype)], dim=1)


class TokenDecoder(nn.Module):
    """Transformer blocks, a norm and a linear map `decoder_pred`: (B, L, dim) to (B, L, out)."""

    def __init__(self, dim: int, depth: int, heads: int, out: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.decoder_blocks = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, out)
        self.apply(init_linear)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """Predictions for all tokens, or for the `last` ones only: (B, L or last, out)."""
        last = x.shape[1] if last is None else last
        for i, block in enumerate(self.decoder_blocks, start=1):
            final = i == len(self.decoder_blocks)                       # where other tokens are keys and values only
            x = block.tail(x, last) if final else block(x)              # type: ignore[operator]
        x = x[:, x.shape[1] - last:]
        return self.decoder_pred(self.decoder_norm(x))


class MaskedDecoder(nn.Module):
    """MAE's decoder: predictions for the hidden tokens only, in raster order.

    out: numbers per token, patch * patch * channels for pixels.
    """

    def __init__(self, encoder_dim: int, grid: tuple[int, int], dim: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        self.tokens = MaskTokens(encoder_dim, grid, dim)
        self.decoder = TokenDecoder(dim, depth, heads, out)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """z (B, 1 + K, encoder_dim) and mask (B, N), True = hidden, to (B, M, out), M = N - K."""
        hidden = mask.shape[1] - (z.shape[1] - 1)
        return self.decoder(self.tokens(z, mask), last=hidden)
