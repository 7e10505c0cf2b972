"""Decoders: the order of tokens, which output belongs to which hidden patch, and two decoders on one input."""

import pytest
import torch

from notan.nets.decoder import MaskedDecoder, MaskTokens, TokenDecoder

GRID, N, DE, D = (3, 4), 12, 10, 8


def _inputs(B=2, hidden=9, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(B, N, generator=g).argsort(1) < hidden
    return torch.randn(B, 1 + N - hidden, DE, generator=g, dtype=dtype), mask


def _decoder(out=5):
    torch.manual_seed(0)
    return MaskedDecoder(DE, GRID, D, 2, 2, out).double()


def test_input_order_is_class_visible_hidden_each_with_its_own_position():
    z, mask = _inputs()
    tokens = MaskTokens(DE, GRID, D).double()
    x, positions = tokens(z, mask), tokens.decoder_pos_embed[0]
    embedded = tokens.decoder_embed(z)
    for b in range(2):
        visible = (~mask[b]).nonzero().squeeze(1)
        hidden = mask[b].nonzero().squeeze(1)
        torch.testing.assert_close(x[b, 0], embedded[b, 0])             # the class token's position is zero
        torch.testing.assert_close(x[b, 1:4], embedded[b, 1:] + positions[1 + visible])
        torch.testing.assert_close(x[b, 4:], tokens.mask_token[0] + positions[1 + hidden])


def test_without_a_mask_all_tokens_stay_in_raster_order():
    tokens = MaskTokens(DE, GRID, D).double()
    z = torch.randn(2, 1 + N, DE, dtype=torch.float64)
    x = tokens(z)
    torch.testing.assert_close(x, tokens.decoder_embed(z) + tokens.decoder_pos_embed)
    nothing = torch.zeros(2, N, dtype=torch.bool)
    torch.testing.assert_close(tokens(z, nothing), x)


def test_predictions_are_those_of_mae_with_tokens_put_back_in_place():
    z, mask = _inputs()
    decoder = _decoder()
    out = decoder(z, mask)
    assert out.shape == (2, 9, 5)
    tokens = decoder.tokens
    x = tokens.decoder_embed(z)
    full = tokens.mask_token.expand(2, N, D).clone()
    full[~mask] = x[:, 1:].flatten(0, 1)
    raster = torch.cat([x[:, :1], full], 1) + tokens.decoder_pos_embed
    torch.testing.assert_close(out, decoder.decoder(raster)[:, 1:][mask].view(2, 9, 5))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_last_predictions_are_the_last_of_all(depth):
    decoder = TokenDecoder(D, depth, 2, 3).double()
    x = torch.randn(2, 7, D, dtype=torch.float64)
    y = x
    for block in decoder.decoder_blocks:
        y = block(y)
    y = decoder.decoder_pred(decoder.decoder_norm(y))                   # (2, 7, 3)
    torch.testing.assert_close(decoder(x), y)
    torch.testing.assert_close(decoder(x, last=4), y[:, -4:])
    assert decoder(x, last=0).shape == (2, 0, 3)


def test_two_decoders_share_one_input_and_not_their_gradients():
    z, mask = _inputs()
    tokens = MaskTokens(DE, GRID, D).double()
    g, q = TokenDecoder(D, 1, 2, 3).double(), TokenDecoder(D, 1, 2, 3).double()
    x = tokens(z.requires_grad_(), mask)
    q(x).square().sum().backward()
    assert all(p.grad is None for p in g.parameters()) and z.grad.abs().max() > 0
    assert tokens.mask_token.grad.abs().max() > 0 and tokens.decoder_embed.weight.grad.abs().max() > 0


@pytest.mark.parametrize("hidden", [0, 1, 11])
def test_any_share_may_be_hidden(hidden):
    z, mask = _inputs(hidden=hidden)
    assert _decoder()(z, mask).shape == (2, hidden, 5)


def test_bf16_autocast_runs():
    z, mask = _inputs(dtype=torch.float32)
    decoder = _decoder().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(z, mask)
    torch.testing.assert_close(out.float(), decoder(z, mask), rtol=0.1, atol=0.1)
