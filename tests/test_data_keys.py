"""Keys: one hash, stable for ever, that depends on nothing but (seed, epoch, row)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.data import keys

INTS = st.integers(-(2**63), 2**63 - 1)


def splitmix(x: int) -> int:
    """The published finaliser in Python's own integers."""
    m = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & m
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & m
    return x ^ (x >> 31)


def test_mix_is_the_published_finaliser():
    # splitmix64 seeded with 0: its first outputs are mix(golden), mix(2 golden), ...
    state = (np.arange(1, 4, dtype=np.uint64)) * keys.GOLDEN
    assert keys.mix(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(INTS, INTS)
def test_fold_equals_python_integers(key, value):
    m = (1 << 64) - 1
    wanted = splitmix((key & m) ^ splitmix(((value & m) + 0x9E3779B97F4A7C15) & m))
    assert int(keys.fold(key, value)) & m == wanted
    assert int(keys.fold(np.array([key]), value)[0]) & m == wanted
    assert int(keys.fold(key, np.array([value]))[0]) & m == wanted


def test_golden_values():
    """These must never change: every committed number depends on them."""
    assert keys.word("crop") == -1792330252851675775
    first = [-1046016354080807702, 9077587342740141865, -5684935855655761771]
    assert keys.row_keys(0, 0, np.arange(3)).tolist() == first
    assert keys.shuffle(0, 0, 8).tolist() == [1, 4, 3, 7, 5, 6, 0, 2]


@settings(max_examples=50)
@given(st.integers(0, 2**40), st.integers(0, 1000), st.lists(st.integers(0, 99), min_size=0, max_size=5))
def test_keys_do_not_depend_on_the_split(seed, epoch, cuts):
    rows = np.arange(100)
    whole = keys.row_keys(seed, epoch, rows)
    parts = [keys.row_keys(seed, epoch, part) for part in np.split(rows, sorted(cuts))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.int64 and len(set(whole.tolist())) == 100


@given(st.integers(0, 2**62), st.integers(0, 100), st.integers(0, 300))
def test_shuffle_is_a_permutation(seed, epoch, n):
    order = keys.shuffle(seed, epoch, n)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(n))


def test_orders_differ_between_epochs_and_seeds_and_are_even():
    a, b, c = keys.shuffle(0, 0, 1000), keys.shuffle(0, 1, 1000), keys.shuffle(1, 0, 1000)
    assert (a == b).sum() < 10 and (a == c).sum() < 10
    place = np.mean([keys.shuffle(seed, 0, 50)[0] for seed in range(2000)])  # uniform on 0..49: 24.5 +- 0.32
    assert abs(place - 24.5) < 1.3


def test_bits_are_fair():
    """Every one of the 64 bits of neighbouring rows' keys is a fair coin, and flips with one step of seed or row."""
    key = keys.row_keys(3, 1, np.arange(20000)).view(np.uint64)
    ones = ((key[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
    assert np.abs(ones - 0.5).max() < 0.018  # 5 standard deviations
    flips = key ^ keys.row_keys(4, 1, np.arange(20000)).view(np.uint64)
    assert np.abs(((flips[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0) - 0.5).max() < 0.018
