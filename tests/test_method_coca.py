"""CoCa: both losses by their definitions, what reaches what, captions by themselves, and a run that writes."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from notan import train
from notan.data import keys
from notan.data.build import build
from notan.data.pictures import Pixels
from notan.data.raw import Raw
from notan.errors import NotanError
from notan.methods._contrast import both_ways
from notan.methods._example import tiny_text_encoder
from notan.methods._pairs import cropped, one_caption, whole
from notan.methods._progress import Progress
from notan.methods.coca import CoCa, example
from notan.nets.insert import taken_out
from notan.nets.vit import ViT
from notan.runs.probe import print_results, probe

NOW = Progress(step=1, steps=2, epoch=0, epochs=1)


def made(rows: int = 6, **settings) -> tuple[CoCa, dict]:
    torch.manual_seed(0)
    vit = ViT(image_size=16, patch=4, dim=24, depth=2, heads=2)
    given = {"queries": 4, "decoder_depth": 2, "dim": 16} | settings
    return CoCa(vit, tiny_text_encoder(), **given).double(), example(rows, torch.float64)[1]


def by_hand(method: CoCa, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """v, t and the logits (B, L, V), one text at a time, whole."""
    x = cropped(batch, 16, scale=method.crop)
    h = method.image_encoder(x)
    g = method.generative(h)
    v = F.normalize(method.image_head(method.contrastive(g if method.cascade else h)[:, 0]), dim=1)
    ts, logits = [], []
    for i, text in enumerate(one_caption(batch)):
        ids, pad = method.text_encoder.tokens([text])
        states, last = taken_out(method.text_encoder.states(ids, pad, method.cls_token), (~pad).sum(1))
        ts.append(F.normalize(method.text_head(method.text_encoder.norm(last)), dim=1))
        logits.append((method.decoder.head(method.decoder(states, g[i : i + 1]))[0], ids[0]))
    return v, torch.cat(ts), logits


# ---- the loss -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pooler", ["cascade", "parallel"])
def test_it_is_contrast_and_twice_captioning(pooler):
    method, batch = made(pooler=pooler)
    v, t, logits = by_hand(method, batch)
    s, own = v @ t.T / 0.07, torch.arange(6)
    contrast = (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2
    nll = torch.cat([F.cross_entropy(z[:-1], y[1:], reduction="none") for z, y in logits])      # of each token after the first
    out = method.loss(batch, NOW)
    torch.testing.assert_close(out["contrast"], contrast)
    torch.testing.assert_close(out["caption"], nll.mean())
    torch.testing.assert_close(out["loss"], contrast + 2 * nll.mean())
    method.ways = 2
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], 2 * contrast + 2 * nll.mean())


def test_the_contrast_is_open_clips():
    """Its number for these vectors; with both directions averaged as there, and the tokens of all captions alike, so is the whole
    loss of the test above."""
    torch.manual_seed(0)
    v, t = (F.normalize(torch.randn(6, 16), dim=1) for _ in range(2))
    assert both_ways(v, t, tau=0.07).item() == pytest.approx(6.8590, abs=1e-4)


def test_golden_numbers_of_equal_texts_and_zero_logits():
    method, batch = made()
    torch.nn.init.zeros_(method.text_head.weight)
    torch.nn.init.zeros_(method.decoder.head.weight)
    out = method.loss(batch, NOW)
    assert out["contrast"].item() == pytest.approx(math.log(6), abs=1e-6)
    assert out["caption"].item() == pytest.approx(math.log(len(method.text_encoder.tokenizer)), abs=1e-9)
    both = made(direction="sum")[0]
    torch.nn.init.zeros_(both.text_head.weight)
    assert both.loss(batch, NOW)["contrast"].item() == pytest.approx(2 * math.log(6), abs=1e-6)


def test_one_term_is_that_term_bit_for_bit_and_nothing_else_is_computed():
    method, batch = made(contrast_weight=3.0, caption_weight=2.0)
    out = method.loss(batch, NOW)
    assert torch.equal(out["loss"], 3 * out["contrast"] + 2 * out["caption"])
    for kept, gone in (("contrast", "caption"), ("caption", "contrast")):
        alone = made(**{f"{kept}_weight": 3.0, f"{gone}_weight": 0.0})[0]
        alone.load_state_dict(method.state_dict())
        found = alone.loss(batch, NOW)
        assert set(found) == {"loss", kept, "tau"} and torch.equal(found["loss"], 3 * found[kept])
        torch.testing.assert_close(found[kept], out[kept], rtol=1e-12, atol=1e-12)
        found["loss"].backward()                                        # all that learns is reached, and the rest does not learn
        assert all((p.grad is not None) == p.requires_grad for p in alone.parameters())
    assert not alone.cls_token.requires_grad and alone.decoder.head.weight.requires_grad
    assert not made(caption_weight=0.0, pooler="parallel")[0].generative.query_tokens.requires_grad


def test_each_text_is_read_once_for_both_losses(monkeypatch):
    method, batch = made(rows=8)
    seen = []
    block = method.text_encoder.blocks[0]
    block.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    method.loss(batch, NOW)
    assert sum(seen) == 8


# ---- what reaches what --------------------------------------------------------------------------------------------------

def gradients(method: CoCa, batch: dict, term: str) -> dict[str, torch.Tensor]:
    method.zero_grad()
    h = method.image_encoder(cropped(batch, 16, scale=method.crop))
    g = method.generative(h)
    t, nll, _ = method.read(one_caption(batch), g)
    loss = (method.summary(h, g) @ t.T).square().sum() if term == "contrast" else nll.sum()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in method.named_parameters()}


CONTRAST_ALONE = ("cls_token", "text_head", "image_head", "contrastive", "text_encoder.norm")


@pytest.mark.parametrize("pooler", ["cascade", "parallel"])
def test_captioning_sees_nothing_of_the_contrast_and_the_contrast_nothing_of_the_captioner(pooler):
    method, batch = made(pooler=pooler)
    of_caption, of_contrast = gradients(method, batch, "caption"), gradients(method, batch, "contrast")
    for name, g in of_caption.items():
        alone = name.startswith(CONTRAST_ALONE)
        assert (g.abs().max() == 0) == (alone or name == "log_scale"), name
    for name, g in of_contrast.items():
        if name.startswith("decoder."):
            assert g.abs().max() == 0, name                             # exactly
    for name in ("cls_token", "text_head.weight", "image_head.weight", "contrastive.query_tokens", "text_encoder.norm.weight"):
        assert of_contrast[name].abs().max() > 0, name
    assert (of_contrast["generative.query_tokens"].abs().max() > 0) == (pooler == "cascade")
    assert of_contrast["image_encoder.patch_embed.proj.weight"].abs().max() > 0


def test_a_changed_word_changes_what_comes_after_it_alone():
    method, _ = made()
    encoder, g = method.text_encoder, torch.randn(1, 4, 32, dtype=torch.float64)
    ids, pad = encoder.tokens(["the cat saw a dog"])
    for k in range(1, ids.shape[1] - 1):
        changed = ids.clone()
        changed[0, k] = 7 if ids[0, k] != 7 else 8
        (a, t), (b, u) = method.unimodal(ids, pad), method.unimodal(changed, pad)
        za, zb = (method.decoder.head(method.decoder(x, g)) for x in (a, b))
        assert torch.equal(a[:, :k], b[:, :k]) and torch.equal(za[:, :k], zb[:, :k])
        assert (za[:, k] - zb[:, k]).abs().max() > 1e-6 and (t - u).abs().max() > 1e-6


def test_padding_changes_nothing():
    """Whatever it is, however much there is, and whoever stands beside."""
    method, batch = made(rows=8)
    texts, g = one_caption(batch), torch.randn(8, 4, 32, dtype=torch.float64)
    t, nll, count = method.read(texts, g)
    tokens = method.text_encoder.tokens

    def padded_more(said, room=0):
        ids, pad = tokens(said, room)
        return F.pad(ids, (0, 3), value=5).where(~F.pad(pad, (0, 3), value=True), 5), F.pad(pad, (0, 3), value=True)

    method.text_encoder.tokens = padded_more
    for found, whole_batch in zip(method.read(texts, g), (t, nll, count)):
        torch.testing.assert_close(found, whole_batch, rtol=1e-12, atol=1e-12)
    method.text_encoder.tokens = tokens
    for i in range(8):
        for found, whole_batch in zip(method.read(texts[i : i + 1], g[i : i + 1]), (t, nll, count)):
            torch.testing.assert_close(found[0], whole_batch[i], rtol=1e-12, atol=1e-12)


def test_what_is_in_the_space_has_length_1_and_the_temperature_an_end():
    method, batch = made()
    for z in method.encode(batch).values():
        torch.testing.assert_close(z.norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert set(method.encode({"text": ["a cat"]})) == {"text"} and set(method.encode({"image": batch["image"]})) == {"image"}
    assert method.log_scale.item() == pytest.approx(2.6593, abs=1e-4)
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    assert method.tau.item() == pytest.approx(0.01) and method.loss(batch, NOW)["tau"].item() == pytest.approx(0.01)


# ---- captions -----------------------------------------------------------------------------------------------------------

def test_captions_are_what_reading_all_at_once_gives():
    method, batch = made()
    method.decoder.head.weight.data *= 3
    x, words = whole(batch, 16).double(), method.text_encoder.tokenizer
    end, g = words.eos_token_id, method.generative(method.image_encoder(whole(batch, 16).double()))
    expected = []
    for i in range(6):
        said = [end]
        while len(said) < 9 and (len(said) == 1 or said[-1] != end):
            ids = torch.tensor([said])
            states = method.text_encoder.states(ids, torch.zeros_like(ids, dtype=torch.bool))
            said.append(int(method.decoder.head(method.decoder(states, g[i : i + 1]))[0, -1].argmax()))
        expected.append(words.decode([y for y in said if y != end], clean_up_tokenization_spaces=False))
    assert method.caption(x, most=8) == expected and len(set(expected)) > 1
    assert method.caption(x[2:4], most=8) == expected[2:4]
    assert [text[: len(one)] for text, one in zip(method.caption(x), expected)] == expected     # as far as there are places


def test_beams_and_the_likelihood_of_given_captions():
    method, batch = made()
    method.decoder.head.weight.data *= 3
    x, words = whole(batch, 16).double(), method.text_encoder.tokenizer
    assert method.caption(x, most=6, beams=1) == method.caption(x, most=6) != method.caption(x, most=6, beams=5)
    texts = ["a cat", "the cat saw a dog that ran", "", "a", "cat", "dog"]
    nats, count = method.caption_nll(x, texts)
    assert count.tolist() == [len(words(text)["input_ids"]) + 1 for text in texts]              # the end is one too
    g, ids = method.generative(method.image_encoder(x)), torch.tensor([[0, *words("a cat")["input_ids"], 0]])
    assert words.eos_token_id == 0
    logp = method.decoder.head(method.decoder(method.text_encoder.states(ids, ids < 0), g[:1])).log_softmax(2)[0]
    assert nats[0].item() == pytest.approx(-logp[:-1].gather(1, ids[0, 1:, None]).sum().item())


def test_what_cannot_be_is_refused():
    method, batch = made(caption_weight=0.0)
    with pytest.raises(NotanError, match="caption-weight 0: it writes no captions"):
        method.caption(whole(batch, 16).double())
    with pytest.raises(NotanError, match="most = 0"):
        made()[0].caption(whole(batch, 16).double(), most=0)
    with pytest.raises(NotanError, match="beams = 0"):
        made()[0].caption(whole(batch, 16).double(), beams=0)
    for weights in ((0, 0), (-1, 2), (1, -1)):
        with pytest.raises(NotanError, match="none below 0, and one above"):
            made(contrast_weight=weights[0], caption_weight=weights[1])
    with pytest.raises(NotanError, match="tau = "):
        made(tau=0.001)
    with pytest.raises(NotanError, match="whose words may see what comes after"):
        CoCa(method.image_encoder, torch.nn.Identity())


# ---- a run --------------------------------------------------------------------------------------------------------------

def coloured(rows: int = 240) -> Raw:
    """Squares in one of six colours on grey, named in words of unlike length."""
    colours = {"red": (220, 30, 30), "light green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40),
               "very bright white": (250, 250, 250), "black": (10, 10, 10)}
    names = list(colours)
    label = np.arange(rows) % 6
    image = np.full((rows, 3, 16, 16), 128, dtype=np.uint8)
    for i in range(rows):
        r, c = keys.shuffle(1, i, 8)[:2]
        image[i, :, r : r + 8, c : c + 8] = np.array(colours[names[label[i]]])[:, None, None]
    return Raw("coloured", {"image": Pixels(image), "text": [f"a {names[k]} square" for k in label], "label": label},
               classes=tuple(names))


def test_a_run_writes_what_it_sees_and_finds_it_by_words(tmp_path):
    data = build(coloured(), tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0.0)
    towers = {"image_encoder": "vit:dim=32,depth=1,heads=2,patch=4", "text_encoder": "text:dim=32,depth=1,heads=2,context=12"}
    run = train("coca", data, out=tmp_path / "run", steps=120, batch=48, lr=4e-3, encoder=towers, threads=1,
                settings={"queries": 4, "decoder_depth": 1, "dim": 16})
    found = probe(run.path, data, protocols=["captions", "retrieval"])
    assert found["captions"]["exact"] > 0.9 and found["captions"]["bleu4"] > 0.8 and found["captions"]["cider"] > 5
    assert found["captions"]["perplexity"] < 1.3 and found["captions"]["n"] == len(data.test)
    assert found["picture to text"]["r1"] > 0.9 and found["text to picture"]["r1"] > 0.9
    print_results(found, Console(file=(said := io.StringIO()), width=300))
    assert "CIDEr-D" in said.getvalue() and "likeliest token at each step" in said.getvalue()


def test_captions_of_what_writes_none_or_has_none_are_refused(tmp_path):
    data = build(coloured(60), tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0.0)
    towers = {"image_encoder": "convnet:widths=[8],strides=[2]", "text_encoder": "text:dim=16,depth=1,heads=2,context=8"}
    run = train("clip", data, out=tmp_path / "clip", steps=1, batch=8, encoder=towers, threads=1)
    with pytest.raises(NotanError, match="writes no captions"):
        probe(run.path, data, protocols=["captions"])
