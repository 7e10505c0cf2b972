"""Attention pooling: sizes free of heads, order, dropout, and the two places of the norm."""

import pytest
import torch
from torch import nn

from notan.errors import NotanError
from notan.nets.attention_pool import AttentionPool, TransformerLayer


def _tokens(B=2, n=5, dim=12):
    return torch.randn(B, n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("heads", [1, 3, 5, 16])
def test_any_number_of_heads_and_any_feedforward_width(norm, heads):
    pool = AttentionPool(12, 2, heads, 7, norm=norm).double().eval()
    assert pool(_tokens()).shape == (2, 6, 12)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_summary_does_not_know_the_order_but_the_tokens_move_with_it(norm):
    pool, x = AttentionPool(12, 2, 3, 8, norm=norm).double().eval(), _tokens()
    order = torch.tensor([3, 1, 4, 0, 2])
    a, b = pool(x), pool(x[:, order])
    torch.testing.assert_close(b[:, 0], a[:, 0])
    torch.testing.assert_close(b[:, 1:], a[:, 1:][:, order])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_layer_is_torchs_encoder_layer(norm):
    ours = TransformerLayer(12, 3, 20, norm=norm).double().eval()
    theirs = nn.TransformerEncoderLayer(12, 3, 20, activation="gelu", batch_first=True, norm_first=norm == "pre",
                                        layer_norm_eps=1e-6, dtype=torch.float64).eval()
    names = {"qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias", "fc1": "linear1",
             "fc2": "linear2", "proj": "self_attn.out_proj"}
    with torch.no_grad():
        for name, p in ours.named_parameters():
            part = name.rpartition(".")
            target = names.get(name) or f"{names.get(part[0], part[0])}.{part[2]}"
            theirs.get_parameter(target).copy_(p)
    torch.testing.assert_close(ours(_tokens()), theirs(_tokens()))


def test_dropout_acts_in_training_only_and_everything_learns():
    pool, x = AttentionPool(12, 2, 3, 8, dropout=0.5).double(), _tokens()
    assert (pool(x) - pool(x)).abs().max() > 0
    pool.eval()
    assert torch.equal(pool(x), pool(x))
    pool(x)[:, 0].sin().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in pool.parameters())
    with pytest.raises(NotanError, match="sandwich"):
        AttentionPool(12, 1, 3, 8, norm="sandwich")
