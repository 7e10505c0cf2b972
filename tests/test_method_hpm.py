"""HPM: the mask, the two losses and the teacher, against the numbers that the official functions print."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.losses.ranking import absolute_ranking, pairwise_ranking
from notan.losses.regression import masked_mse
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.methods.hpm import HPM, example, heat
from notan.nets.pixels import patchify, unpatchify
from notan.nets.vit import ViT


def tiny(size: int = 16, patch: int = 4, mean=(0.5,), std=(0.5,), **settings) -> HPM:
    torch.manual_seed(0)
    encoder = ViT(size, 3, patch=patch, dim=16, depth=1, heads=2, mean=mean, std=std)
    return HPM(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2, **settings).double()


def epoch(e: int, epochs: int) -> Progress:
    return Progress(step=e, steps=epochs, epoch=e, epochs=epochs)


# ---- what is hidden ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 147), (0.6, 118), (0.5, 98), (0.7, 138)])
def test_the_number_of_hidden_patches_is_the_official_one(ratio, hidden):
    method = tiny(size=28, patch=2, mask_ratio=ratio)
    batch = images(4, 28)
    for e in (0, 9):
        assert (method.mask(batch, method.view(batch), epoch(e, 10)).sum(1) == hidden).all()
    assert method.hidden == hidden


def test_the_official_course_of_the_hard_share():
    method = tiny(size=28, patch=2)
    hard = [int(method.hidden * method.hard_share(epoch(e, 200))) for e in (0, 1, 2, 3, 50, 100, 199)]
    assert hard == [0, 0, 1, 1, 18, 37, 73]


def test_a_hard_share_that_starts_above_nothing():
    assert tiny(hard_start=0.5, hard_end=0.5).hard_share(epoch(0, 10)) == 0.5
    mixed = tiny(hard_start=0.2, hard_end=0.6)
    assert [mixed.hard_share(epoch(e, 4)) for e in range(4)] == pytest.approx([0.3, 0.4, 0.5, 0.6])


def test_a_run_of_one_epoch_is_at_the_end_of_the_course_from_the_start():
    assert tiny().hard_share(epoch(0, 1)) == 0.5


@pytest.mark.parametrize("e", [0, 50, 100, 199])
def test_the_hardest_patches_are_hidden(e):
    method = tiny(size=28, patch=2)
    batch = images(6, 28)
    x = method.view(batch)
    hard = int(147 * 0.5 * (e + 1) / 200)
    top = method.scores(x).topk(hard, dim=1).indices
    assert method.mask(batch, x, epoch(e, 200)).gather(1, top).all()


def test_without_a_hard_share_masks_are_uniform_and_the_teacher_is_not_asked(monkeypatch):
    method = tiny(hard_end=0.0)
    monkeypatch.setattr(HPM, "scores", lambda self, x: pytest.fail("the teacher was asked"))
    batch = images(4000)
    share = method.mask(batch, batch["image"], epoch(9, 10)).double().mean(0)
    assert (share - 0.75).abs().max() < 5 * math.sqrt(0.75 * 0.25 / 4000)


def test_the_teacher_sees_the_whole_picture_in_raster_order():
    """With a predictor that copies its input's first channel, a grade belongs to the place of its patch."""
    method, batch = example(4, torch.float64)
    x = method.view(batch).double()
    seen = []
    method.teacher["encoder"].norm.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    assert method.scores(x).shape == (4, 16) and seen == [(4, 17, 32)]

    class First(nn.Module):
        def forward(self, tokens: Tensor, last: int | None = None) -> Tensor:
            return tokens[:, :, :1].expand(-1, -1, 5)

    method.teacher["predictor"] = First()
    tokens, z = method.teacher["tokens"], method.teacher["encoder"](x)
    expected = (tokens.decoder_embed(z) + tokens.decoder_pos_embed)[:, 1:, 0]
    torch.testing.assert_close(method.scores(x), expected)

    with torch.no_grad():
        for p in method.teacher["encoder"].blocks.parameters():
            p.zero_()                                                   # no token looks at another one
    for place in (0, 6, 15):
        changed = patchify(x, 4)
        changed[:, place] *= 0.5
        moved = method.scores(x) != method.scores(unpatchify(changed, 4, (4, 4)))
        assert torch.equal(moved, (torch.arange(16) == place).expand(4, -1))


