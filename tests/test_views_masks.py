"""Masks: exact counts in every row, uniform where they say so, and the hardest always hidden."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.views import masks
from notan.views.random import fold

KEY = fold(torch.arange(64), 2)
MANY = fold(torch.arange(20000), 2)


@pytest.mark.parametrize("ratio, hidden", [(0.75, 147), (0.6, 118), (0.5, 98), (0.7, 138)])
def test_counts_of_the_paper(ratio, hidden):
    assert masks.hidden_count(196, ratio) == hidden
    for mask in (
        masks.random_mask(KEY, 196, ratio),
        masks.block_mask(KEY, (14, 14), ratio),
        masks.guided_mask(KEY, torch.rand(64, 196), ratio, 0.5),
    ):
        assert mask.dtype == torch.bool and mask.shape == (64, 196) and (mask.sum(1) == hidden).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 0.99), st.floats(0, 1))
def test_counts_are_exact_everywhere(h, w, ratio, hard):
    tokens = h * w
    if int(tokens * (1 - ratio)) < 1:
        with pytest.raises(NotanError, match="leaves at least one"):
            masks.random_mask(KEY, tokens, ratio)
        return
    hidden = tokens - int(tokens * (1 - ratio))
    assert (masks.random_mask(KEY, tokens, ratio).sum(1) == hidden).all()
    assert (masks.block_mask(KEY, (h, w), ratio).sum(1) == hidden).all()
    assert (masks.tube_mask(KEY, 3, (h, w), ratio).view(64, 3, -1).sum(2) == hidden).all()
    assert (masks.guided_mask(KEY, torch.rand(64, tokens), ratio, hard).sum(1) == hidden).all()


def test_random_masks_are_uniform_and_independent():
    mask = masks.random_mask(MANY, 16, 0.75).double()
    assert (mask.mean(0) - 0.75).abs().max() < 5 * (0.1875 / 20000) ** 0.5
    correlation = torch.corrcoef(mask.T)[~torch.eye(16, dtype=torch.bool)]
    assert (correlation + 1 / 15).abs().max() < 5 / 20000**0.5  # -1 / (N - 1): only the count ties tokens together


def test_the_hardest_are_always_hidden():
    scores = torch.rand(64, 196, generator=torch.Generator().manual_seed(0))
    for epoch, n_hard in ((0, 0), (2, 1), (50, 18), (100, 37), (199, 73)):
        hard = 0.5 * (epoch + 1) / 200
        mask = masks.guided_mask(KEY, scores, 0.75, hard)
        assert int(147 * hard) == n_hard
        hidden_scores = scores.argsort(1, descending=True)[:, :n_hard]
        assert mask.gather(1, hidden_scores).all()


def test_guided_by_nothing_is_random():
    assert torch.equal(masks.guided_mask(KEY, torch.rand(64, 40), 0.6, 0.0), masks.random_mask(KEY, 40, 0.6))


def test_the_rest_of_a_guided_mask_is_uniform():
    scores = torch.arange(20.0).expand(20000, 20)
    mask = masks.guided_mask(MANY, scores, 0.5, 0.5).double()  # 10 hidden: tokens 15 to 19, and 5 of the other 15
    assert (mask[:, 15:] == 1).all()
    assert (mask[:, :15].mean(0) - 1 / 3).abs().max() < 5 * (2 / 9 / 20000) ** 0.5


def test_equal_scores_rank_in_raster_order():
    mask = masks.guided_mask(KEY, torch.zeros(64, 12), 0.5, 1.0)
    assert torch.equal(mask, (torch.arange(12) < 6).expand(64, 12))


def test_blocks_are_those_of_the_paper():
    """Beside 3000 masks of the paper's sequential algorithm (14 x 14, 40 %, at least 16): 38.5 borders between hidden
    and visible neighbours (176 of random masks); a corner hidden in 4 %, mid-edge in 20 %, the centre in 74 %."""
    block = masks.block_mask(MANY[:4000], (14, 14), 0.4).view(-1, 14, 14)
    borders = ((block[:, 1:] != block[:, :-1]).sum() + (block[:, :, 1:] != block[:, :, :-1]).sum()) / len(block)
    share = block.double().mean(0)
    assert abs(float(borders) - 38.5) < 2
    assert abs(share[0, 0] - 0.04) < 0.03 and abs(share[0, 7] - 0.20) < 0.03 and abs(share[7, 7] - 0.74) < 0.04
    assert (share - share.flip(0, 1)).abs().max() < 0.06  # no corner is preferred
    assert len(block.unique(dim=0)) > 3900  # large first rectangles coincide now and then


def test_tubes_are_the_same_in_every_frame():
    mask = masks.tube_mask(KEY, 4, (4, 8), 0.75).view(64, 4, 32)
    assert torch.equal(mask, mask[:, :1].expand(-1, 4, -1)) and (mask[:, 0].sum(1) == 24).all()


def test_indices_are_in_raster_order_and_complete():
    mask = masks.random_mask(KEY, 30, 0.6)
    keep, hidden = masks.keep_indices(mask), masks.hidden_indices(mask)
    assert keep.shape == (64, 12) and hidden.shape == (64, 18)
    assert (keep.diff(dim=1) > 0).all() and (hidden.diff(dim=1) > 0).all()
    assert not mask.gather(1, keep).any() and mask.gather(1, hidden).all()
    assert masks.hidden_indices(torch.zeros(2, 5, dtype=torch.bool)).shape == (2, 0)


@pytest.mark.parametrize("make", [
    lambda key: masks.random_mask(key, 49, 0.6),
    lambda key: masks.block_mask(key, (7, 7), 0.5),
    lambda key: masks.tube_mask(key, 2, (7, 7), 0.5),
])
def test_rows_do_not_depend_on_the_batch(make):
    assert torch.equal(make(KEY), torch.cat([make(part) for part in KEY.split([1, 20, 43])]))


def test_bad_input_is_named():
    with pytest.raises(NotanError, match="mask ratio 1"):
        masks.random_mask(KEY, 16, 1.0)
    with pytest.raises(NotanError, match="hard share"):
        masks.guided_mask(KEY, torch.rand(64, 16), 0.5, 1.5)
    with pytest.raises(NotanError, match="the same number in every row"):
        masks.keep_indices(torch.tensor([[True, False], [True, True]]))
