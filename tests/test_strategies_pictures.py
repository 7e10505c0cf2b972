"""VCD, M3ID, RITUAL and LQCD: the arithmetic of each, its own identities, and what is done to pictures and questions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from test_strategies import made, run
from tiny_models import MARKS, prompts, tiny

from notan.errors import NotanError
from notan.strategies import ritual
from notan.strategies._strategy import Context, plausible, within
from notan.strategies.lqcd import TEMPLATES, lead, neutralise
from notan.strategies.m3id import growth
from notan.strategies.ritual import TRANSFORMS, drawn, transformed
from notan.strategies.vcd import noised

Z = [torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3)]


def photo(height: int = 40, width: int = 56) -> Image.Image:
    g = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=g).byte().numpy())


# ------------------------------------------------------------------------------------------------------------------ noise

def test_the_noise_of_diffusion():
    b = 1 / (1 + np.exp(-np.linspace(-6, 6, 1000))) * (0.005 - 1e-5) + 1e-5
    for step in (0, 500, 999):
        abar = np.prod(1 - b[: step + 1])
        x = torch.full((64, 32, 32), 3.0)
        y = noised(x, step, 11)
        assert abs(float(y.mean()) - 3 * math.sqrt(abar)) < 0.02 and abs(float(y.var()) - (1 - abar)) < 0.02
    assert torch.equal(y, noised(x, 999, 11)) and not torch.equal(y, noised(x, 999, 12))
    assert noised(x.half(), 500, 1).dtype == torch.half


# ----------------------------------------------------------------------------------------------------------------- weights

def test_m3id_begins_as_the_model_and_trusts_the_picture_more_and_more():
    assert growth(0.02, 0) == 0 and abs(growth(0.02, 1) - 0.0202013) < 1e-7
    grows = [growth(0.02, t) for t in range(400)]
    assert all(a < b for a, b in pairwise(grows)) and growth(0.02, 10**6) == pytest.approx(1e4, rel=1e-3)
    m3id = made("m3id")
    assert torch.equal(m3id.combine(Z[:2], 0), within(plausible(Z[0], 0.1), Z[0]))
    k = math.exp(0.02 * 30) - 1
    torch.testing.assert_close(m3id.combine(Z[:2], 30), within(plausible(Z[0], 0.1), Z[0] + k * (Z[0] - Z[1])))


def test_ritual_and_its_joint_forms():
    plus = made("ritual")
    torch.testing.assert_close(plus.combine(Z[:2], 0), within(plausible(Z[0], 0.1), Z[0] + 3 * Z[1]))
    torch.testing.assert_close(plus.combine([Z[0], Z[0]], 0).softmax(1), within(plausible(Z[0], 0.1), 4 * Z[0]).softmax(1))
    vcd = made("ritual", minus="vcd", alpha_neg=0.5)
    torch.testing.assert_close(vcd.combine(Z, 0), within(plausible(Z[0], 0.1), 1.5 * Z[0] + 3 * Z[1] - 0.5 * Z[2]))
    assert torch.equal(made("ritual", minus="vcd", alpha_neg=0.0).combine(Z, 0), plus.combine(Z[:2], 0))
    m3id, k = made("ritual", minus="m3id"), math.exp(0.02 * 9) - 1
    torch.testing.assert_close(m3id.combine(Z, 9), within(plausible(Z[0], 0.1), Z[0] + 3 * Z[1] + k * (Z[0] - Z[2])))
    given = Context("x", image=photo(), key=3)
    assert [c.noise is not None for c in vcd.contexts(given, False)] == [False, True]
    assert [c.image is None for c in m3id.contexts(given, False)] == [False, True]


def test_a_transformation_is_drawn_once_for_a_prompt_and_never_while_decoding(monkeypatch):
    names = [drawn(key) for key in range(3000)]
    assert all(abs(names.count(name) - 500) < 90 for name in TRANSFORMS)                    # four deviations
    calls = []
    monkeypatch.setattr(ritual, "transformed", lambda image, name, key: calls.append(name) or image)
    strategy, model = made("ritual"), tiny("llava")
    run(strategy, model, prompts("llava"), new=6)
    assert len(calls) == 1                                              # what `run` asks to know the number of streams


# --------------------------------------------------------------------------------------------------------- transformations

def test_the_six_transformations():
    image = photo()
    x = np.asarray(image)
    made_of = {name: np.asarray(transformed(image, name, 5)) for name in TRANSFORMS}
    assert np.array_equal(made_of["hflip"], x[:, ::-1]) and np.array_equal(made_of["vflip"], x[::-1])
    assert made_of["crop"].shape == (336, 336, 3) and all(made_of[n].shape == x.shape for n in TRANSFORMS if n != "crop")
    white = Image.new("RGB", (40, 40), "white")
    turned = [np.asarray(transformed(white, "rotate", key)) for key in range(12)]
    assert all(set(np.unique(t)) <= {0, 255} for t in turned)           # nearest pixels, black outside
    assert np.mean([t[0, 0].max() == 0 for t in turned]) > 0.5 and all(t[20, 20].min() == 255 for t in turned)
    assert made_of["blur"].astype(float).std() < 0.4 * x.std() and abs(made_of["blur"].mean() - x.mean()) < 3
    assert np.abs(made_of["jitter"].astype(float) - x).mean() > 5
    for name in TRANSFORMS:
        again = np.asarray(transformed(image, name, 5))
        assert np.array_equal(again, made_of[name])
        assert name in ("hflip", "vflip") or not np.array_equal(again, np.asarray(transformed(image, name, 6)))


def test_a_tiny_picture_can_be_blurred():
    assert transformed(photo(4, 5), "blur", 0).size == (5, 4)


# --------------------------------------------------------------------------------------------------------------- questions

def test_lqcd_is_odds_of_two_questions_and_swaps():
    neutral, leading = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    s = made("lqcd", alpha=0.7, beta=0.0).combine([neutral, leading], 0)
    odds = [x[:, 0] - x[:, 1] for x in (neutral, leading, s)]
    torch.testing.assert_close(odds[2], 1.7 * odds[0] - 0.7 * odds[1], rtol=1e-12, atol=1e-12)
    both = made("lqcd", alpha=0.7, beta=0.0, negative="both").combine([neutral, leading, leading], 0)
    torch.testing.assert_close(both, s)


def test_lqcd_without_a_head_is_guidance_by_a_negative_prompt():
    """`transformers` calls it guidance_scale = 1 + alpha."""
    from notan.runs.generation import Combined, open_stream

    model, neutral, leading = tiny("llama"), prompts(pads=(0,), B=1, seed=1), prompts(pads=(0,), B=1, seed=2, L=9)
    how = {"max_new_tokens": 10, "eos_token_id": None, "do_sample": False, "suppress_tokens": MARKS}
    wanted = model.generate(**neutral, guidance_scale=1.8, negative_prompt_ids=leading["input_ids"], **how)
    streams = [(open_stream(model, neutral, **how), [0]), (open_stream(model, leading, **how), [1])]
    ids = model.generate(**neutral, custom_generate=Combined(made("lqcd", alpha=0.8, beta=0.0), streams), **how)
    assert torch.equal(ids, wanted)


@pytest.mark.parametrize("question", [
    "Is there a dog in the picture?", "Describe the scene. How many cats are there?", "Name the animal.",
    "What is it?\nAnswer with one word.", "The sign says stop. What colour is it?", "You are an assistant. Is it red?",
])
def test_a_neutral_question_stays_and_every_hint_goes(question):
    assert neutralise(question) == question
    for template in TEMPLATES:
        for polarity in ("yes", "no"):
            assert lead(question, polarity, template) != question == neutralise(lead(question, polarity, template))


@pytest.mark.parametrize(("led", "neutral"), [
    ("I think there is no dog, but is there one?", "Is there one?"),
    ("My friend says that it is a cat. Is it a cat?", "Is it a cat?"),
    ("There seems to be no dog here. Is there a dog?", "Is there a dog?"),
    ("Is it red? Of course it is red.", "Is it red?"),
    ("The right answer is blue. What colour is it? Be brief.", "What colour is it? Be brief."),
])
def test_hints_in_other_words(led, neutral):
    assert neutralise(led) == neutral


def test_a_hint_alone_is_no_question_and_an_unknown_template_is_named():
    with pytest.raises(NotanError, match="only asserts an answer"):
        neutralise("I am sure that the answer is no.")
    with pytest.raises(NotanError, match="no template 'sur'"):
        lead("Is it?", "yes", "sur")


def test_the_main_stream_reads_the_neutral_question_and_the_other_what_was_given():
    given = Context("Is it red? I am sure that the answer is no.", image=photo())
    one, two = made("lqcd"), made("lqcd", negative="both", template="guess")
    assert one.main(given).prompt == "Is it red?" and one.main(given).image is given.image
    assert [c.prompt for c in one.contexts(given, False)] == [given.prompt]
    assert [c.prompt for c in two.contexts(given, False)] == ["Is it red? I would guess yes.", "Is it red? I would guess no."]
    assert sum(one.weights(0)) == sum(two.weights(0)) == 1
