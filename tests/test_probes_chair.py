"""CHAIR, on captions counted by hand."""

from __future__ import annotations

import math

import pytest

from notan.errors import NotanError
from notan.probes.chair import chair, coco, mentions, synonyms

SYNONYMS = """person, man, woman, people,  baby, passenger
dog, puppy
train, locomotive
bus
glass
wine glass
knife, knive
chair, seat
toilet
skis, ski
sheep, lamb
bench
tie
scissors
oven, stove, stove top oven
"""


@pytest.fixture
def words(tmp_path):
    (tmp_path / "s.txt").write_text(SYNONYMS)
    return synonyms(tmp_path / "s.txt")


@pytest.mark.parametrize(("caption", "wanted"), [
    ("Two men and a puppy wait for buses.", ["person", "dog", "bus"]),
    ("Wine glasses, knives and a glass", ["wine glass", "knife", "glass"]),
    ("people; women, BABIES on benches beside sheep and lambs", ["person", "person", "person", "bench", "sheep", "sheep"]),
    ("blue skies above skis and a ski", ["skis", "skis"]), ("dog's dog, dogs!", ["dog", "dog", "dog"]),
    ("a stove top oven", ["oven"]), ("a wine and a glass", ["glass"]), ("", []), ("scissors", ["scissors"]),
])
def test_mentions(words, caption, wanted):
    assert mentions(caption, words) == wanted


def test_special_cases_of_coco(words):
    assert mentions("a baby dog on a train track in a bow tie", words) == ["person", "dog", "train", "tie"]
    assert mentions("a baby dog on the train tracks in a bow tie", coco(words)) == ["dog", "tie"]
    assert mentions("passenger trains, a toilet seat", coco(words)) == ["train", "toilet"]
    assert mentions("the seats of the toilets", words) == ["toilet"] and mentions("the seat", words) == ["chair"]


def test_two_captions_by_hand(words):
    found = chair(["A dog and a puppy on a bench", "A man with a tie", "Nothing much"],
                  [{"dog"}, {"person", "tie", "bus"}, {"bus"}], words)
    assert found == pytest.approx({"CHAIRi": 1 / 5, "CHAIRs": 1 / 3, "recall": 3 / 5, "words": (8 + 5 + 2) / 3})
    silent = chair(["Hm"], [set()], words)
    assert math.isnan(silent["CHAIRi"]) and math.isnan(silent["recall"]) and silent["CHAIRs"] == 0


def test_bad_input(words, tmp_path):
    for text, seen in ((", dog\n", "line 1 starts with a comma"), ("dog, pup\ncat, pup\n", "line 2: 'pup' is a dog already"),
                       ("\n", "is empty")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(NotanError, match=seen):
            synonyms(tmp_path / "bad.txt")
    with pytest.raises(NotanError, match="cannot be read"):
        synonyms(tmp_path / "none.txt")
    with pytest.raises(NotanError, match="'hound' is no object"):
        chair(["a dog"], [{"hound"}], words)
    with pytest.raises(NotanError, match="no captions"):
        chair([], [], words)
