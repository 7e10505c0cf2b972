"""Numbers from keys: the data layer's very bits, uniform, independent, and the same however a batch is split."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.data import keys
from notan.errors import NotanError
from notan.views import random

# computed with Python's integers from the definition
FOLDED = [8409816773569330625, 370462283941081367, 7613755759174143445, 956941777690504044, 8456223730658713157]
BITS = [5292204038915088932, -6265683660358309830, -5860178704565060819, -1332422242457170462, -8635749111283450212]
UNIFORM = [0.5113384127616882, 0.7642659544944763, 0.45613425970077515, 0.22146987915039062, 0.16744625568389893]

int64 = st.integers(-(2**63), 2**63 - 1)


def some_keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(keys.row_keys(seed, 0, np.arange(n)))


def test_a_stream_is_splitmix64():
    """The published first outputs of splitmix64 seeded with 0, through wrap-around of int64."""
    counter = torch.arange(1, 4) * random.GOLDEN
    seen = [x % 2**64 for x in random._mix_(counter).tolist()]
    assert seen == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_known_answers():
    """These values are part of what a checkpoint means: they may never change."""
    key = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    assert random.fold(key, 7).tolist() == FOLDED
    assert random.bits(key, "crop", 2)[:, 1].tolist() == BITS
    assert random.uniform(key, "crop", 1)[:, 0].tolist() == UNIFORM


@settings(max_examples=100, deadline=None)
@given(st.lists(int64, min_size=1, max_size=8), int64)
def test_fold_gives_the_bits_of_the_data_layer(key, value):
    expected = keys.fold(np.array(key, dtype=np.int64), value)
    assert random.fold(torch.tensor(key), value).tolist() == expected.tolist()
    assert random.fold(torch.tensor(key), torch.full((len(key),), value)).tolist() == expected.tolist()


def test_bits_give_the_bits_of_the_data_layer():
    key = keys.row_keys(3, 5, np.arange(100))
    stream = keys.fold(key, keys.word("jitter")).astype(np.uint64)
    counter = np.arange(1, 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = keys.mix(stream[:, None] + counter).astype(np.int64)
    assert np.array_equal(random.bits(torch.from_numpy(key), "jitter", 7).numpy(), expected)


@pytest.mark.parametrize("draw", [
    lambda key: random.bits(key, "a", 5),
    lambda key: random.uniform(key, "a", 5, -1, 3),
    lambda key: random.normal(key, "a", 5),
    lambda key: random.integers(key, "a", 5, 9),
    lambda key: random.permutation(key, "a", 5),
    lambda key: random.bernoulli(key, "a", 0.3),
])
def test_rows_do_not_depend_on_the_batch(draw):
    key = some_keys(33)
    whole, before = draw(key), torch.get_rng_state()
    assert torch.equal(whole, torch.cat([draw(part) for part in key.split([1, 13, 0, 19])]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", [random.bits, random.uniform, random.normal])
def test_more_numbers_begin_with_the_same(draw):
    key = some_keys(9)
    assert torch.equal(draw(key, "a", 12)[:, :5], draw(key, "a", 5))


def test_uniforms_are_uniform():
    u = random.uniform(some_keys(2**12), "a", 256).flatten()
    counts = torch.histc(u, 256, 0, 1)
    expected = u.numel() / 256
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1


@pytest.mark.parametrize("low, high", [(0.08, 1.0), (-0.1, 0.1), (1000.0, 1000.001), (0.5, 0.5)])
def test_uniforms_keep_their_bounds(low, high):
    u = random.uniform(some_keys(2000), "a", 50, low, high)
    lowest, highest = torch.tensor(low), torch.tensor(high)
    assert (u >= lowest).all() and ((u < highest).all() or low == high)


def test_rows_purposes_and_counters_are_independent():
    key = some_keys(2**14)
    draws = torch.cat([random.uniform(key, purpose, 4) for purpose in ("a", "b", "crop", "Crop")], dim=1)
    views = [random.uniform(random.fold(key, view), "a", 2) for view in (1, 2)]
    draws = torch.cat([draws, *views], dim=1)
    draws = torch.cat([draws, draws.roll(1, 0)], dim=1)  # the row before
    correlation = torch.corrcoef(draws.double().T) - torch.eye(draws.shape[1])
    assert correlation.abs().max() < 5 / math.sqrt(len(key))


def test_one_bit_of_the_key_changes_half_of_the_bits():
    key = some_keys(256)
    bit = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    changed = random.bits((key[:, None] ^ bit).flatten(), "a", 1) ^ random.bits(key.repeat_interleave(64), "a", 1)
    flips = ((changed >> torch.arange(64)) & 1).double().view(256, 64, 64).mean(0)  # (key bit, result bit)
    assert abs(float(flips.mean()) - 0.5) < 0.003
    assert (flips - 0.5).abs().max() < 5.5 * 0.5 / math.sqrt(256)


def test_normals_are_normal():
    x = random.normal(some_keys(4000), "a", 50).double().flatten().sort().values
    n = x.numel()
    assert abs(float(x.mean())) < 5 / math.sqrt(n) and abs(float(x.var()) - 1) < 5 * math.sqrt(2 / n)
    distance = (torch.special.ndtr(x) - (torch.arange(n) + 0.5) / n).abs().max()  # Kolmogorov and Smirnov
    assert distance < 2.0 / math.sqrt(n)
    assert x.isfinite().all()


def test_integers_permutations_and_coins():
    key = some_keys(20000)
    counts = random.integers(key, "a", 3, 6).flatten().bincount(minlength=6)
    assert len(counts) == 6 and (counts - 10000).abs().max() < 5 * math.sqrt(10000)
    order = random.permutation(key, "a", 4)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(20000, 4))
    places = torch.stack([(order == i).sum(0) for i in range(4)])
    assert (places - 5000).abs().max() < 5 * math.sqrt(5000)
    assert abs(float(random.bernoulli(key, "a", 0.3).float().mean()) - 0.3) < 5 * math.sqrt(0.21 / 20000)
    assert random.bernoulli(key, "a", 1.0).all() and not random.bernoulli(key, "a", 0.0).any()


def test_bad_input_is_named():
    with pytest.raises(NotanError, match="float32"):
        random.fold(torch.zeros(3), 1)
    with pytest.raises(NotanError, match="integers below 0"):
        random.integers(some_keys(2), "a", 1, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter():
    key = some_keys(1000)
    for draw in (random.bits, random.uniform, random.permutation):
        assert torch.equal(draw(key, "a", 9), draw(key.cuda(), "a", 9).cpu())
    assert torch.equal(random.uniform(key, "a", 9, 0.08, 1), random.uniform(key.cuda(), "a", 9, 0.08, 1).cpu())
    torch.testing.assert_close(random.normal(key, "a", 9), random.normal(key.cuda(), "a", 9).cpu(), rtol=0, atol=1e-6)
