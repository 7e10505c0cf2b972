"""GA-DMS's claim: the rule that judges it, its captions, its arms, and its control."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan import catalogue
from notan.claims import ga_dms
from notan.claims._composites import FACTORS, words
from notan.claims._train import built
from notan.data import DataInfo, cache_root
from notan.methods.ga_dms import GADMS

RANK = {"SDM": 0.20, "+ random masks": 0.21, "+ cosine masks": 0.22, "+ GASS masks": 0.25, "+ GASS masks + MTP": 0.26}
needs_emoji = pytest.mark.skipif(not (cache_root() / "sources" / "emoji").exists(), reason="emoji are not in the cache")


def values(auc: float = 0.65, spread: float = 0.004, **changed: float) -> dict:
    """Every seed has about the same differences."""
    level = {arm: changed.get(arm.replace(" ", "_").replace("+", "and"), r) for arm, r in RANK.items()}
    found = {arm: {s: {"R@1": r + 0.01 * s + spread * (-1) ** s * (arm == "+ GASS masks"), "R@1 start": 0.17, "AUC start": 0.56,
                       "AUC": auc, "AUC cosine": 0.55} for s in range(5)} for arm, r in level.items()}
    for arm in ("SDM", "+ GASS masks"):
        for s in range(5):
            found[arm][s]["R@1 clean"] = 0.4
    return found


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"auc": 0.6}, "open"),
    ({"auc": 0.55}, "refuted"),
    ({"spread": 0.06}, "open"),                                         # not by two standard errors
    ({"SDM": 0.26}, "open"),                                            # hiding helps, but none is better
    ({"and_random_masks": 0.251}, "refuted"),
    ({"and_cosine_masks": 0.30}, "confirmed"),                          # shown, not part of the rule
    ({"and_GASS_masks_and_MTP": 0.1}, "confirmed"),
])
def test_the_rule(changed, verdict):
    found, sentence = ga_dms.judge(values(**changed))
    assert found == verdict and "minus random masks" in sentence and "With right words" in sentence


def test_arms_are_settings_of_the_method():
    flags = {f.name for f in catalogue.method("ga_dms").flags}
    assert list(ga_dms.ARMS) == ga_dms.CLAIM["arms"]
    assert {k for settings in ga_dms.ARMS.values() for k in settings} | set(ga_dms.METHOD) <= flags
    assert ga_dms.ARMS["+ GASS masks + MTP"] == {}                      # the paper's defaults


def test_factors_are_named_wrongly_as_often_as_they_should_and_one_knows_which():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(0, len(names), 4000) for names in FACTORS.values()], 1)
    said, wrong = ga_dms.captions(factors, 3, 0.4)
    assert wrong.mean(0) == pytest.approx([0.4] * 6, abs=0.03)
    places = [at - 1 for at in ga_dms.AT]
    for text, row, bad in zip(said[:300], factors, wrong):
        right = words(row)
        named = [text.split()[at] for at in places]
        assert [name != right[factor] for name, factor in zip(named, ga_dms.ORDER)] == bad.tolist()
    right, none = ga_dms.captions(factors, 3, 0.0)
    assert not none.any() and right[0].split()[2] == words(factors[0])["object"]
    assert not np.array_equal(wrong, ga_dms.captions(factors, 4, 0.4)[1])


def test_random_masks_hide_as_many_words_wherever_they_stand():
    info = DataInfo("example", 8, ("image", "text"), 64, 3)
    model = built(0, lambda: ga_dms.CLIP(ga_dms.Said(), small_text(), dim=96)).dual()
    made = [built(0, lambda kind=kind: kind(model, **ga_dms.METHOD, beta=0.0, data=info)) for kind in (GADMS, ga_dms.AtRandom)]
    s, word = torch.rand(6, 9), torch.arange(9) % 4 > 0
    word = word.expand(6, 9)
    guided, even = (method.noise_in(s, word) for method in made)
    assert even.sum() == pytest.approx(float(guided.sum())) and even[word].unique().numel() == 1 and not even[~word].any()
    assert guided[word].unique().numel() > 10


def small_text():
    from notan.methods._example import tiny_text_encoder
    from notan.nets.text import TextTransformer

    return TextTransformer(tiny_text_encoder().tokenizer, dim=96, depth=2, heads=4, context=16)


@needs_emoji
def test_every_word_is_one_token_and_a_quick_run_measures_what_is_shown():
    said, _ = ga_dms.captions(ga_dms.pictures(20, 2).factors, 0, 0.5)
    assert {len(ids) for ids in ga_dms.tokenizer()(said, add_special_tokens=False)["input_ids"]} == {12}
    found = ga_dms.run("+ GASS masks", 0, True)
    assert set(found) == set(ga_dms.CLAIM["shown"]) and 0 <= found["AUC"] <= 1
    assert "R@1 clean" not in ga_dms.run("+ random masks", 0, True)
