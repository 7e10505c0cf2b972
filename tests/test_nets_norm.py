"""Global batch norm: torch's own on one rank, and two uneven ranks equal to one, to float64 precision."""

import pytest
import torch
from ranks import spawn
from torch import nn

from notan import world
from notan.errors import NotanError
from notan.nets.heads import conv_mlp, mlp
from notan.nets.norm import GlobalBatchNorm1d, GlobalBatchNorm2d, globalise, has_batch_statistics

ROWS = 7


def _inputs(dims):
    shape = (ROWS, 3) if dims == 1 else (ROWS, 3, 4, 5)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(dims), dtype=torch.float64) * 2 + 1


def _norm(dims, ours=True, **options):
    kind = {(1, True): GlobalBatchNorm1d, (2, True): GlobalBatchNorm2d, (1, False): nn.BatchNorm1d,
            (2, False): nn.BatchNorm2d}[dims, ours]
    norm = kind(3, **options).double()
    with torch.no_grad():
        if norm.affine:
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, -0.3]))
    return norm


def _step(norm, x, start):
    """Two training passes with a loss that mixes rows across ranks, then one in eval mode."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = norm(x)
    weight = torch.arange(1.0, ROWS + 1, dtype=torch.float64)[start:start + x.shape[0]].view(-1, *[1] * (x.dim() - 1))
    loss = world.total((y.sin() * weight).sum()) + world.total(y.square().sum()).log()
    loss.backward()
    with torch.no_grad():
        out = norm.eval()(x)
    grads = [p.grad for p in norm.parameters()]
    return {"loss": loss.detach(), "y": y.detach(), "x.grad": x.grad, "grads": grads, "eval": out,
            "buffers": list(norm.buffers())}


def _on_rank(rank, size, dims, splits, options):
    start = sum(splits[:rank])
    out = _step(_norm(dims, **options), _inputs(dims)[start:start + splits[rank]], start)
    out["grads"] = [world.gather_plain(g[None]).mean(0) for g in out["grads"]]      # what DDP does
    return out


def _both_ways(rank, size, cases):
    return [_on_rank(rank, size, *case) for case in cases]


CASES = [(1, [5, 2], {}), (2, [5, 2], {}), (2, [6, 1], {"momentum": None}), (1, [4, 3], {"affine": False}),
         (2, [4, 3], {"track_running_stats": False})]


def test_two_uneven_ranks_equal_torchs_batch_norm_on_one():
    outs = spawn(_both_ways, 2, CASES)
    for i, (dims, _, options) in enumerate(CASES):
        one = _step(_norm(dims, ours=False, **options), _inputs(dims), 0)
        two = [out[i] for out in outs]
        for rank in range(2):
            for name in ("loss", "grads", "buffers"):
                torch.testing.assert_close(two[rank][name], one[name], rtol=1e-10, atol=1e-10)
        for name in ("y", "eval"):
            torch.testing.assert_close(torch.cat([t[name] for t in two]), one[name], rtol=1e-10, atol=1e-10)
        both = torch.cat([t["x.grad"] for t in two]) / 2                # a rank's gradient is `size` times its share
        torch.testing.assert_close(both, one["x.grad"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dims, splits, options", CASES)
def test_one_rank_is_torchs_batch_norm(dims, splits, options):
    ours, theirs = _norm(dims, **options), _norm(dims, ours=False, **options)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    a, b = _step(ours, _inputs(dims), 0), _step(theirs, _inputs(dims), 0)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def test_one_value_per_channel_is_refused():
    with pytest.raises(NotanError, match="one value"):
        GlobalBatchNorm1d(3)(torch.zeros(1, 3))
    assert GlobalBatchNorm1d(3).eval()(torch.zeros(1, 3)).shape == (1, 3)


def test_foreign_batch_norms_become_global_and_keep_their_weights():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4)), nn.LayerNorm(4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert globalise(net) is net
    assert isinstance(net[1], GlobalBatchNorm2d) and isinstance(net[2][0], GlobalBatchNorm1d)
    torch.testing.assert_close(dict(net.state_dict()), before)
    assert has_batch_statistics(net) and not has_batch_statistics(nn.LayerNorm(4))


def test_heads_have_the_shape_and_norm_asked_for():
    x = torch.rand(5, 8)
    for norm in ("batch", "layer", "none"):
        head = mlp(8, 16, 16, 4, norm=norm)
        assert head(x).shape == (5, 4) and sum(isinstance(m, nn.Linear) for m in head) == 3
        assert isinstance(head[-1], nn.Linear) and has_batch_statistics(head) == (norm == "batch")
    assert len(mlp(8, 4)) == 1
    maps = conv_mlp(8, 16, 4)
    assert maps(torch.rand(2, 8, 3, 5)).shape == (2, 4, 3, 5)
    with pytest.raises(NotanError, match="instance"):
        mlp(8, 16, 4, norm="instance")


def test_a_conv_mlp_is_the_same_mlp_at_each_place():
    head = conv_mlp(6, 8, 4).double().eval()
    flat = mlp(6, 8, 4).double().eval()
    flat.load_state_dict({k: v.flatten(1) if v.dim() == 4 else v for k, v in head.state_dict().items()})
    x = torch.rand(2, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(head(x).permute(0, 2, 3, 1), flat(x.permute(0, 2, 3, 1).flatten(0, 2)).view(2, 3, 5, 4))
