"""CoCa's claim: the rule that judges it, its arms, and what answers are read from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan import catalogue
from notan.claims import coca

ANSWERS = {"Con": 0.5, "Cap": 0.7, "CoCa": 0.7, "CoCa-parallel": 0.7}
FOUND = {"Con": 0.30, "CoCa": 0.31, "CoCa-parallel": 0.30}
WOBBLE = np.array([-0.02, 0.0, 0.02, 0.01, -0.01])                      # of CoCa over seeds: its standard error is 0.00707


def values(answers: dict | None = None, found: dict | None = None, cost: float = 1.02) -> dict:
    right, first = ANSWERS | (answers or {}), FOUND | (found or {})
    made = {}
    for arm in right:
        shift = WOBBLE * arm.startswith("CoCa")
        made[arm] = {s: {"answers": right[arm] + shift[s], "patches": 0.6, "cost": cost if arm == "CoCa" else 1.0,
                         **({} if arm == "Con" else {"CE": 0.1}),
                         **({} if arm == "Cap" else {"R@1": first[arm] + shift[s]})} for s in range(5)}
    return made


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"cost": 1.06}, "open"),
    ({"answers": {"CoCa": 0.694}}, "confirmed"),                        # below Cap by less than a standard error
    ({"answers": {"CoCa": 0.69}}, "open"),
    ({"answers": {"CoCa": 0.51}}, "open"),                              # above Con by less than two
    ({"answers": {"CoCa": 0.51, "Cap": 0.5}}, "open"),
    ({"answers": {"CoCa": 0.52, "Cap": 0.5}}, "confirmed"),
    ({"answers": {"CoCa": 0.5}}, "refuted"),                            # no gain
    ({"answers": {"CoCa": 0.45}}, "refuted"),
    ({"found": {"CoCa": 0.294}}, "confirmed"),
    ({"found": {"CoCa": 0.29}}, "open"),
    ({"found": {"CoCa": 0.28}}, "open"),                                # the parallel one is not worse
    ({"found": {"CoCa": 0.28, "CoCa-parallel": 0.28}}, "refuted"),
    ({"found": {"CoCa": 0.29, "CoCa-parallel": 0.28}}, "open"),
])
def test_the_rule(changed, verdict):
    found, sentence = coca.judge(values(**changed))
    assert found == verdict and "minus Cap" in sentence and "costs" in sentence and "Parallel minus cascade" in sentence


def test_arms_are_settings_of_the_method_and_begin_alike():
    assert set(coca.ARMS) == set(coca.CLAIM["arms"]) and coca.ARMS["CoCa"] == {}
    flags = {f.name for f in catalogue.method("coca").flags}
    assert {name for settings in coca.ARMS.values() for name in settings} <= flags
    states = [coca.model(arm, 7).state_dict() for arm in ("Con", "Cap", "CoCa")]
    assert all(torch.equal(a, b) for other in states[1:] for a, b in zip(states[0].values(), other.values()))
    assert not torch.equal(coca.model("CoCa", 8).cls_token, states[0]["cls_token"])


def test_sentences_fit_and_what_is_tested_is_of_the_other_hand():
    words = coca.tokenizer()
    made, said = coca.scenes(0, range(40), 1)
    assert len(said) == len(made.pictures) == 40
    for text in (coca.SENTENCE, *said):
        assert len(words(text)["input_ids"]) == len(text.split()) <= coca.CONTEXT - 2           # a token a word
    (train, a), (fitted, b), (test, c) = coca.parts(False)
    assert not set(train) & set(fitted) | set(fitted) & set(test) and (a, b, c) == (0, 0, 1)


def test_answers_are_read_from_picture_and_sentence():
    method = coca.model("CoCa", 0)
    x = torch.from_numpy(coca.scenes(0, range(4), 0)[0].pictures)
    with torch.no_grad():
        z, both = coca.fused(method, x), coca.beside(method, x)
        h = method.image_encoder(x / 255)
        states = method.text_encoder.states(*method.text_encoder.tokens([coca.SENTENCE] * 4))
        torch.testing.assert_close(z, method.decoder(states, method.generative(h)))
        torch.testing.assert_close(coca.patches(method, x), h)
        torch.testing.assert_close(both[:, 0, :64], method.encode({"image": x})["image"])
    assert (z[0] - z[1]).abs().max() > 1e-4 and both.shape == (4, 1, 128) and torch.equal(both[0, 0, 64:], both[3, 0, 64:])


def test_what_can_be_learned_of_tokens_is_learned():
    """The answer stands in one of the tokens: for the second question in another one than for the first."""
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(400, 5, 8, generator=g), torch.randint(0, 3, (400, 2), generator=g)
    for question in range(2):
        z[:, question] = 0
        z[torch.arange(400), question, y[:, question]] = 4
        z[:, question, 3 + question] = 4                                # which token it is
    head = coca.Answers(8, [3, 3])
    scores = coca.learned(head, z[:300], y[:300], z[300:], y[300:], 150, 0)
    assert scores.shape == (2,) and scores.min() > 0.95
    assert coca.learned(coca.Answers(8, [3, 3]), z[:300], y[:300], z[300:], y[300:].roll(1, 0), 150, 0).max() < 0.6