# ---- the losses ----------------------------------------------------------------------------------------------------

def ordered() -> tuple[Tensor, Tensor]:
    b, i = torch.arange(2).double()[:, None], torch.arange(12).double()
    return torch.sin(0.37 * i + b), torch.cos(0.53 * i + 0.2 * b) + 2


def test_golden_rankings():
    t, l = ordered()
    assert tiny().ranking(t, l).item() == pytest.approx(0.919214, abs=1e-5)
    assert tiny(prediction="absolute").ranking(t, l).item() == pytest.approx(1.822565, abs=1e-5)


@pytest.mark.parametrize(("norm_pix", "mean", "tokens"), [
    (False, 1.162843, [0.865960, 1.250416, 1.372153]),
    (True, 1.581064, [1.661593, 1.540777, 1.540821]),
])
def test_golden_reconstruction(norm_pix, mean, tokens):
    method = tiny(patch=8, mean=(0.0,), std=(1.0,), norm_pix=norm_pix)
    image = torch.arange(768).double().mul(0.01).sin().view(1, 3, 16, 16)
    pred = torch.arange(576).double().mul(0.02).add(0.5).sin().view(1, 3, 192)
    error = masked_mse(pred, method.target(image, torch.tensor([[True, False, True, True]])))
    torch.testing.assert_close(error, torch.tensor([tokens]).double(), atol=1e-5, rtol=0)
    assert error.mean().item() == pytest.approx(mean, abs=1e-5)


def test_constant_predictions_cost_log_2():
    loss = tiny().ranking(torch.zeros(2, 12).double(), ordered()[1])
    assert loss.item() == pytest.approx(0.693145, abs=1e-6)


def test_only_differences_of_predictions_and_the_order_of_losses_matter():
    t, l = ordered()
    expected = tiny().ranking(t, l)
    torch.testing.assert_close(tiny().ranking(t + 3, l), expected)
    torch.testing.assert_close(tiny().ranking(t, l.exp() * 2 + 1), expected)


def test_right_and_wrong_orders_at_a_huge_margin():
    l = torch.tensor([[1.0, 2.0, 3.0]]).double()
    assert abs(tiny().ranking(100 * l, l).item()) < 2e-6
    assert tiny().ranking(-100 * l, l).item() == pytest.approx(-math.log(1e-6), abs=1e-3)
    assert tiny(prediction="stable").ranking(-100 * l, l).item() == pytest.approx(400 / 3, rel=1e-6)


