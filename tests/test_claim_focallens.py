"""FocalLens's claim: the rule that judges it, what its arms share, and what the test has not shown before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan.claims import focallens
from notan.claims._composites import FACTORS, words
from notan.methods._example import images, tiny_dual_encoder
from notan.methods._pairs import whole
from notan.methods._progress import Progress

RIGHT = {"base": 0.3, "no instruction": 0.35, "focallens": 0.6, "no picture twice": 0.58, "late fusion": 0.55}


def values(spread: float = 0.02, wrong: float = 0.2, noise: float = 0.0, **changed: float) -> dict:
    """Every seed has the same differences but for `noise`, which alternates for focallens."""
    levels = {arm: changed.get(arm.replace(" ", "_"), right) for arm, right in RIGHT.items()}
    return {arm: {s: {"right": right + spread * s + noise * (-1) ** s * (arm == "focallens"),
                      "wrong": wrong + spread * s, "swapped": 0.7} for s in range(5)}
            for arm, right in levels.items()}


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"noise": 0.4}, "refuted"),                                        # right and wrong are not told apart by their interval
    ({"noise": 0.25}, "open"),                                          # better in the mean, not by an interval
    ({"wrong": 0.4}, "open"),                                           # it falls, and not far enough
    ({"wrong": 0.6}, "refuted"),                                        # the instruction makes no difference
    ({"wrong": 0.7}, "refuted"),
    ({"base": 0.61}, "open"),
    ({"no_instruction": 0.6}, "refuted"),
    ({"no_instruction": 0.7}, "refuted"),
    ({"late_fusion": 0.9}, "confirmed"),                                # shown, not part of the rule
])
def test_the_rule(changed, verdict):
    found, sentence = focallens.judge(values(**changed))
    assert found == verdict and "late fusion" in sentence


def test_arms_differ_in_what_they_say_and_share_the_base():
    assert list(focallens.ARMS) == focallens.CLAIM["arms"]
    x, asked = whole(images(6), 16), ["what is it"] * 3 + ["how many"] * 3
    for arm, listens in (("no instruction", False), ("focallens", True), ("late fusion", True), ("no picture twice", True)):
        torch.manual_seed(0)
        method = focallens.ARMS[arm](tiny_dual_encoder()).eval()
        plain, z, other = method.model.image(x), method.focused(x, asked), method.focused(x, asked[::-1])
        assert torch.equal(z, other) is not listens and torch.equal(z, plain) is not listens, arm
        batch = images(6) | {"instruction": asked, "answer": ["a", "b", "c", "1", "2", "3"]}
        assert torch.isfinite(method.loss(batch, Progress(0, 1, 0, 1))["loss"])
        assert torch.equal(method.encode({"image": images(6)["image"]})["image"], plain), arm


def test_no_picture_is_twice_in_a_batch_and_every_row_is_used():
    picture = np.repeat(np.arange(40), 6)
    plan = focallens.apart(picture, 8, 3, 1)
    assert plan.shape == (30, 8) and np.array_equal(np.sort(plan.ravel()), np.arange(240))
    assert all(len(np.unique(picture[rows])) == 8 for rows in plan)
    assert not np.array_equal(plan, focallens.apart(picture, 8, 3, 2))
    assert focallens.apart(np.repeat(np.arange(41), 6), 8, 3, 1).shape == (30, 8)


def test_test_pairs_and_wordings_are_new_and_every_value_is_trained():
    o, c = (x.ravel() for x in np.meshgrid(np.arange(16), np.arange(8)))
    out = focallens.untrained(np.stack([o, c], 1))
    assert out.mean() == 0.25
    assert (np.bincount(c[out], minlength=8) == 4).all() and (np.bincount(o[out], minlength=16) == 2).all()
    found = focallens.seen(100, True)
    assert not focallens.untrained(found.factors).any() and found.pictures.shape[1:] == (3, 64, 64)
    rows = focallens.asked_about(found, 100)
    assert len(rows) == 6 * len(found.factors) and (np.bincount(rows.values("picture_id")) == 6).all()
    trained = {wording for every in focallens.ASKED.values() for wording in every[:2]}
    assert set(rows.stores["instruction"]) == trained and not trained & {every[2] for every in focallens.ASKED.values()}
    batch = rows.take(np.arange(len(rows)))
    for asked, answer, picture in zip(batch["instruction"], batch["answer"], batch["picture_id"].tolist()):
        name = next(n for n, every in focallens.ASKED.items() if asked in every)
        assert answer == words(found.factors[picture])[name]


def test_texts_say_what_their_attributes_are():
    rows = focallens.texts(3, 200)
    batch = rows.take(np.arange(200))
    names = [*FACTORS]
    for text, means in zip(batch["text"], batch["attributes"].tolist()):
        asked = means.pop()
        if asked < 6:
            assert names[asked] in text and means == [len(v) for v in FACTORS.values()]
        else:
            said = {name: FACTORS[name][v] for name, v in zip(names, means) if v < len(FACTORS[name])}
            assert said and all(value in text for value in said.values())
            parts = [] if text.endswith(" ground") else [part.split() for part in text.split(", ") if " " in part]
            assert all(said[name] == value for name, value in parts)
    assert (batch["attributes"][:, 6] < 6).sum() == 40 and not any("do you see" in text for text in batch["text"])
    factors = np.array([3, 2, 1, 0, 1, 5])
    assert focallens.captions(factors, 4) == focallens.captions(factors, 4) and len(focallens.captions(factors, 4)) == 4


def test_who_knows_an_attribute_tells_sentences_apart():
    """A made-up encoder: a picture and a text are which values they name; without one attribute it cannot tell that one."""
    found = focallens.test_pictures(True)
    every = [(name, value) for name, names in FACTORS.items() for value in names]

    class Model:
        def text(self, texts):
            # "two small dog at the top beside one key on red ground"
            return torch.stack([self.of(dict(zip(("count", "size", "object", "place", "other", "colour"),
                                                 [t.split()[i] for i in (0, 1, 2, 5, 8, 10)]))) for t in texts])

        def of(self, said):
            return torch.tensor([float(said.get(name) == value) for name, value in every])

    method = type("Method", (), {"model": Model()})
    all_of = torch.stack([method.model.of(words(f)) for f in found.factors])
    sizeless = all_of * torch.tensor([name != "size" for name, _ in every])
    assert focallens.swapped(method, [all_of] * 6, found) == 1
    assert focallens.swapped(method, [sizeless] * 6, found) == pytest.approx(5 / 6)
    assert focallens.swapped(method, [torch.ones_like(all_of)] * 6, found) == 0
