"""Numbers from keys: a counter-based hash, so that a view is a pure function of (seed, epoch, row, purpose).

The hash is splitmix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), the
same bits as `notan.data.keys` gives in NumPy. torch has few uint64 kernels, so the arithmetic is int64: products and
sums wrap, and a right shift is masked to be logical. Bits, uniforms and integers are equal on every device; normals
agree to 1e-6. Row i of a result depends on key i alone, column j on the counter j: not on the other rows, not on n.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from notan.data.keys import word
from notan.errors import NotanError

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd number nearest 2**64 / golden ratio, as int64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def _mix_(x: Tensor) -> Tensor:
    """splitmix64's finaliser, in place: a bijection of int64."""
    x.bitwise_xor_(_shift(x, 30)).mul_(_FIRST)
    x.bitwise_xor_(_shift(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_shift(x, 31))


def fold(key: Tensor, value: int | Tensor) -> Tensor:
    """A new key of each key (B,) int64 and a value: `fold(key, 1)` and `fold(key, 2)` are for two views of a row."""
    if key.dtype != torch.int64:
        raise NotanError(f"keys of dtype {key.dtype}", "int64", "take batch['key'] as the loader gives it")
    value = torch.as_tensor(value, dtype=torch.int64, device=key.device)
    return _mix_(key ^ _mix_(value + GOLDEN))


def bits(key: Tensor, purpose: str, n: int) -> Tensor:
    """64 random bits each, int64 (B, n)."""
    stream = fold(key, word(purpose))
    counter = torch.arange(1, n + 1, device=key.device) * GOLDEN
    return _mix_(stream[:, None] + counter)  # (B, n)


def uniform(key: Tensor, purpose: str, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """float32 (B, n), uniform in [low, high): multiples of 2**-24, scaled and shifted."""
    u = _shift(bits(key, purpose, n), 40).float().mul_(2.0**-24)
    if (low, high) == (0.0, 1.0):
        return u
    bounds = torch.tensor([high, low], dtype=torch.float32)
    below = torch.nextafter(bounds[0], bounds[1]).item()  # rounding may reach `high` itself
    return u.mul_(high - low).add_(low).clamp_(max=below)


def normal(key: Tensor, purpose: str, n: int) -> Tensor:
    """float32 (B, n), standard normal (Box and Muller 1958, the cosine half, in float64)."""
    u = _shift(bits(key, purpose, 2 * n), 11).double().view(-1, n, 2)  # 53 bits
    radius = u[..., 0].add(1).mul_(2.0**-53).log_().mul_(-2).sqrt_()
    return (radius * (u[..., 1] * (2.0**-52 * torch.pi)).cos_()).float()


def integers(key: Tensor, purpose: str, n: int, high: int) -> Tensor:
    """int64 (B, n), uniform in 0 .. high - 1; off by at most high / 2**32 in probability ratio."""
    if not 0 < high <= 2**31:
        raise NotanError(f"integers below {high}", "a bound from 1 to 2**31", "draw larger numbers from bits()")
    return _shift(bits(key, purpose, n), 32).mul_(high) >> 32


def permutation(key: Tensor, purpose: str, n: int) -> Tensor:
    """int64 (B, n): each row an independent uniform order of 0 .. n - 1."""
    return bits(key, purpose, n).argsort(dim=1, stable=True)


def beta(key: Tensor, purpose: str, a: float, b: float) -> Tensor:
    """float32 (...) for keys (...), from Beta(a, b) and strictly inside (0, 1): the quantile of a uniform number, by straight
    lines between 4,097 exact ones.
    """
    table = _beta_quantiles(a, b).to(key.device)
    place = uniform(key.flatten(), purpose, 1)[:, 0].mul_(len(table) - 1)
    at = place.long()
    drawn = torch.lerp(table[at], table[at + 1], place - at)
    return drawn.clamp_(2.0**-24, 1 - 2.0**-24).view(key.shape)


@cache
def _beta_quantiles(a: float, b: float) -> Tensor:
    from scipy.stats import beta as distribution

    if not (a > 0 and b > 0):
        raise NotanError(f"Beta({a}, {b})", "two numbers above 0", "correct them")
    return torch.from_numpy(distribution.ppf(np.linspace(0, 1, 4097), a, b)).float()


def bernoulli(key: Tensor, purpose: str, p: float) -> Tensor:
    """bool (B,): True with probability p, to 2**-24."""
    return uniform(key, purpose, 1)[:, 0] < p
