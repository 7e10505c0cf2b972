"""A plain vision transformer that runs on visible tokens only (Dosovitskiy et al. 2021; He et al. 2022, MAE).

Parameter names and arithmetic are timm's (`VisionTransformer`, class token, pre-norm, fused qkv, exact GELU, LayerNorm
with eps 1e-6), so weights move both ways. `nets/convert.py` writes them for `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.insert import Extra, inserted, through
from notan.nets.pixels import Normalise
from notan.nets.positions import sincos_2d
from notan.views.masks import keep_indices


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv matrix. causal: no token sees those after it."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, shown: Tensor | None = None) -> Tensor:     # (B, L, D), (B, L) -> (B, L, D)
        """shown: True where a token may be looked at; all where None."""
        B, L, D = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, D // self.heads)
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))            # 3 x (B, heads, L, D / heads)
        y = attention(q, k, v, causal=self.causal, shown=shown)
        return self.proj(y.transpose(1, 2).reshape(B, L, D))

    def tail(self, x: Tensor, last: int) -> Tensor:                     # (B, L, D) -> (B, last, D)
        """What the `last` tokens take from all: `forward(x)[:, -last:]` without the other tokens' queries."""
        L, D = x.shape[1:]
        wq, wkv = self.qkv.weight.split((D, 2 * D))
        bq, bkv = self.qkv.bias.split((D, 2 * D))
        q = F.linear(x[:, L - last:], wq, bq).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = F.linear(x, wkv, bkv).unflatten(2, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        y = attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + Attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, *, causal: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise NotanError(f"a width of {dim} with {heads} heads", "a width that heads divide", "change dim or heads")
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, shown: Tensor | None = None) -> Tensor:     # (B, L, D), (B, L) -> (B, L, D)
        x = x + self.attn(self.norm1(x), shown)
        return x + self.mlp(self.norm2(x))

    def tail(self, x: Tensor, last: int) -> Tensor:                     # (B, L, D) -> (B, last, D)
        """`forward(x)[:, -last:]`, without what only the other tokens need."""
        x = x[:, x.shape[1] - last:] + self.attn.tail(self.norm1(x), last)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Linear embedding of patches. `proj` is kept as a convolution, as timm saves it, and used as a matrix."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:      # (B, C, H, W) -> (B, N or K, D)
        B, C, H, W = pixels.shape
        p = self.proj.stride[0]
        x = pixels.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, p, p)
        x = x.reshape(B, -1, C * p * p)
        x = x if keep is None else take(x, keep)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ViT(nn.Module):
    """A `TokenEncoder`.

    image_size: side of the (square) images.
    patch: side of a patch; it divides image_size.
    pool: what `features` is, the mean of the patch tokens or the class token, both after the final norm.
    positions: "sincos" (fixed) or "learned"; both are saved as `pos_embed` (1, 1 + N, D), the class token's first.
    mean, std: of the pixels in [0, 1], one value or one per channel.
    Initialisation is MAE's: Xavier-uniform matrices, zero biases, class token and learned positions N(0, 0.02).
    """

    pos_embed: Tensor

    def __init__(
        self, image_size: int, channels: int = 3, patch: int = 16, dim: int = 192, depth: int = 12, heads: int = 3,
        *, mlp_ratio: float = 4.0, pool: str = "mean", positions: str = "sincos",
        mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise NotanError(f"patch {patch} for images of side {image_size}", "a divisor of the side", "change patch")
        _one_of("pool", pool, "mean", "cls")
        _one_of("positions", positions, "sincos", "learned")
        self.config: dict[str, Any] = {
            "name": "vit", "image_size": image_size, "channels": channels, "patch": patch, "dim": dim, "depth": depth,
            "heads": heads, "mlp_ratio": mlp_ratio, "pool": pool, "positions": positions,
            "mean": list(mean), "std": list(std),
        }
        self.image_size, self.channels, self.patch, self.dim, self.pool = image_size, channels, patch, dim, pool
        self.grid = (image_size // patch, image_size // patch)
        self.tokens, self.prefix = self.grid[0] * self.grid[1], 1
        self.normalise = Normalise(image_size, channels, mean, std)
        self.patch_embed = PatchEmbed(patch, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.tokens, dim))
        else:
            self.register_buffer("pos_embed", F.pad(sincos_2d(self.grid, dim), (0, 0, 1, 0))[None])
        self.blocks = nn.ModuleList([Block(dim, heads, mlp_ratio) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._init()

    def _init(self) -> None:
        self.apply(init_linear)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(self.dim, -1))
        nn.init.zeros_(self.patch_embed.proj.bias)                      # type: ignore[arg-type]
        nn.init.normal_(self.cls_token, std=0.02)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=0.02)

    def embed(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class token and visible patches with their positions, before the blocks: (B, 1 + K, D)."""
        keep = None if mask is None else keep_indices(mask)             # (B, K)
        x = self.patch_embed(self.normalise(pixels), keep)
        positions = self.pos_embed[:, 1:]
        x = x + (positions if keep is None else positions[0][keep])
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pixels (B, C, S, S) and a mask (B, N), True = hidden, to (B, 1 + K, D)."""
        return self.states(pixels, mask)

    def states(self, pixels: Tensor, mask: Tensor | None = None, extra: Extra = ()) -> Tensor:
        """The same with E vectors behind the patches, which have no positions (`nets/insert.py`): (B, 1 + K + E, D)."""
        x = self.embed(pixels, mask)
        L = x.shape[1]
        x = inserted(x, extra[0], L) if extra else x
        return self.norm(through(self.blocks, x, extra, L))

    def summary(self, x: Tensor) -> Tensor:
        """What a picture is of its tokens: (B, 1 + K, D) to (B, D)."""
        return x[:, 1:].mean(1) if self.pool == "mean" else x[:, 0]

    def features(self, pixels: Tensor) -> Tensor:                       # (B, D)
        return self.summary(self(pixels))

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w)
        return self(pixels)[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, *, causal: bool = False,
              shown: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with dropout on the weights; q (B, heads, L, d), k and v (B, heads, M, d), to q's shape.

    causal: token i of q sees tokens 0 to i of k, of which there are as many. shown, bool (B, M): which tokens of k all of q may
    see; not both.
    torch's fused kernel, but for bfloat16 on CPU: its backward there takes several times as long as these products.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        mask = None if shown is None else shown[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
    B, heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)         # (B * heads, L, d)
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=q.shape[2] ** -0.5)
    if causal:
        logits = logits + torch.full_like(logits[0], -torch.inf).triu(1)
    if shown is not None:
        logits = logits.masked_fill(~shown.repeat_interleave(heads, 0)[:, None], -torch.inf)
    weights = F.dropout(logits.softmax(2), dropout)
    return torch.bmm(weights, v).unflatten(0, (B, -1))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` (B, K) of x (B, N, D): (B, K, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def init_linear(module: nn.Module) -> None:
    """For `module.apply`: Xavier-uniform weights and zero biases of linear maps (MAE)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _one_of(name: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise NotanError(f"{name}={value!r}", f"{name} is one of {', '.join(choices)}")
