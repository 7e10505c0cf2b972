"""The attentional pooler, the vector behind each text, and the decoder that reads pictures: by their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from notan.errors import NotanError
from notan.methods._example import texts, tiny_text_encoder
from notan.nets.captioner import CrossBlock, CrossDecoder, Reading, likeliest
from notan.nets.insert import inserted, taken_out
from notan.nets.pooler import CrossAttention, Pooler
from notan.nets.text import GROUP, groups
from notan.nets.vit import attention
from notan.runs.micro import parts_of

SAID = texts(6)["text"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(a, b, digits=9):
    torch.testing.assert_close(a, b, rtol=10.0**-digits, atol=10.0**-digits)


def shaken(module: nn.Module) -> nn.Module:
    """With biases and gains that are not at their beginnings, in float64."""
    torch.manual_seed(1)
    for p in module.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, mean=float(p.detach().mean()), std=0.3)
    return module.double().eval()


# ---- the pooler -----------------------------------------------------------------------------------------------------------

def test_a_pooler_is_one_attention_between_norms():
    """torch's own multi-head attention, with keys and values of another width than the queries."""
    torch.manual_seed(0)
    pool, x = shaken(Pooler(5, 12, 3, 8)), randn(4, 7, 8)
    theirs = nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True).double()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(pool.attn.q.weight)
        theirs.k_proj_weight.copy_(pool.attn.kv.weight[:12])
        theirs.v_proj_weight.copy_(pool.attn.kv.weight[12:])
        theirs.in_proj_bias.copy_(torch.cat([pool.attn.q.bias, pool.attn.kv.bias]))
        theirs.out_proj.weight.copy_(pool.attn.proj.weight)
        theirs.out_proj.bias.copy_(pool.attn.proj.bias)
    context = pool.norm_kv(x)
    q = pool.norm_q(pool.query_tokens).expand(4, -1, -1)
    same(pool(x), pool.norm(theirs(q, context, context)[0]))


@pytest.mark.parametrize("n", [1, 256])
def test_as_many_rows_as_queries_whatever_is_read_and_in_whatever_order(n):
    pool = shaken(Pooler(n, 8, 2, 6))
    for m in (1, 5, 33):
        x = randn(3, m, 6, seed=m)
        z = pool(x)
        assert z.shape == (3, n, 8)
        same(pool(x[:, torch.randperm(m, generator=torch.Generator().manual_seed(0))]), z)
    assert (z - pool(randn(3, 33, 6, seed=2))).abs().max() > 0.01


def test_odd_poolers_are_refused():
    with pytest.raises(NotanError, match="0 queries"):
        Pooler(0, 8, 2, 6)
    with pytest.raises(NotanError, match="width of 8 with 3 heads"):
        CrossAttention(8, 3, 6)


# ---- the vector behind each text -------------------------------------------------------------------------------------------

def test_what_was_put_in_is_taken_out():
    x, v, at = randn(4, 5, 3), randn(4, 1, 3, seed=1), torch.tensor([0, 2, 4, 5])
    rest, taken = taken_out(inserted(x, v, at), at)
    assert torch.equal(rest, x) and torch.equal(taken, v[:, 0])


