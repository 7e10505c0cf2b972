"""SupReMix: targets in one range, pairs from keys, groups of neighbours, pictures and series as well as tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_contracts import HALFWAY

from notan.data import Data, DataInfo, Rows
from notan.errors import NotanError
from notan.losses.mixed_pairs import Mixing, mixed_pairs
from notan.losses.supcon import sup_con
from notan.methods import _inputs, supervised, supremix
from notan.methods._contrast import near_targets
from notan.methods._example import images, numbers
from notan.methods.supremix import SupReMix, neighbours
from notan.nets.numbers import Series, Table
from notan.nets.vit import ViT
from notan.runs.train import train
from notan.views import random
from notan.views.random import fold

INFO = DataInfo("example", 8, ("features", "target"), width=6, target_range=(20.0, 80.0))


def method(dtype=torch.float64, info=INFO, **settings):
    torch.manual_seed(0)
    return SupReMix(Table(6, hidden=[16, 16]), data=info, **{"hidden": 32, "dim": 16, **settings}).to(dtype)


# ----------------------------------------------------------------------------------------------------------------- loss

def test_the_loss_is_mixed_pairs_of_two_views_with_draws_from_keys():
    m, batch = method(), numbers(8)
    found = m.loss(batch, HALFWAY)
    views = [m.encoder.features(_inputs.view(batch, fold(batch["key"], w), m.encoder, m.views)[0]) for w in (1, 2)]
    z = m.projector(torch.cat(views)).view(2, 8, -1).transpose(0, 1).reshape(16, -1)
    t = ((batch["target"].double() - 20) * (100 / 60)).repeat_interleave(2)
    key = fold(batch["key"][:, None], torch.arange(2)).flatten()
    lam = random.beta(fold(key[:, None], key), "mix", 2.0, 8.0)
    loss, _, mixed = mixed_pairs(z, z, t, t, tau=0.3, exclude=torch.arange(16), share=lam, how=Mixing(5.0))
    torch.testing.assert_close(found["loss"], loss.mean())
    assert found["mixed"] == mixed.double().mean() > 0


def test_without_mixing_and_weight_it_is_supcon_over_equal_targets():
    m, batch = method(mix_negatives=False, window=0.0, weight="none"), numbers(8)
    views = [m.encoder.features(_inputs.view(batch, fold(batch["key"], w), m.encoder, m.views)[0]) for w in (1, 2)]
    z, y = m.projector(torch.cat(views)), batch["target"].long().repeat(2)
    torch.testing.assert_close(m.loss(batch, HALFWAY)["loss"], sup_con(z, z, y, y, tau=0.3, exclude=torch.arange(16))[0].mean())


def test_the_unit_of_the_target_does_not_matter_unless_it_is_asked_to():
    batch = numbers(8)
    other = {**batch, "target": batch["target"] * 1000 - 7}
    metres = replace(INFO, target_range=(20_000 - 7.0, 80_000 - 7.0))
    a, b = method().loss(batch, HALFWAY), method(info=metres).loss(other, HALFWAY)
    torch.testing.assert_close(a["loss"], b["loss"], rtol=1e-4, atol=1e-4)          # targets are float32
    assert a["mixed"] == b["mixed"]
    raw = method(info=metres, label_scale=None).loss(other, HALFWAY)
    assert raw["mixed"] == 0 and abs(raw["loss"] - b["loss"]) > 0.5
    assert method(label_scale=50.0).loss(batch, HALFWAY)["mixed"] > a["mixed"]


def test_draws_of_beta_are_beta():
    key = fold(torch.arange(200)[:, None], torch.arange(100))
    for a, b in ((2.0, 8.0), (5.0, 5.0), (8.0, 2.0), (0.5, 0.5)):
        drawn = random.beta(key, "mix", a, b)
        assert drawn.shape == (200, 100) and ((drawn > 0) & (drawn < 1)).all()
        assert stats.kstest(drawn.flatten().numpy(), stats.beta(a, b).cdf).pvalue > 1e-3
    assert torch.equal(random.beta(key[3:5], "mix", 2.0, 8.0), random.beta(key, "mix", 2.0, 8.0)[3:5])
    with pytest.raises(NotanError, match="Beta"):
        random.beta(key, "mix", 0.0, 8.0)


def test_where_no_row_has_a_positive_the_loss_is_nothing():
    z = torch.randn(3, 1, 4, requires_grad=True)
    loss, mixed = near_targets(z, torch.tensor([0.0, 50, 100]), torch.arange(3), tau=0.3, beta=(2.0, 8.0), how=Mixing(5.0))
    assert loss == 0 and mixed == 0 and not torch.autograd.grad(loss, z)[0].any()
    with pytest.raises(NotanError, match="a batch of one row"):
        near_targets(z[:1], torch.zeros(1), torch.arange(1), tau=0.3, beta=None, how=Mixing())


# -------------------------------------------------------------------------------------------------------------- batches

def test_groups_hold_neighbours_and_every_epoch_others():
    target = np.random.default_rng(0).permutation(50).astype(np.float32)
    seen = []
    for epoch in range(4):
        plan = neighbours({"target": target}, 12, 0, epoch, size=3)
        assert plan.shape == (4, 12) and len(np.unique(plan)) == 48
        groups = np.sort(target[plan.reshape(-1, 3)], axis=1)
        assert (np.diff(groups, axis=1) == 1).all()
        seen.append({tuple(sorted(g)) for g in plan.reshape(-1, 3).tolist()})
        assert np.array_equal(plan, neighbours({"target": target}, 12, 0, epoch, size=3))
    assert not seen[0] & seen[1]
    assert not np.array_equal(neighbours({"target": target}, 12, 1, 0, size=3), neighbours({"target": target}, 12, 0, 0, size=3))


def test_small_batches_of_groups_have_mixed_positives():
    rng = np.random.default_rng(1)
    target = rng.uniform(0, 100, 400).astype(np.float32)

    def with_some(plan):
        t = torch.from_numpy(target[plan[:20]])
        x = torch.randn(t.shape[1], 4)
        own = torch.arange(t.shape[1])
        return [bool(mixed_pairs(x, x, y, y, tau=0.3, exclude=own, share=None, how=Mixing(5.0))[2].any()) for y in t]

    shuffled = rng.permutation(400).reshape(-1, 8)
    assert all(with_some(neighbours({"target": target}, 8, 0, 0, size=4))) and not all(with_some(shuffled))
    assert method(together=4).batches is not None and method().batches is None


# ------------------------------------------------------------------------------------------------ pictures and series

def pictures_with_targets(n=60):
    image = np.random.default_rng(0).integers(0, 256, (n, 3, 12, 12)).astype(np.uint8)
    rows = Rows({"image": image, "target": image.mean((1, 2, 3)).astype(np.float32)})
    span = rows.values("target")
    info = DataInfo("brightness", n, ("image", "target"), 12, 3, target_range=(float(span.min()), float(span.max())))
    return Data(rows, rows, info, "made")


def test_a_run_on_pictures(tmp_path):
    run = train("supremix", pictures_with_targets(), out=tmp_path / "r", steps=3, batch=16, threads=1,
                settings={"together": 4}, encoder="vit:patch=4,dim=16,depth=1,heads=2")
    assert [r["mixed"] > 0 for r in run.metrics() if "mixed" in r] and run.encoder().dim == 16
    batch = images(4, 12) | {"target": torch.arange(4.0)}
    shown = run.method().pictures(batch)
    assert set(shown) == {"picture", "view 1", "view 2"} and not torch.equal(shown["view 1"], shown["view 2"])


def test_series_of_different_length():
    torch.manual_seed(0)
    info = DataInfo("beats", 8, ("series", "target"), width=2, target_range=(20.0, 80.0))
    m = SupReMix(Series(2, [8]), data=info, hidden=16, dim=8).double()
    batch = {**numbers(8), "series": torch.randn(8, 5, 2), "length": torch.tensor([5, 4, 5, 2, 1, 5, 3, 5])}
    batch.pop("features")
    longer = {**batch, "series": torch.cat([batch["series"], torch.full((8, 4, 2), 9.0)], 1)}
    torch.testing.assert_close(m.loss(batch, HALFWAY)["loss"], m.loss(longer, HALFWAY)["loss"])
    torch.testing.assert_close(m.encode(batch), m.encode(longer))
    assert m.pictures(batch) == {}


def test_what_cannot_be_is_named():
    with pytest.raises(NotanError, match=r"every target of example is 3"):
        method(info=replace(INFO, target_range=(3.0, 3.0)))
    with pytest.raises(NotanError, match="example has no target"):
        method(info=replace(INFO, target_range=None))
    for wrong in ({"tau": 0.0}, {"alpha": 0.0}, {"beta": -1.0}, {"window": -1.0}):
        with pytest.raises(NotanError, match="numbers above 0"):
            method(**wrong)
    with pytest.raises(NotanError, match="label_scale"):
        method(label_scale=0.0)
    with pytest.raises(NotanError, match="together"):
        method(together=0)
    with pytest.raises(NotanError, match="reads the column 'image'"):
        SupReMix(ViT(image_size=16, patch=4, dim=32, depth=1, heads=2), data=INFO, hidden=8, dim=8).encode(numbers(2))
    batch = numbers(4)
    with pytest.raises(NotanError, match="NaN or infinite"):
        method().loss({**batch, "target": batch["target"] * torch.nan}, HALFWAY)


# ------------------------------------------------------------------------------------------------- the plain regression

def test_supervised_learns_a_target_by_its_absolute_error():
    torch.manual_seed(0)
    m = supervised.Supervised(Table(6, hidden=[8]), data=INFO, noise=0.0, hide=0.0).double()
    batch = numbers(8)
    out = m.loss(batch, HALFWAY)
    guess = m.head(m.encoder.features(batch["features"]))[:, 0]
    torch.testing.assert_close(out["loss"], (guess - (batch["target"].double() - 20) / 60).abs().mean())
    torch.testing.assert_close(out["mae"], (guess * 60 + 20 - batch["target"].double()).abs().mean())
    assert m.pictures(batch) == {} and m.encode(batch).shape == (8, 8)
    with pytest.raises(NotanError, match="0 classes and no target"):
        supervised.Supervised(Table(6), data=replace(INFO, target_range=None))
    both = supervised.Supervised(Table(6), data=replace(INFO, classes=("a", "b")))
    assert both.head.out_features == 2                                  # classes come first


def test_the_paper_is_told():
    assert "SupReMix" in (supremix.__doc__ or "") and supremix.RECIPES["paper"]["batch"] == 64
