"""DiSa: what learns and what does not, each term by its definition, which patches stay, and prompts that leave with a run."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nets_dual import saved_hub
from torch import nn

from notan import train
from notan.data import Data, DataInfo, Rows
from notan.errors import NotanError
from notan.methods import disa
from notan.methods._example import images, tiny_dual_encoder, tiny_text_encoder
from notan.methods._prompting import base_count, chosen, class_names
from notan.methods.disa import DiSa, class_means, crossed, directed, hide_least, kl, score_kept
from notan.nets.attended import class_attention, relevance
from notan.nets.build import is_dual, load_encoder, save_encoder
from notan.nets.dual import Dual, head, released
from notan.nets.prompted import Prompted, word_vectors
from notan.nets.vit import ViT
from notan.runs.embed import encoding
from notan.runs.micro import in_parts

NAMES = ("cat", "dog", "old house")
INFO = DataInfo("example", 8, ("image", "label"), 16, 3, classes=NAMES)


def begun(method, rows=6):
    every = images(rows)
    method.begin(lambda encode, index: encode({"image": every["image"][index]}), {"label": every["label"].numpy()}, 0)
    return method


def ours(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    return begun(DiSa(tiny_dual_encoder(), data=INFO, **{"crop": 0.5, **settings}).to(dtype)), images(8)


def clip(folder, **settings):
    saved_hub(folder)
    torch.manual_seed(0)
    return begun(DiSa(released(str(folder)), data=INFO, **{"crop": 0.5, **settings}).double()), images(8)


def pooled_by_class(dtype=torch.float64):
    torch.manual_seed(0)
    vit = ViT(16, patch=4, dim=32, depth=3, heads=2, pool="cls")
    return Dual(vit, tiny_text_encoder(), head(32, 16), head(32, 16), tau=0.1).to(dtype).eval()


def pixels(rows=5, dtype=torch.float64):
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


# ---- what learns -----------------------------------------------------------------------------------------------------------

def test_prompts_of_a_vit_base_are_46080_numbers():
    with torch.device("meta"):
        pictures = ViT(224, patch=16, dim=768, depth=12, heads=12, pool="cls", positions="learned")
        blocks = nn.ModuleList([nn.Identity()] * 12)
    words = tiny_text_encoder()
    words.dim, words.blocks, words.token_embedding = 512, blocks, nn.Embedding(len(words.tokenizer), 512)
    base = SimpleNamespace(image_encoder=pictures, text_encoder=words, config={}, dim=512, image_size=224, channels=3,
                           normalise=None, requires_grad_=lambda on: None)
    made = Prompted(base, images=4, texts=4, depth=9, template="a photo of a {}.")
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == 46_080 == 4 * 512 * 9 + 4 * 768 * 9


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_only_prompts_have_gradients(which, tmp_path):
    method, batch = ours() if which == "ours" else clip(tmp_path)
    method.train().loss(batch, None)["loss"].backward()
    learning = {n for n, p in method.named_parameters() if p.requires_grad}
    assert learning == {f"model.{side}_prompts.{i}" for side in ("image", "text") for i in range(2 if which == "ours" else 3)}
    for name, p in method.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) if name in learning else p.grad is None, name
    assert not method.model.base.training and method.training


def without_prompts(method):
    method.model.image_prompts, method.model.text_prompts = nn.ParameterList(), nn.ParameterList()
    method.model.rest = method.model.config["template"]
    return method


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_without_prompts_it_is_the_frozen_model(which, tmp_path):
    method, batch = ours(hidden=0.0) if which == "ours" else clip(tmp_path, hidden=0.0)
    without_prompts(method)
    found = method.loss(batch, None)
    assert abs(found["score"]) < 1e-9 and abs(found["cross"]) < 1e-9
    z = method.encode({"image": batch["image"], "text": list(NAMES)})
    base = method.model.base
    assert torch.equal(z["image"], base.image(disa.whole(batch, 16)))
    assert torch.equal(z["text"], base.text([f"a photo of a {name}." for name in NAMES]))


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_text_prompts_begin_at_the_words_of_the_template(which, tmp_path):
    """Shallow prompts, as many as the words have tokens, give what the sentence gives; deep ones do not."""
    if which == "clip":
        saved_hub(tmp_path)
    base = (tiny_dual_encoder() if which == "ours" else released(str(tmp_path))).double().eval()
    count = len(word_vectors(base.text_encoder, "a b of"))
    shallow, deep = (Prompted(base, images=0, texts=count, depth=d, template="a b of {} .").double() for d in (1, 2))
    said = base.text([f"a b of {name} ." for name in NAMES])
    torch.testing.assert_close(shallow.text(list(NAMES)), said, rtol=1e-9, atol=1e-9)
    assert (deep.text(list(NAMES)) - said).abs().max() > 1e-6
    long = Prompted(base, images=0, texts=count + 3, depth=1, template="a b of {}").text_prompts[0][0]
    assert torch.equal(long[:count].double(), word_vectors(base.text_encoder, "a b of")) and long[count:].abs().max() < 0.12
    short = Prompted(base, images=0, texts=2, depth=1, template="a b of {}").text_prompts[0][0]
    assert torch.equal(short.double(), word_vectors(base.text_encoder, "a b of")[:2])


# ---- the terms -------------------------------------------------------------------------------------------------------------

def logits(seed=0, rows=6, classes=5):
    return 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_its_four_terms():
    method, batch = ours(direction=2.5)
    out, tau = method.loss(batch, None), 0.1
    x, y, base = disa.cropped(batch, 16, scale=0.5, flip=0.5).double(), batch["label"], method.model.base
    f_o, f_p = (F.normalize(m.image(x), dim=1) for m in (base, method.model))
    g_o = F.normalize(base.text([f"a photo of a {n}." for n in NAMES]), dim=1)
    g_p = F.normalize(method.model.text(list(NAMES)), dim=1)
    u = F.normalize(base.patches(x), dim=2)
    keep = torch.stack([torch.tensor([n in s.topk(12).indices for n in range(16)]) for s in (u * g_o[y][:, None]).sum(2)])
    seen = F.normalize(method.model.image(x, ~keep), dim=1)
    probability = lambda f, g: (f @ g.T / tau).softmax(1)               # noqa: E731
    divergence = lambda p, q: (p * (p.log() - q.log())).sum(1).mean()   # noqa: E731
    z = F.normalize(base.image(disa.whole(images(6), 16).double()), dim=1)
    mu = F.normalize(torch.stack([z[images(6)["label"] == c].mean(0) for c in range(3)]), dim=1)
    wanted = {"ce": -probability(f_p, g_p).log()[torch.arange(8), y].mean(),
              "score": divergence(probability(f_o, g_o), probability(f_p, g_p)),
              "cross": divergence(probability(seen, g_o), probability(f_o, g_p)),
              "direction": (1 - (f_p * mu[y]).sum(1)).mean()}
    for name, value in wanted.items():
        torch.testing.assert_close(out[name], value.detach(), rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(out["loss"], sum(wanted.values()) + 1.5 * wanted["direction"], rtol=1e-5, atol=1e-7)


def test_equal_logits_cost_the_log_of_the_classes():
    method, batch = ours(score=0, cross=0, direction=0)
    with torch.no_grad():
        method.model.base.text_head.weight.zero_()
    assert method.loss(batch, None)["loss"].item() == pytest.approx(math.log(3), abs=1e-12)


@given(st.integers(0, 2**31), st.sampled_from(["rows", "numel"]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_divergences_are_not_negative(seed, reduction, symmetric):
    a, b = logits(seed), logits(seed + 1)
    assert score_kept(a, b, reduction) >= 0 and crossed(a, b, symmetric, "none") >= 0
    assert abs(score_kept(a, a + 3, reduction)) < 1e-12 and abs(crossed(a, a - 2, symmetric, "none")) < 1e-12


def test_the_score_term_is_that_of_promptsrc():
    frozen, prompted = logits(1), logits(2)
    theirs = F.kl_div(prompted.log_softmax(1), frozen.log_softmax(1), reduction="sum", log_target=True)
    torch.testing.assert_close(score_kept(frozen, prompted, "numel"), theirs / prompted.numel())
    torch.testing.assert_close(score_kept(frozen, prompted, "rows"), theirs / len(prompted))


def test_the_cross_term_goes_from_the_first_to_the_second():
    a, b = logits(1), logits(2)
    p, q = a.softmax(1), b.softmax(1)
    there, back = ((p * (p / q).log()).sum(1).mean(), (q * (q / p).log()).sum(1).mean())
    torch.testing.assert_close(crossed(a, b, False, "none"), there)
    torch.testing.assert_close(crossed(a, b, True, "none"), (there + back) / 2)
    assert abs(there - back) > 1e-3


@pytest.mark.parametrize("detach,moved", [("none", {"image", "text"}), ("q1", {"text"}), ("q2", {"image"})])
def test_each_cross_score_belongs_to_one_sides_prompts(detach, moved):
    method, batch = ours(score=0, direction=0, detach=detach)
    terms = {}
    own = method.held
    method.held = lambda *given: terms.setdefault("held", own(*given))
    method.loss(batch, None)
    terms["held"]["cross"].backward()
    for side in ("image", "text"):
        grads = [p.grad for p in getattr(method.model, f"{side}_prompts")]
        assert (any(g is not None and g.abs().max() > 0 for g in grads)) is (side in moved), side


def test_labels_reach_the_cross_term_through_the_mask_alone():
    for hidden, same in ((0.0, True), (0.5, False)):
        method, batch = ours(hidden=hidden)
        a, b = (method.loss({**batch, "label": y}, None)["cross"] for y in (batch["label"], (batch["label"] + 1) % 3))
        assert torch.equal(a, b) is same


def test_direction_of_unit_vectors_is_half_a_distance():
    f, mu = (F.normalize(logits(s, 6, 8), dim=1) for s in (1, 2))
    found = directed(f, f, mu, "cosine")
    torch.testing.assert_close(found, (f - mu).square().sum(1).mean() / 2)
    assert 0 <= found <= 2
    torch.testing.assert_close(directed(3 * f, f, mu, "cosine"), found)
    assert abs(directed(-mu, f, mu, "cosine") - 2) < 1e-12


def test_displacement_looks_at_where_the_step_goes_and_not_how_far():
    f_o, mu, step = (logits(s, 6, 8) for s in (1, 2, 3))
    found = directed(f_o + step, f_o, mu, "displacement")
    torch.testing.assert_close(found, directed(f_o + 0.01 * step, f_o, mu, "displacement"))
    assert abs(directed(f_o + 0.3 * (mu - f_o), f_o, mu, "displacement")) < 1e-12
    assert abs(found - directed(f_o + step, f_o, mu, "cosine")) > 1e-3


def test_rows_that_did_not_move_or_have_no_mean_do_not_count():
    f_o, mu, step = (logits(s, 4, 8) for s in (1, 2, 3))
    few = directed((f_o + step)[1:], f_o[1:], mu[1:], "displacement")
    step[0] = 0
    f_p = (f_o + step).requires_grad_()
    found = directed(f_p, f_o, mu, "displacement")
    torch.testing.assert_close(found, few)
    found.backward()
    assert torch.isfinite(f_p.grad).all() and f_p.grad[0].abs().max() == 0
    mu[0] = 0
    torch.testing.assert_close(directed(f_o, f_o, mu, "cosine"), directed(f_o[1:], f_o[1:], mu[1:], "cosine"))
    assert directed(f_o, f_o, torch.zeros_like(mu), "cosine") == 0


def test_class_means_are_directions_whatever_the_order():
    z, y = F.normalize(logits(3, 30, 8), dim=1), torch.arange(30) % 4
    mu, order = class_means(z, y, 5), torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mu[:4].norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(class_means(z[order], y[order], 5), mu)
    torch.testing.assert_close(mu[1], F.normalize(z[y == 1].mean(0), dim=0))
    assert mu[4].abs().max() == 0


def test_without_its_terms_it_is_ivlp_bit_for_bit():
    method, batch = ours(torch.float32, score=0, cross=0, direction=0)
    x = disa.cropped(batch, 16, scale=0.5, flip=0.5)
    f, g = F.normalize(method.model.image(x), dim=1), F.normalize(method.model.text(list(NAMES)), dim=1)
    plain = F.cross_entropy(f @ g.T / method.model.tau, batch["label"])
    out = method.loss(batch, None)
    assert torch.equal(out["loss"], plain) and set(out) == {"loss", "ce", "accuracy"}


# ---- which patches ---------------------------------------------------------------------------------------------------------

def test_the_most_salient_patches_stay_and_ties_are_settled_by_place():
    s = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.5, 0.0]])
    assert hide_least(s, 0.5).tolist() == [[True, False, False, False, True, True]]
    assert (~hide_least(torch.rand(2, 196), 0.25)).sum(1).tolist() == [147, 147]
    assert (~hide_least(torch.rand(2, 16), 0.2)).sum(1).tolist() == [13, 13]
    assert (~hide_least(torch.zeros(1, 1000), 0.9))[0].nonzero().flatten().tolist() == list(range(100))
    assert not hide_least(torch.rand(2, 16), 0.0).any() and (~hide_least(torch.rand(2, 16), 0.99)).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_hiding_nothing_is_the_whole_picture(which, tmp_path):
    method, _ = ours() if which == "ours" else clip(tmp_path)
    x = pixels()
    shown = method.model.image(x, hide_least(torch.rand(5, 16), 0.0))
    torch.testing.assert_close(shown, method.model.image(x), rtol=1e-9, atol=1e-9)


def test_dropped_patches_are_patches_that_nothing_attends_to(monkeypatch):
    """The same with all tokens, those of hidden patches shut out of every softmax."""
    method, _ = ours()
    x, mask = pixels(), hide_least(torch.rand(5, 16), 0.4)
    dropped = method.model.image(x, mask)
    out = torch.zeros(5, 1, 1, 21, dtype=torch.float64)                 # class token, 16 patches, 4 prompts
    out[:, 0, 0, 1:17][mask] = -torch.inf
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **_: real(q, k, v, attn_mask=out))
    encoder = method.model.image_encoder
    states = encoder.states(x, None, tuple(method.model.image_prompts))[:, 1:17]
    shown = torch.stack([s[~m].mean(0) for s, m in zip(states, mask)])
    torch.testing.assert_close(method.model.base.image_head(shown), dropped, rtol=1e-9, atol=1e-9)


def test_saliency_by_text_and_its_sign():
    method, batch = ours()
    x, base = pixels(8), method.model.base
    s = method.salience(x, batch)
    u, g = F.normalize(base.patches(x), dim=2), method.frozen[batch["label"]]
    torch.testing.assert_close(s, torch.stack([u[b] @ g[b] for b in range(8)]))
    method.saliency = "text_patch_neg"
    assert torch.equal(method.salience(x, batch), -s) and not s.requires_grad


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_saliency_by_attention_and_by_its_gradient(which, tmp_path):
    """By hand in ours: the last block written out, its attention a leaf; in CLIP by what `transformers` gives."""
    if which == "clip":
        saved_hub(tmp_path)
        base = released(str(tmp_path)).double().eval()
        base.image_encoder.model.set_attn_implementation("eager")
        out = base.image_encoder.model(pixel_values=base.normalise(pixels()), output_attentions=True)
        wanted = out.attentions[-1][:, :, 0, 1:].mean(1)
    else:
        base = pooled_by_class()
        wanted, effect = by_hand(base, pixels())
        found = relevance(base.image_encoder, lambda: base.image(pixels())[:, 3])
        torch.testing.assert_close(found, effect)
        assert found.shape == (5, 16) and found.min() >= 0 and found.max() > 0 and not found.requires_grad
    torch.testing.assert_close(class_attention(base.image_encoder, lambda: base.image(pixels())), wanted.detach())
    again = relevance(base.image_encoder, lambda: base.image(pixels())[:, 3])
    assert again.shape == (5, 16) and again.max() > 0 and not base.image_encoder.states(pixels()).isnan().any()


def by_hand(base, x):
    """Class attention of the last block, and the positive parts of attention times gradient of the fourth output."""
    encoder = base.image_encoder
    h = encoder.embed(x)
    for block in encoder.blocks[:-1]:
        h = block(h)
    block = encoder.blocks[-1]
    q, k, v = (t.transpose(1, 2) for t in block.attn.qkv(block.norm1(h)).view(5, 17, 3, 2, 16).unbind(2))
    a = (q @ k.transpose(2, 3) / 4).softmax(3).detach().requires_grad_()
    y = h + block.attn.proj((a @ v).transpose(1, 2).reshape(5, 17, 32))
    score = base.image_head(encoder.norm(y + block.mlp(block.norm2(y)))[:, 0])[:, 3]
    (grad,) = torch.autograd.grad(score.sum(), a)
    return a[:, :, 0, 1:].mean(1), (a * grad).clamp(min=0).mean(1).sum(1)[:, 1:].detach()


@pytest.mark.parametrize("saliency", ["text_patch", "text_patch_neg", "grad", "random"])
def test_every_saliency_hides_its_share_and_only_random_draws(saliency):
    method, batch = ours(saliency=saliency, hidden=0.5)
    x = pixels(8)
    mask, other = method.mask(x, batch), method.mask(x, {**batch, "key": batch["key"] + 1})
    assert mask.sum(1).tolist() == [8] * 8 and torch.equal(mask, other) is (saliency != "random")


def test_attention_of_a_class_token_that_sums_up_nothing_is_refused():
    method, batch = ours(saliency="cls_attention")
    with pytest.raises(NotanError, match="does not sum a picture up in a class token"):
        method.loss(batch, None)


def test_the_mask_may_take_part_in_every_term():
    method, batch = ours(scope="all", cross=0, score=0, direction=0)
    x = disa.cropped(batch, 16, scale=0.5, flip=0.5).double()
    f = F.normalize(method.model.image(x, method.mask(x, batch)), dim=1)
    g = F.normalize(method.model.text(list(NAMES)), dim=1)
    torch.testing.assert_close(method.loss(batch, None)["loss"], F.cross_entropy(f @ g.T / 0.1, batch["label"]))


# ---- rows and classes ------------------------------------------------------------------------------------------------------

def test_a_few_rows_of_each_class_and_of_base_classes_alone():
    labels = np.array([0, 1, 2, 3, 4, -1] * 20)
    rows = chosen(labels, 3, 5, seed=1)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5] and (np.diff(rows) > 0).all()
    assert np.array_equal(rows, chosen(labels, 3, 5, seed=1)) and not np.array_equal(rows, chosen(labels, 3, 5, seed=2))
    assert set(rows) < set(chosen(labels, 3, 9, seed=1)), "more shots hold the fewer"
    assert len(chosen(labels, 3, None, 0)) == 60 and len(chosen(labels, 5, 100, 0)) == 100
    with pytest.raises(NotanError, match="class 5 has no picture"):
        chosen(labels, 6, 5, 0)
    with pytest.raises(NotanError, match="shots = 0"):
        chosen(labels, 3, 0, 0)


def test_batches_are_of_the_chosen_rows_alone():
    method, _ = ours(shots=4, classes="base")
    labels = np.arange(60) % 3
    seen = [method.batches({"label": labels}, 3, 7, epoch) for epoch in range(2)]
    assert seen[0].shape == (2, 3) and set(labels[seen[0].ravel()]) <= {0, 1} and not np.array_equal(*seen)
    assert set(np.concatenate(seen).ravel()) <= set(chosen(labels, 2, 4, 7))
    with pytest.raises(NotanError, match="8 rows to learn from, a batch of 9"):
        method.batches({"label": labels}, 9, 7, 0)


def test_classes_without_names_are_refused():
    assert base_count(5) == 3 and base_count(4) == 2 and class_names(INFO, "base") == ["cat", "dog"]
    with pytest.raises(NotanError, match=r"names 0 classes.*--column THEIRS=label"):
        ours_of(DataInfo("bare", 8, ("image", "label"), 16, 3))
    with pytest.raises(NotanError, match="names 2 classes, one of them base"):
        ours_of(DataInfo("two", 8, ("image", "label"), 16, 3, classes=("a", "b")), classes="base")


def ours_of(info, **settings):
    return DiSa(tiny_dual_encoder(), data=info, **settings)


@pytest.mark.parametrize("options,message", [
    ({"hidden": 1.0}, "hidden"), ({"score": -1.0}, "score"), ({"depth": 0}, "depth"), ({"image_prompts": -1}, "images"),
    ({"image_prompts": 0, "text_prompts": 0}, "no prompts at all"), ({"template": "a photo"}, "one {} for the name"),
    ({"template": "{} {}"}, "one {} for the name")])
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(NotanError, match=message):
        ours_of(INFO, **options)


# ---- a run, and what leaves it ---------------------------------------------------------------------------------------------

def drawn(rows=48):
    """Squares on one of four sides; the rest is noise of the row."""
    label = np.arange(rows) % 4
    image = np.random.default_rng(0).integers(0, 90, (rows, 3, 16, 16)).astype(np.uint8)
    for i, c in enumerate(label):
        image[i, :, 8 * (c // 2): 8 * (c // 2) + 8, 8 * (c % 2): 8 * (c % 2) + 8] += 150
    names = ("cat", "dog", "fish", "old house")
    info = DataInfo("drawn", rows, ("image", "label"), 16, 3, (0.3,) * 3, (0.2,) * 3, names)
    return Data(Rows({"image": image, "label": label}), Rows({"image": image, "label": label}), info, "x")


TOWER = {"model": {"name": "dual", "dim": 16, "tau": 0.1,
                   "image_encoder": {"name": "vit", "patch": 4, "dim": 32, "depth": 2, "heads": 2},
                   "text_encoder": {"name": "text", "dim": 32, "depth": 2, "heads": 2, "context": 32}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("disa") / "run"
    return train("disa", drawn(), out=place, steps=4, batch=4, encoder=TOWER, threads=1, log_every=1,
                 settings={"shots": 2, "classes": "base", "crop": 0.5})


def test_a_run_learns_from_few_rows_and_leaves_with_its_prompts(run, tmp_path):
    method = run.method()
    rows = chosen(drawn().train.values("label"), 2, 2, run.settings.seed)
    batch = drawn().train.take(rows)
    torch.testing.assert_close(method.means, class_means(method.without(batch).detach(), batch["label"], 2).float())
    for directions in (method.means, method.frozen):
        assert directions.norm(dim=1).tolist() == pytest.approx([1, 1])
    tower = load_encoder(run.path / "model")
    assert isinstance(tower, Prompted) and is_dual(str(run.path / "model")) and tower.config == method.model.config
    said, shown = ["cat", "old house"], disa.whole(batch, 16)
    z = method.encode({"image": batch["image"], "text": said})
    assert torch.equal(tower.image(shown), z["image"]) and torch.equal(tower.text(said), z["text"])
    assert (tower.image(shown) - tower.base.image(shown)).abs().max() > 1e-4
    found = encoding(run.path / "model")({"image": batch["image"], "text": said * 2})
    assert torch.equal(found["image"], z["image"])
    save_encoder(tower, tmp_path / "again")
    assert torch.equal(load_encoder(tmp_path / "again").text(said), z["text"])


def test_prompts_are_learned_on_a_released_model_and_kept(tmp_path):
    saved_hub(tmp_path / "hub")
    made = train("disa", drawn(), out=tmp_path / "run", steps=2, batch=4, encoder={"model": f"hf:{tmp_path / 'hub'}"}, threads=1,
                 settings={"saliency": "cls_attention"})
    method, tower = made.method(), load_encoder(made.path / "model")
    batch = drawn().train.take(np.arange(4))
    z = method.encode({"image": batch["image"], "text": ["cat"]})
    torch.testing.assert_close(tower.image(disa.whole(batch, 16)), z["image"])
    torch.testing.assert_close(tower.text(["cat"]), z["text"])
    assert len(tower.image_prompts) == 3, "as many blocks as there are"


def test_prompts_on_a_prompted_model_begin_at_its_base(run):
    tower = load_encoder(run.path / "model")
    again = Prompted(tower, images=1, texts=1, depth=1, template="{}")
    assert again.base is tower.base and not isinstance(again.base, Prompted)
    with pytest.raises(NotanError, match="prompts of its own"):
        tower.image(pixels(dtype=torch.float32), None, (torch.zeros(1, 1, 32),))


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    grads = []
    for size in (None, 3):
        method, batch = ours()
        if size:
            in_parts(method, ["model"], size)
        method.loss(batch, None)["loss"].backward()
        grads.append([p.grad for p in method.parameters() if p.requires_grad])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_what_it_shows_has_grey_where_patches_are_hidden():
    method, batch = ours(torch.float32, hidden=0.5)
    shown = method.pictures(batch)
    grey = (shown["salient"] == 0.5).all(1).float().mean((1, 2))
    assert grey.tolist() == pytest.approx([0.5] * 8, abs=0.05)


def test_kl_of_logits_that_lie_far_apart_is_finite():
    a = torch.tensor([[100.0, -100.0]])
    assert torch.isfinite(kl(a, -a)).all() and kl(a, -a).item() == pytest.approx(200)
