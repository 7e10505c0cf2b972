"""SupReMix's claim: the rule that judges it, its arms, and the regressions it compares with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from notan import catalogue
from notan.claims import supremix
from notan.claims._train import built
from notan.data import DataInfo, cache_root
from notan.methods import _inputs
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.nets.build import build_encoder
from notan.views.random import fold

MAE = {"random": 480.0, "L1": 400.0, "C-Mixup": 390.0, "SupCon": 380.0, "SupCon + weight": 370.0, "+ mixed negatives": 365.0,
       "+ mixed positives": 365.0, "SupReMix": 350.0}


def values(spread: float = 3.0, **changed: float | tuple[float, float]) -> dict:
    """Every seed has the same differences but for a little."""
    levels = {arm: changed.get(arm.replace(" ", "_").replace("+", "and"), mae) for arm, mae in MAE.items()}
    both = {arm: mae if isinstance(mae, tuple) else (mae, mae) for arm, mae in levels.items()}
    return {arm: {s: {f"{name} {size}": v for size, mae in zip(supremix.SIZES, pair)
                      for name, v in (("MAE", mae + spread * s + 0.1 * s * (arm == "SupCon")), ("order", 0.4))}
                  for s in range(5)} for arm, pair in both.items()}


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"spread": 10.0}, "open"),                                         # not by two deviations
    ({"SupCon": (380.0, 351.0)}, "open"),                               # with one number of tiles alone
    ({"L1": (340.0, 400.0)}, "open"),
    ({"and_mixed_negatives": (340.0, 350.0)}, "open"),                  # the positives add nothing
    ({"and_mixed_positives": 345.0}, "open"),
    ({"SupCon_and_weight": (340.0, 370.0)}, "confirmed"),               # lower with one, higher over both
    ({"SupCon_and_weight": (340.0, 359.0)}, "open"),
    ({"SupCon_and_weight": 350.0}, "refuted"),
    ({"SupCon": 349.0}, "refuted"),
    ({"C-Mixup": 300.0}, "confirmed"),                                  # shown, not part of the rule
])
def test_the_rule(changed, verdict):
    found, sentence = supremix.judge(values(**changed))
    assert found == verdict and "minus L1" in sentence and "minus C-Mixup" in sentence


def test_arms_are_settings_and_differ_only_in_them():
    entry = catalogue.method("supremix")
    assert set(supremix.ARMS) == set(supremix.CLAIM["arms"])
    flags = {f.name for f in entry.flags}
    assert {k for _, settings in supremix.ARMS.values() for k in settings or {}} | set(supremix.VIEW) <= flags
    assert supremix.ARMS["SupReMix"][1] == {}                           # the paper's defaults


def test_the_regressions_see_the_views_of_the_contrast():
    info = DataInfo("example", 8, ("image", "target"), 16, 3, target_range=(20.0, 80.0))
    batch = images(8) | {"target": torch.linspace(20, 80, 8)}
    made = built(0, lambda: supremix.Regression(build_encoder(supremix.ENCODER, info), info, False)).eval()
    views = [_inputs.view(batch, fold(batch["key"], w), made.encoder, made.views)[0] for w in (1, 2)]
    guess = torch.cat([made.head(made.encoder.features(x))[:, 0] for x in views])
    right = torch.linspace(0, 1, 8).repeat(2)
    torch.testing.assert_close(made.loss(batch, Progress())["loss"], (guess - right).abs().mean())
    mixed = built(0, lambda: supremix.Regression(build_encoder(supremix.ENCODER, info), info, True)).eval()
    assert mixed.loss(batch, Progress())["loss"] != made.loss(batch, Progress())["loss"]


def test_partners_are_others_and_near_in_target():
    t = torch.tensor([0.0, 5, 20, 100, 100])
    drawn = torch.stack([supremix.partners(t, fold(torch.arange(5), s)) for s in range(2000)])           # (2000, 5)
    assert (drawn != torch.arange(5)).all()
    p = stats.norm(0, supremix.NEAR).pdf([5.0, 20.0])
    share = (drawn[:, 0, None] == torch.tensor([1, 2])).double().mean(0)
    assert share.tolist() == pytest.approx((p / p.sum()).tolist(), abs=0.03)
    assert (drawn[:, 3] == 4).all() and (drawn[:, 4] == 3).all()


def test_tiles_of_the_earth_and_their_height():
    if not (cache_root() / "sources" / "elevation" / "train_target.npy").exists():
        pytest.skip("elevation is not in the cache")
    data = supremix.open_elevation()
    assert (len(data.train), len(data.test), data.info.image_size, data.info.channels) == (1544, 229, 32, 3)
    low, high = data.info.target_range
    assert low < 1 and 5200 < high < 5300 and data.info.classes == ()
    assert 400 < np.median(data.test.values("target")) < 600
