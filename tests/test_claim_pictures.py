"""The scenes and the tiny model that sees, and the rules of the claims that are made with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from notan.claims import _scenes, _vlm, lqcd, ritual
from notan.claims._scenes import NAMES, PAIRS, PARTNER, Scenes, scenes
from notan.claims._vlm import asked_about, augmented, caption, fresh, lesson, normalised, processor, question
from notan.strategies.lqcd import TEMPLATES, lead


@pytest.fixture(autouse=True)
def drawings(monkeypatch):
    """Sixteen plain colours twice, in place of the drawings, which have to be fetched."""
    g = np.random.default_rng(0)
    ink = np.broadcast_to(g.uniform(0, 1, (2, len(NAMES), 1, 1, 3)), (2, len(NAMES), 14, 14, 3))
    monkeypatch.setattr(_scenes, "_sprites", lambda: ink)


def test_a_scene_is_a_function_of_seed_and_row():
    a, b = scenes(3, range(6), biased=True), scenes(3, range(2, 6), biased=True)
    assert np.array_equal(a.pictures[2:], b.pictures) and np.array_equal(a.cells[2:], b.cells)
    assert not np.array_equal(a.pictures, scenes(4, range(6), biased=True).pictures)
    assert a.pictures.shape == (6, 48, 48, 3) and a.pictures.dtype == np.uint8


def test_what_is_in_a_scene_is_where_it_says(monkeypatch):
    monkeypatch.setattr(_scenes, "NOISE", (0, 0))
    for picture, cells in zip(*scenes(0, range(40), biased=False)):
        drawn = [np.ptp(picture[r * 16: r * 16 + 16, c * 16: c * 16 + 16].reshape(-1, 3).astype(int), axis=0).max() > 0
                 for r in range(3) for c in range(3)]
        assert drawn == (cells >= 0).tolist() and len(set(cells[cells >= 0])) == (cells >= 0).sum() in (2, 3, 4)


def test_partners_go_together_in_biased_scenes_alone():
    for biased, low, high in ((True, 0.45, 0.7), (False, 0.05, 0.3)):
        there = scenes(0, range(1500), biased=biased).present()
        for a, b in PAIRS:
            assert low < there[there[:, NAMES.index(a)]][:, NAMES.index(b)].mean() < high


@pytest.mark.parametrize("absent", ["partner", "any"])
def test_questions_have_true_answers_as_often_yes_as_no(absent):
    found = scenes(1, range(300), biased=False)
    items = asked_about(found, 1, absent)
    there = found.present()
    assert sum(t for *_, t in items) == len(items) / 2 > 50
    for i, name, truth in items:
        assert there[i, NAMES.index(name)] == truth
        assert truth or absent == "any" or there[i, NAMES.index(PARTNER[name])]


@pytest.mark.parametrize("kind", ["plain", "augmented", "leading"])
def test_a_lesson_asks_what_is_true_and_has_labels_on_the_answers_alone(kind):
    words = processor().tokenizer
    batch, found = lesson(kind, 0, range(64), words), scenes(0, range(64), biased=True)
    cells = augmented(found, np.random.default_rng((0, 1, 0))).cells if kind == "augmented" else found.cells
    assert words.unk_token_id not in batch["input_ids"] and batch["input_ids"].shape[1] <= _vlm.ROOM
    hints = []
    for ids, labels, here in zip(batch["input_ids"], batch["labels"], cells):
        said = words.convert_ids_to_tokens(ids[ids != words.pad_token_id])
        labelled = labels[: len(said)] != -100
        assert torch.equal(labels[: len(said)][labelled], ids[: len(said)][labelled]) and (labels[len(said):] == -100).all()
        if "describe" in said:
            told = said[said.index("picture") + 2: said.index("</s>")]
            assert told == caption(here).replace(",", " ,").replace(".", " .").split()
            said, labelled = said[said.index("</s>") + 1:], labelled[said.index("</s>") + 1:]
        asked = None
        for i, word in enumerate(said):
            if word in NAMES:
                asked = NAMES.index(word)
            elif labelled[i] and word != "</s>":
                assert word == ("yes" if asked in here else "no")
            elif word in ("yes", "no"):
                hints.append((word == "yes") == (asked in here))
    assert bool(hints) == (kind == "leading") and (not hints or 0.6 < np.mean(hints) < 0.95)
    for text in (lead(question("dog"), p, t) for t in TEMPLATES for p in ("yes", "no")):
        assert words.unk_token_id not in words(text)["input_ids"]


def test_the_picture_encoder_learns_to_name_cells():
    model = fresh(processor().tokenizer, 0)
    words = torch.tensor(processor().tokenizer.convert_tokens_to_ids(["<unk>", *NAMES]))
    found = scenes(0, range(16), biased=True)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(15):
        losses.append(_vlm.naming(model, found, words))
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


def test_an_augmented_scene_says_what_is_still_to_be_seen():
    """Two objects are always left, none appears; what is mirrored or cropped is named where it has come to lie."""
    found = scenes(0, range(300), biased=True)
    seen = augmented(found, np.random.default_rng(0))
    assert seen.pictures.shape == found.pictures.shape and seen.pictures.dtype == np.uint8
    left, whole = (seen.cells >= 0).sum(1), (found.cells >= 0).sum(1)
    assert left.min() >= 2 and (left <= whole).all() and 0.05 < (left < whole).mean() < 0.5
    assert all(set(b[b >= 0]) <= set(a[a >= 0]) for a, b in zip(found.cells, seen.cells))
    cells, picture, uncropped = np.full((1, 9), -1), np.zeros((1, 48, 48, 3), dtype=np.uint8), 0
    cells[0, [0, 5]] = 0, 1
    picture[0, :16, :16], picture[0, 16:32, 32:] = 100, 200
    for i in range(40):
        turned = augmented(Scenes(picture, cells), np.random.default_rng(i))
        a, b = (int(np.flatnonzero(turned.cells[0] == k)[0]) for k in (0, 1))
        assert a in (0, 2, 6, 8) and b in (3, 5)
        blocks = [turned.pictures[0, y * 16: y * 16 + 16, x * 16: x * 16 + 16] for y in range(3) for x in range(3)]
        assert blocks[a][8, 8, 0] > 0 and blocks[b][8, 8, 0] > 0
        uncropped += (blocks[a] == 100).all() and (blocks[b] == 200).all()
    assert 10 < uncropped < 40


def test_what_is_saved_opens_and_sees_the_same(tmp_path):
    made = processor()
    model = fresh(made.tokenizer, 0).eval()
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    again, opened = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    found = scenes(0, range(2), biased=True)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question("cat")}]}]
    text = opened.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    read = opened(text=[text] * 2, images=[Image.fromarray(x) for x in found.pictures], return_tensors="pt")
    assert torch.equal(read["pixel_values"], normalised(found.pictures))
    assert opened.tokenizer.decode(read["input_ids"][0]).replace("<image>", "").split() == ["is", "there", "a", "cat"]
    with torch.no_grad():
        torch.testing.assert_close(again(**read).logits, model(**read).logits)


# ------------------------------------------------------------------------------------------------------------------- rules

def _ritual(gain: float, best: float):
    noise = (0.0, 0.1, -0.1)
    base = {"T=1": 70.0, "head, T=1/4": 75.0, "best": 76.0, "copy alone, best": 60.0}
    base |= {"ritual": 75.0 + gain, "ritual, best": 76.0 + best}
    return {arm: {s: dict.fromkeys(ritual.STEPS, value + noise[(s + i) % 3]) for s in range(3)}
            for i, (arm, value) in enumerate(base.items())}


def test_ritual_must_beat_the_head_at_its_temperature():
    assert ritual.judge(_ritual(2, 2))[0] == "confirmed"
    assert ritual.judge(_ritual(2, -1))[0] == "open"
    assert ritual.judge(_ritual(-1, 2))[0] == "refuted" and ritual.judge(_ritual(0, 0))[0] == "refuted"


def _lqcd(hinted: float, neutral: float, introduced: float = 0.5, weak: float = 20):
    """lqcd 1 so many points above neutral alone over all hints and without hints, and above leading under harmful ones."""
    arms = {"leading": (50.0, 80.0), "neutral alone": (80.0, 80.0), "lqcd 1": (80 + hinted, 80 + neutral),
            "told to ignore hints": (70.0, 80.0)}
    noise = (0.0, 0.1, -0.1)
    return {arm: {s: {"harmful": (50 + weak if arm == "lqcd 1" else h) + noise[(s + i) % 3], "helpful": h + noise[(s + i) % 3],
                      "hinted": h + noise[(s + i) % 3], "neutral": n + noise[(s + i) % 3], "introduced": introduced,
                      "changed": 0.3} for s in range(3)} for i, (arm, (h, n)) in enumerate(arms.items())}


def test_lqcd_must_beat_the_neutral_question_alone():
    assert lqcd.judge(_lqcd(2, 0))[0] == "confirmed" and lqcd.judge(_lqcd(2, -2))[0] == "open"
    assert lqcd.judge(_lqcd(0, 0))[0] == "refuted" and lqcd.judge(_lqcd(2, 2, weak=-1))[0] == "refuted"
    assert lqcd.judge(_lqcd(0, 0, weak=45))[0] == "refuted"             # gains where all hints are wrong count for nothing
    assert lqcd.judge(_lqcd(2, 0, introduced=0.05))[0] == "open"        # no sycophancy: nothing to cure


def test_the_words_of_a_hint_say_nothing_of_the_answer():
    items = asked_about(scenes(1, range(60), biased=False), 1, "any")
    words = {truth: [lqcd.wording(i) for i, (*_, t) in enumerate(items) if t == truth] for truth in (True, False)}
    assert sorted(words[True]) == sorted(words[False]) and set(words[True]) == set(TEMPLATES)
    assert abs(np.mean([w in _vlm.HELD_OUT for w in words[True]]) - 0.5) < 0.02
