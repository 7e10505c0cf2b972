"""From pictures to captions: filters, templates, checks of captions, and a run that goes on where it was interrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_runs_prompts import model  # noqa: F401

from notan.data import curate, open_data
from notan.data.curate import (
    aspect,
    confident,
    keypoints,
    short_side,
    template_bank,
    webperson,
    why_dropped,
    why_poor,
    with_slots,
)
from notan.errors import NotanError
from notan.methods._example import tiny_dual_encoder
from notan.runs.caption_data import caption_data, cosines, unsupported, vlm_captioner, word_support

GOOD = {"width": 100, "height": 250, "confidence": 0.9, "keypoints": [(0, 0, 0.9)] * 17}


def test_filters_say_why_and_the_first_reason_counts():
    assert why_dropped(GOOD, webperson()) == ""
    changed = [({"width": 90}, "short side up to 90"), ({"width": 91, "height": 180}, "aspect outside 2 to 4"),
               ({"height": 401}, "aspect outside 2 to 4"), ({"confidence": 0.85}, "confidence up to 0.85")]
    for change, why in changed:
        assert why_dropped(GOOD | change, webperson()) == why
    assert why_dropped(GOOD | {"width": 50, "confidence": 0.1}, webperson()) == "short side up to 90"
    assert [why_dropped(GOOD | {"height": h}, [aspect(low=2, high=4)]) for h in (200, 400)] == ["", ""]


@pytest.mark.parametrize("seen, why", [
    (range(17), ""), ([0, 1, 5, 6, 7, 8, 9, 11], ""), ([0, 1, 5, 6, 7, 8, 11], "fewer than 8 keypoints"),
    ([0, 1, 5, 6, 7, 8, 9, 10], "fewer than 1 of hips"), ([0, 5, 6, 7, 8, 9, 10, 12], "fewer than 2 of head"),
])
def test_keypoints_in_all_and_by_group(seen, why):
    points = [(1, 1, 0.9 if i in seen else 0.4) for i in range(17)]
    assert why_dropped(GOOD | {"keypoints": points}, webperson()) == why


def test_records_and_filters_that_cannot_be_are_named():
    with pytest.raises(NotanError, match="keypoints: "):
        keypoints(least=1)({"width": 1})
    for record in ({"height": 2}, {"width": None, "height": 2}, {"width": 0, "height": 2}, {"width": "9", "height": 2}):
        with pytest.raises(NotanError, match="a number for width"):
            short_side(above=1)(record)
    with pytest.raises(NotanError, match="an aspect from 4 to 2"):
        aspect(low=4, high=2)
    with pytest.raises(NotanError, match="above = 2"):
        confident(above=2)


# --------------------------------------------------------------------------------------------------------------- templates

def planes(texts):
    """Sentences lie in three directions by their first letter, those with more words further from it."""
    return np.array([[10.0 * (t[0] == c) + 0.3 * len(t.split()) * (t[0] != c) for c in "abc"] for t in texts])


def test_a_bank_has_of_each_cluster_the_most_central_and_some_others():
    sentences = [f"{c} {'x ' * n}".strip() for c in "abc" for n in range(8)]
    bank = template_bank([*sentences, sentences[0], " "], planes, clusters=3, others=2)
    assert len(bank) == 9 == len(set(bank)) and [sum(t[0] == c for t in bank) for c in "abc"] == [3, 3, 3]
    z = planes(sentences) / np.linalg.norm(planes(sentences), axis=1, keepdims=True)
    for c in "abc":
        own = [i for i, t in enumerate(sentences) if t[0] == c]
        centre = z[own].mean(0)
        assert next(t for t in bank if t[0] == c) == sentences[min(own, key=lambda i: ((z[i] - centre) ** 2).sum())]
    assert bank == template_bank(sentences, planes, clusters=3, others=2)
    assert bank != template_bank(sentences, planes, clusters=3, others=2, seed=1)
    assert len(template_bank(sentences, planes, clusters=3, others=0)) == 3


def test_a_bank_takes_what_is_rewritten_and_no_more_than_it_should():
    sentences = [f"{c} {'x ' * n}".strip() for c in "abc" for n in range(8)]
    given = []

    def rewrite(chosen):
        given.append(chosen)
        return [t + " again" for t in chosen]

    bank = template_bank(sentences, planes, clusters=3, others=1, rewrite=rewrite)
    assert len(given) == 3 and len(bank) == 12 and sum(t.endswith("again") for t in bank) == 6
    few = template_bank(sentences, planes, clusters=3, others=1, rewrite=rewrite, most=5)
    assert len(few) == 5 and set(few) <= set(bank)
    with pytest.raises(NotanError, match="2 different sentences for 3 clusters"):
        template_bank(["a", "b", "a"], planes, clusters=3)
    with pytest.raises(NotanError, match=r"embeddings of shape \(2, 3\), or not finite, for 3"):
        template_bank(["a", "b", "c"], lambda texts: planes(texts[:2]), clusters=3)


def test_words_become_slots():
    words = {"colour": ["red", "dark red"], "garment": ["coat"]}
    found = with_slots("A man in a dark red coat, Red shoes and a redcoat.", words)
    assert found == "A man in a {colour} {garment}, {colour} shoes and a redcoat."
    assert with_slots("as it is", {}) == "as it is"


@pytest.mark.parametrize("caption, why", [
    ("A man in a red coat walks.", ""), ("A man.", "fewer than 4 words"), ("w " * 81, "more than 80 words"),
    ("A man in a {colour} coat.", "a slot that was not filled"), ("A man before a grey background.", "says 'background'"),
    ("A man in the backgrounds of it.", ""), ("He wears red shoes. He wears red shoes.", "a sentence said twice"),
])
def test_poor_captions(caption, why):
    assert why_poor(caption) == why


# -------------------------------------------------------------------------------------------------------------- the pipeline

@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(7):
        Image.new("RGB", (20, 40 if i < 5 else 20), (30 * i, 90, 200)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def said(pictures, templates):
    assert all(p.mode == "RGB" for p in pictures)
    return [[f"{t} of brightness {p.getpixel((0, 0))[0]}", "too short"] for p, t in zip(pictures, templates)]


def test_pictures_become_a_training_set_and_a_report(pictures, tmp_path):
    out = tmp_path / "out"
    templates = ["one plain picture", "another plain picture"]
    how = {"out": out, "filters": [aspect(low=2, high=4)], "batch": 3, "templates": templates}
    report = caption_data(pictures, said, **how)
    assert report["dropped"] == {"aspect outside 2 to 4": 2, "cannot be read": 1, "caption: fewer than 4 words": 5}
    assert (report["pictures"], report["kept"], report["captions"]) == (8, 5, 5) and report["different words"] == 11
    assert json.loads((out / "report.json").read_text()) == report
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert {(out / line["image"]).resolve() for line in lines} == {pictures / f"{i}.png" for i in range(5)}
    assert all(line["captions"] == [f"{line['template']} of brightness {30 * int(line['image'][-5])}"] for line in lines)
    data = open_data(out / "captions.jsonl")
    assert "captions" in data.info.columns and len(data.train) + len(data.test) == 5


def test_an_interrupted_run_ends_as_an_undisturbed_one(pictures, tmp_path):
    calls = []

    def dies(some, templates):
        calls.append(len(some))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return said(some, templates)

    how = {"filters": [aspect(low=2, high=4)], "templates": ["one plain picture", "another plain picture"], "batch": 2}
    whole = caption_data(pictures, said, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        caption_data(pictures, dies, out=tmp_path / "part", **how)
    with (tmp_path / "part" / "dropped.jsonl").open("a") as file:       # a line of a picture that is not done, and half a line
        line = {"image": "../pictures/3.png", "caption": "x", "why": "caption: fewer than 4 words", "whole": False}
        file.write(json.dumps(line) + '\n{"ima')
    asked = []
    part = caption_data(pictures, lambda p, t: (asked.extend(p), said(p, t))[1], out=tmp_path / "part", **how)
    assert part == whole and len(asked) == 3                            # two were done
    assert (tmp_path / "part" / "captions.jsonl").read_text() == (tmp_path / "whole" / "captions.jsonl").read_text()
    caption_data(pictures, lambda p, t: pytest.fail("all is done"), out=tmp_path / "part", **how)


def test_captions_with_a_low_score_are_dropped(pictures, tmp_path):
    def bright(some, captions):
        return [float(p.getpixel((0, 0))[0]) for p in some]

    found = caption_data(pictures, said, out=tmp_path / "out", score=bright, least=60.0, templates=["one plain picture"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [line["scores"] for line in lines] == [[60.0], [90.0], [120.0], [150.0], [180.0]]
    assert found["dropped"]["caption: score below the least"] == 2 == found["dropped"]["no caption was kept"]


def test_records_of_a_detector_and_bad_input(pictures, tmp_path):
    records = [{"image": str(pictures / f"{i}.png"), "confidence": i / 5} for i in range(5)]
    found = caption_data(records, lambda p, t: ["a caption of five words"] * len(p), out=tmp_path / "a",
                         filters=[confident(above=0.5)])
    assert found["kept"] == 2 and found["templates used"] == 0
    with pytest.raises(NotanError, match="captions of 1 pictures, of 7 asked"):
        caption_data(pictures, lambda p, t: ["one"], out=tmp_path / "b")
    with pytest.raises(NotanError, match="has no pictures"):
        caption_data([], said, out=tmp_path / "c")
    with pytest.raises(NotanError, match="is no folder"):
        caption_data(tmp_path / "nowhere", said, out=tmp_path / "d")
    with pytest.raises(NotanError, match="`image`, the path of a file"):
        caption_data([{"width": 3}], said, out=tmp_path / "e")


# ----------------------------------------------------------------------------------------------------- models that take part

def test_scores_by_two_encoders():
    torch.manual_seed(0)
    dual, texts = tiny_dual_encoder().eval(), ["the cat saw a dog", "old house by the sea"]
    some = [Image.effect_noise((20, 30), 60).convert("RGB"), Image.new("RGB", (16, 16), (250, 10, 10))]
    found = cosines(dual)(some, texts)
    assert len(found) == 2 and found[0] != found[1] and found == pytest.approx(
        [cosines(dual)(some[i : i + 1], texts[i : i + 1])[0] for i in range(2)], abs=1e-5)
    support = word_support(dual)(some, texts)
    assert ["".join(t for t, _ in one) for one in support] == [t.replace(" ", "") for t in texts]
    assert all(0 <= s <= 1 for one in support for _, s in one)
    shares = unsupported(dual, below=0.1)(some, texts)
    assert shares == [-sum(s < 0.1 for _, s in one) / len(one) for one in support] and curate.HIPS == (11, 12)


def test_a_model_that_sees_writes_captions(model, tmp_path):  # noqa: F811
    write = vlm_captioner(model, prompt="w1 w2", tokens=6)
    some = [Image.effect_noise((20, 30), 60).convert("RGB"), Image.new("RGB", (16, 16), (250, 10, 10))]
    found = write(some, ["", "w3 w4 w5"])
    assert len(found) == 2 and all(isinstance(one, str) for one in found)
    assert write(some[:1], [""]) == found[:1] and write(some[1:], [""]) != write(some[:1], [""])
    assert write(some[1:], [""]) != write(some[1:], ["w3 w4 w5"])       # the template is read