def test_it_is_binary_cross_entropy_over_untied_pairs():
    t, l = ordered()
    l[:, 3] = l[:, 7]
    d, y = t[:, :, None] - t[:, None], (l[:, :, None] > l[:, None]).double()
    untied = l[:, :, None] != l[:, None]
    expected = nn.functional.binary_cross_entropy_with_logits(d[untied], y[untied])
    torch.testing.assert_close(tiny().ranking(t, l), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(tiny(prediction="stable").ranking(t, l), expected)


def test_ties_everywhere_cost_nothing():
    t = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    loss = tiny().ranking(t, torch.ones(2, 5).double())
    loss.backward()
    assert loss.item() == 0 and (t.grad == 0).all()


def test_the_mean_is_over_all_pairs_of_the_batch():
    """Not a mean of pictures' means: ties make pictures count unevenly."""
    t, l = ordered()
    l[0, 4:] = 1.0
    parts = [pairwise_ranking(t[i:i + 1], l[i:i + 1]) for i in range(2)]
    expected = sum(s for s, _ in parts) / sum(n for _, n in parts)
    torch.testing.assert_close(tiny().ranking(t, l), expected)
    assert absolute_ranking(t, l).shape == (2, 12)


# ---- who learns from what ------------------------------------------------------------------------------------------

def gradients(term: str) -> dict[str, float]:
    """The largest gradient of one term in each part of the method."""
    method, batch = example(4, torch.float64)
    method.loss(batch, epoch(5, 10))[term].backward()
    parts = ("encoder", "tokens", "reconstructor", "predictor", "teacher")
    return {part: max((float(p.grad.abs().max()) for p in getattr(method, part).parameters() if p.grad is not None), default=0.0)
            for part in parts}


def test_gradients_go_where_the_paper_sends_them():
    ranking = gradients("prediction")
    assert ranking["reconstructor"] == ranking["teacher"] == 0
    assert min(ranking["encoder"], ranking["tokens"], ranking["predictor"]) > 0
    painting = gradients("reconstruction")
    assert painting["predictor"] == painting["teacher"] == 0
    assert min(painting["encoder"], painting["tokens"], painting["reconstructor"]) > 0


def test_the_loss_is_the_one_written_down():
    """Plainly: mask tokens among the others in raster order, pixels cut out by hand, a loop over pairs."""
    method, batch, progress = tiny(), images(3), epoch(7, 10)
    assert int(method.hidden * method.hard_share(progress)) == 4        # hard patches and random ones
    with torch.no_grad():
        x = method.view(batch)
        mask = method.mask(batch, x, progress)
        z = method.tokens.decoder_embed(method.encoder(x, mask))        # (B, 1 + K, D)
        tokens = method.tokens.mask_token.repeat(3, 16, 1)
        tokens[~mask] = z[:, 1:].flatten(0, 1)
        raster = torch.cat([z[:, :1], tokens], 1) + method.tokens.decoder_pos_embed
        painted, graded = method.reconstructor(raster)[:, 1:], method.predictor(raster)[:, 1:]
        l, p = [], []
        for b in range(3):
            places = mask[b].nonzero().flatten().tolist()
            for n in places:
                row, column = 4 * (n // 4), 4 * (n % 4)
                pixels = (x[b, :, row:row + 4, column:column + 4].double() - 0.5) / 0.5
                l.append(sum(d**2 for d in (pixels.permute(1, 2, 0).flatten() - painted[b, n]).tolist()) / 48)
                p.append(sum(graded[b, n].tolist()) / 48)
    total, count = 0.0, 0
    for b in range(3):
        for i in range(12 * b, 12 * b + 12):
            for j in range(12 * b, 12 * b + 12):
                if l[i] != l[j]:
                    right = 1 / (1 + math.exp(p[j] - p[i]))             # i is said to be harder than j
                    total -= math.log(right + 1e-6) if l[i] > l[j] else math.log(1 - right + 1e-6)
                    count += 1
    out = method.loss(batch, progress)
    assert out["reconstruction"].item() == pytest.approx(sum(l) / 36, rel=1e-6)
    assert out["prediction"].item() == pytest.approx(total / count, rel=1e-6) and count == 3 * 12 * 11
    assert out["loss"].item() == pytest.approx(sum(l) / 36 + total / count, rel=1e-6)


@pytest.mark.parametrize("prediction", ["relative", "stable", "absolute"])
def test_in_mixed_precision_predictions_are_compared_in_float32(prediction, monkeypatch):
    method, batch = example(2, torch.float32)
    method.prediction = prediction
    seen, plain = [], HPM.ranking
    monkeypatch.setattr(HPM, "ranking", lambda self, p, l: seen.extend([p.dtype, l.dtype]) or plain(self, p, l))
    with torch.autocast("cpu", torch.bfloat16):
        out = method.loss(batch, epoch(9, 10))
        assert method.scores(method.view(batch)).dtype == torch.float32
    out["prediction"].backward()
    assert seen == [torch.float32] * 2 and out["prediction"].dtype == torch.float32
    torch.testing.assert_close(out["prediction"], method.loss(batch, epoch(9, 10))["prediction"], rtol=0.05, atol=0)


def test_the_loss_is_the_sum_of_its_terms():
    method, batch = example(4, torch.float64)
    out = method.loss(batch, epoch(5, 10))
    torch.testing.assert_close(out["loss"], out["reconstruction"] + out["prediction"])


def test_a_hidden_patchs_loss_is_in_its_place():
    """One wrong patch of a picture painted right makes one entry of l, at its rank among the hidden ones."""
    method = tiny()
    batch = images(2)
    x = method.view(batch).double()
    mask = method.mask(batch, x, epoch(0, 10))
    target = method.target(x, mask)
    wrong = int(mask[0].nonzero()[5])
    changed = patchify(x, 4)
    changed[0, wrong] += 0.1
    l = masked_mse(target, method.target(unpatchify(changed, 4, (4, 4)), mask))
    assert l[0, 5] > 0 and l.sum() == l[0, 5]


# ---- the teacher ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("e", "decay"), [(0, 0.999), (50, 0.99945), (99, 0.999891), (100, 0.9999), (500, 0.9999)])
def test_the_official_decay(e, decay):
    assert tiny().decay(epoch(e, 800)) == pytest.approx(decay, abs=1e-12)


def test_a_scaled_teacher_forgets_as_much_over_the_run_as_the_papers():
    """The logarithm of what is kept over the whole run does not depend on the run's length."""
    method = tiny(ema="scaled")
    for steps in (250, 1000, 125_000):
        kept = sum(math.log(method.decay(Progress(step=n, steps=steps))) for n in range(0, steps))
        assert kept == pytest.approx(-125_000 * (0.00055 + 0.0001) / 2, rel=0.02)


def test_the_teacher_starts_as_a_copy_and_follows():
    method, _ = example(4, torch.float64)
    pairs = list(zip(method.teacher.parameters(), method.student().parameters(), strict=True))
    assert all(torch.equal(t, s) and not t.requires_grad for t, s in pairs)
    with torch.no_grad():
        for _, s in pairs:
            s.add_(1.0)
    before = [t.clone() for t, _ in pairs]
    method.after_step({}, epoch(0, 10))
    for (t, s), old in zip(pairs, before):
        torch.testing.assert_close(t, 0.999 * old + 0.001 * s)


def test_loss_asks_the_teacher_only_for_the_mask():
    """With a hard share of zero a ruined teacher changes nothing."""
    method, batch = example(4, torch.float64)
    method.hard_end = 0.0
    expected = method.loss(batch, epoch(5, 10))["loss"]
    for p in method.teacher.parameters():
        p.data.fill_(float("nan"))
    assert torch.equal(method.loss(batch, epoch(5, 10))["loss"], expected)


# ---- pictures and refusals -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm_pix", [True, False])
def test_pictures(norm_pix):
    method, batch = tiny(norm_pix=norm_pix), images(4)
    shown = method.pictures(batch)
    assert set(shown) == {"crop", "seen", "painted", "hardness"}
    crop, painted = patchify(shown["crop"].double(), 4), patchify(shown["painted"].double(), 4)
    same = (crop - painted).abs().amax(-1) < 1e-6                       # (B, N)
    assert (same.sum(1) == 4).all()                                     # the visible ones
    assert all(torch.equal(v, method.pictures(batch)[k]) for k, v in shown.items())


def test_the_hardest_patch_is_white_and_the_easiest_black():
    picture = heat(torch.tensor([[3.0, -1.0, 0.0, 1.0]]), (2, 2), 4)
    assert picture.shape == (1, 3, 4, 4)
    assert (picture[0, :, 0, 0] == 1).all() and (picture[0, :, 0, 3] == 0).all()


def test_impossible_shares_are_refused():
    with pytest.raises(NotanError, match="hard shares"):
        tiny(hard_end=1.5)
    with pytest.raises(NotanError, match="mask ratio"):
        tiny(mask_ratio=0.99)
