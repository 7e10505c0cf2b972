"""Keys: 64-bit integers from which every random choice about a row is computed.

A counter-based hash (the finaliser of splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", 2014) instead of a generator with state. A key depends on (seed, epoch, row) and on nothing else: not on
the batch, the rank, the device or what was drawn before. `views/random.py` computes the same bits with torch.
"""

from __future__ import annotations

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: keeps the hash of 0 from being 0
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_WORD = (1 << 64) - 1


def mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser, a bijection of 64-bit words. uint64 (...) -> uint64 (...)."""
    with np.errstate(over="ignore"):  # wrapping is the point
        x = (x ^ (x >> _30)) * _A
        x = (x ^ (x >> _27)) * _B
        return x ^ (x >> _31)


def word(purpose: str) -> int:
    """A stable 64-bit constant of a name, as a signed Python int."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def fold(key: np.ndarray | int, value: np.ndarray | int) -> np.ndarray:
    """A new key from a key and a value: `mix(key ^ mix(value + GOLDEN))`, broadcast, as int64.

    Ints of any size and sign are taken modulo 2^64.
    """
    with np.errstate(over="ignore"):
        return mix(_unsigned(key) ^ mix(_unsigned(value) + GOLDEN)).astype(np.int64)


def row_keys(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """The key of each row in this epoch, int64 (B,)."""
    return fold(fold(fold(word("row"), seed), epoch), rows)


def shuffle(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` rows in this epoch: a permutation, int64 (n,)."""
    key = fold(fold(word("shuffle"), seed), epoch)
    return np.argsort(fold(key, np.arange(n)), kind="stable").astype(np.int64)


def _unsigned(x: np.ndarray | int) -> np.ndarray:
    if isinstance(x, (int, np.integer)):
        return np.asarray(np.uint64(int(x) & _WORD))
    return np.asarray(x).astype(np.uint64)  # two's complement: -1 becomes 2^64 - 1
