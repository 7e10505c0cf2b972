"""Isotropy on states whose cosines are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from notan.inspectors.isotropy import measure


class Given:
    """A model whose states are the batch's own, padded with large ones."""

    def states(self, batch):
        n = torch.tensor([len(h) for h in batch["states"]])
        T = int(n.max())
        h = torch.stack([F.pad(h, (0, 0, 0, T - len(h)), value=1e3) for h in batch["states"]])
        return [h, h], torch.arange(T) < n[:, None]


def isotropy(*states):
    return measure(Given(), [{"states": list(states)}])["isotropy"]


def test_golden_values():
    same, apart = torch.ones(5, 4), torch.eye(4)
    assert isotropy(same) == pytest.approx(0, abs=1e-12) and isotropy(apart) == pytest.approx(1)
    assert isotropy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2)
    assert isotropy(same, apart) == pytest.approx(1 - 20 / 32)          # by pairs, not the mean of both texts
    assert isotropy(same, torch.randn(1, 4)) == pytest.approx(0, abs=1e-12)                 # one token has no pairs


def test_it_is_the_formula_whatever_order_and_scale():
    texts = [torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (2, 5, 9)]
    total = sum(F.cosine_similarity(h[:, None], h[None], dim=2).fill_diagonal_(0).sum() for h in texts)
    wanted = 1 - float(total) / (2 + 20 + 72)
    assert isotropy(*texts) == pytest.approx(wanted, abs=1e-12)
    assert isotropy(*(7 * h.flip(0) for h in texts[::-1])) == pytest.approx(wanted, abs=1e-12)
