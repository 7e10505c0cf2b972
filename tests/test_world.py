"""Ranks: what is summed, averaged and gathered on two processes equals one process, values and gradients."""

import pytest
import torch
from ranks import spawn

from notan import world


def _batch():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=g, dtype=torch.float64)
    w = torch.randn(3, 2, generator=g, dtype=torch.float64)
    return x, w


def _loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """A cross-row term on gathered rows plus a per-row average: the two forms a method may use."""
    z = x @ w
    rows = world.gather(z)
    contrast = (rows @ rows.T).logsumexp(1).mean()
    per_row = world.mean(z.square().sum(), z.shape[0])
    return contrast + per_row + world.total(z.sum()).tanh()


def _rank_gradient(rank: int, size: int, splits: list[int]) -> dict:
    x, w = _batch()
    start = sum(splits[:rank])
    w.requires_grad_()
    loss = _loss(x[start : start + splits[rank]], w)
    loss.backward()
    mean = world.gather_plain(w.grad[None]).mean(0)                     # what DDP does to gradients
    return {"loss": loss.detach(), "grad": mean, "offset": world.offset(splits[rank]), "start": start,
            "rows": world.gather_plain(torch.full((splits[rank],), rank))}


def test_uneven_ranks_equal_one_process():
    x, w = _batch()
    w.requires_grad_()
    loss = _loss(x, w)
    loss.backward()
    for splits in ([5, 2], [3, 4]):
        for out in spawn(_rank_gradient, 2, splits):
            torch.testing.assert_close(out["loss"], loss.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(out["grad"], w.grad, rtol=1e-12, atol=1e-12)
            assert out["offset"] == out["start"]
            assert out["rows"].tolist() == [0] * splits[0] + [1] * splits[1]


def test_one_process_is_the_identity():
    x, _ = _batch()
    assert world.gather(x) is x and world.total(x) is x and world.offset(7) == 0
    assert world.size() == 1 and world.rank() == 0 and world.is_main()


def test_the_mean_of_nothing_is_zero_with_a_zero_gradient():
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(3, dtype=dtype, requires_grad=True)
        m = world.mean((x * 0).sum(), 0)
        (8 * m).backward()                                              # the weight of a loss, or the sum of 8 ranks
        assert m.item() == 0 and torch.equal(x.grad, torch.zeros(3, dtype=dtype))


def test_counts_are_exact_in_half_precision():
    assert world.mean(torch.tensor(1023.0, dtype=torch.bfloat16), 1023).item() == pytest.approx(1024 / 1023)