def naive(encoder, ids: torch.Tensor, pad: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The vector at the end of all, behind the padding, with a mask that keeps it from seeing that: (B, T + 1, D)."""
    T = ids.shape[1]
    x = torch.cat([encoder.token_embedding(ids) + encoder.pos_embed[:T], last.expand(len(ids), -1, -1)], dim=1)
    seen = torch.ones(T + 1, T + 1, dtype=torch.bool).tril().repeat(len(ids), 1, 1)
    seen[:, T, :T] = ~pad
    assert seen[0, T].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 7]       # of y = [1, 2, 3, 4, PAD, PAD, PAD]
    for block in encoder.blocks:
        h = block.attn.heads
        q, k, v = block.attn.qkv(block.norm1(x)).view(*x.shape[:2], 3, h, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen[:, None], -torch.inf)
        x = x + block.attn.proj((scores.softmax(3) @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return x


def test_right_behind_a_text_it_is_what_it_is_at_the_end_of_all_with_a_mask():
    encoder, last = shaken(tiny_text_encoder()), randn(1, 1, 32)
    ids = torch.tensor([[1, 2, 3, 4, 9, 9, 9], [5, 6, 7, 8, 9, 10, 11], [1, 2, 2, 2, 2, 2, 2]])
    pad = torch.arange(7) >= torch.tensor([4, 7, 2])[:, None]
    ours, end = taken_out(encoder.states(ids, pad, last), (~pad).sum(1))
    theirs = naive(encoder, ids, pad, last)
    same(end, theirs[:, 7])
    same(ours[~pad], theirs[:, :7][~pad])
    same(ours[~pad], encoder.states(ids, pad)[~pad])                    # words do not see it
    same(encoder.norm(encoder.states(ids, pad)), encoder(ids, pad))


def test_it_sees_the_text_and_itself_and_no_padding():
    encoder = shaken(tiny_text_encoder())
    ids, pad = torch.tensor([[1, 2, 3, 4, 9, 9, 9]]), torch.arange(7)[None] >= 4
    embedded: list[torch.Tensor] = []

    def keep(module, inputs, out):
        embedded.append(out.detach().requires_grad_())
        return embedded[0]

    handle, last = encoder.token_embedding.register_forward_hook(keep), randn(1, 1, 32).requires_grad_()
    _, end = taken_out(encoder.states(ids, pad, last), (~pad).sum(1))
    handle.remove()
    of_words, of_itself = torch.autograd.grad(end.square().sum(), (embedded[0], last))
    assert (of_words[0].abs().amax(1) > 0).tolist() == [True] * 4 + [False] * 3 and of_itself.abs().max() > 0
    noisy = torch.where(pad, 7, ids)
    same(taken_out(encoder.states(noisy, pad, last), (~pad).sum(1))[1], end)


def test_rows_of_like_length_stand_together_and_all_are_there():
    lengths = torch.randint(2, 30, (2 * GROUP + 5,), generator=torch.Generator().manual_seed(0))
    pad = torch.arange(30) >= lengths[:, None]
    found = list(groups(pad))
    assert [len(rows) for rows, _ in found] == [GROUP, GROUP, 5]
    assert torch.cat([rows for rows, _ in found]).sort().values.tolist() == list(range(2 * GROUP + 5))
    assert [longest for _, longest in found] == [int(lengths[rows].max()) for rows, _ in found] and found[0][1] < found[2][1]


def test_parts_of_a_batch_are_what_all_at_once_is():
    encoder, last = shaken(tiny_text_encoder()), randn(1, 1, 32)
    ids, pad = encoder.tokens(SAID)
    same(parts_of(encoder.states, 4)(ids, pad, last), encoder.states(ids, pad, last))
    same(parts_of(encoder.states, 4)(ids, pad, last=last), encoder.states(ids, pad, last))


# ---- the decoder -----------------------------------------------------------------------------------------------------------

def decoder(vocabulary: int = 280, depth: int = 2) -> CrossDecoder:
    torch.manual_seed(0)
    return shaken(CrossDecoder(32, depth, 2, 24, vocabulary))


def test_a_block_is_self_then_cross_then_mlp():
    torch.manual_seed(0)
    block, x, g = shaken(CrossBlock(32, 2, 24)), randn(3, 5, 32), randn(3, 4, 24, seed=1)
    q, k, v = block.attn.qkv(block.norm1(x)).view(3, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)
    y = x + block.attn.proj(attention(q, k, v, causal=True).transpose(1, 2).flatten(2))
    k, v = block.cross.kv(g).view(3, 4, 2, 2, 16).permute(2, 0, 3, 1, 4)
    q = block.cross.q(block.norm2(y)).view(3, 5, 2, 16).transpose(1, 2)
    y = y + block.cross.proj(((q @ k.mT / 4).softmax(3) @ v).transpose(1, 2).flatten(2))
    same(block(x, g), y + block.mlp(block.norm3(y)))


def test_words_see_those_before_them_and_their_picture():
    net, x, g = decoder(), randn(3, 6, 32), randn(3, 4, 24, seed=1)
    z = net(x, g)
    changed = x.clone()
    changed[:, 3] = randn(3, 32, seed=2)
    same(net(changed, g)[:, :3], z[:, :3])
    assert ((net(changed, g) - z)[:, 3:].abs().amax(2) > 1e-4).all()
    other = g.clone()
    other[1] = randn(4, 24, seed=2)                                     # only this row's picture
    assert torch.equal(net(x, other)[[0, 2]], z[[0, 2]]) and (net(x, other)[1] - z[1]).abs().max() > 1e-3
    for block in net.blocks:
        nn.init.zeros_(block.cross.proj.weight)
        nn.init.zeros_(block.cross.proj.bias)
    assert torch.equal(net(x, g), net(x, other))


def test_its_head_is_drawn():
    net = CrossDecoder(64, 1, 2, 24, 3000)
    assert net.head.bias is None and net.head.weight.std().item() == pytest.approx(64**-0.5, rel=0.02)


def test_reading_token_by_token_is_reading_all_at_once():
    encoder, net, g = shaken(tiny_text_encoder()), decoder(), randn(6, 4, 24)
    ids, pad = encoder.tokens(SAID)
    whole = net.head(net(encoder.states(ids, pad), g))                  # (B, T, V)
    reading = Reading(encoder, net, g)
    order = torch.tensor([4, 1, 1, 5])
    for place in range(ids.shape[1]):
        if place == 3:
            reading.pick(order)                                         # rows may leave, move and come twice
        rows = torch.arange(6) if place < 3 else order
        same(reading(ids[rows, place]), whole[rows, place])


def few_words(vocabulary: int = 5):
    """A text encoder and a decoder of so few tokens that all texts can be tried."""
    encoder = shaken(tiny_text_encoder())
    encoder.token_embedding = nn.Embedding(vocabulary, 32).double()
    return encoder, decoder(vocabulary)


def every_text(encoder, net, g: torch.Tensor, most: int, end: int, vocabulary: int = 5):
    """The likeliest of all texts of at most `most` tokens, and its log-probability; those that end are shorter."""
    best: tuple[float, list[int]] = (-torch.inf, [])
    for n in range(1, most + 1):
        for text in itertools.product(range(vocabulary), repeat=n):
            if end in text[:-1] or (text[-1] != end and n < most):
                continue
            ids = torch.tensor([[end, *text]])
            logp = net.head(net(encoder.states(ids, ids < 0), g[None])).log_softmax(2)[0]
            total = logp[torch.arange(n), torch.tensor(text)].sum().item()
            best = max(best, (total, list(text)))
    return best


def test_many_beams_find_the_likeliest_of_all_texts_and_one_takes_the_likeliest_token():
    encoder, net = few_words()
    net.head.weight.data *= 0.5                                         # flat: greed does not always pay
    g, end, most = 3 * randn(8, 4, 24, seed=2), 0, 3
    found = likeliest(Reading(encoder, net, g), end, end, most=most, beams=125)
    greedy = likeliest(Reading(encoder, net, g), end, end, most=most)
    differ = 0
    for row in range(8):
        text = found[row].tolist()
        text = text[: text.index(end) + 1] if end in text else text
        assert text == every_text(encoder, net, g[row], most, end)[1]
        said = [end]
        for _ in range(most):
            ids = torch.tensor([said])
            said.append(int(net.head(net(encoder.states(ids, ids < 0), g[row : row + 1]))[0, -1].argmax()))
            if said[-1] == end:
                break
        taken = greedy[row].tolist()
        taken = taken[: taken.index(end) + 1] if end in taken else taken
        assert taken == said[1:]
        differ += taken != text
    assert differ > 0, "greedy search was never wrong: the test shows nothing"


def test_what_has_ended_stays_ended():
    encoder, net = few_words()
    g = randn(8, 4, 24, seed=2)
    for beams in (1, 3):
        for row in likeliest(Reading(encoder, net, g), 0, 0, most=9, beams=beams).tolist():
            if 0 in row:
                assert set(row[row.index(0):]) == {0}
