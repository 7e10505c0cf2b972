"""Triples of a picture, an instruction and an answer: made of attributes and labels, read from conversations, kept on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from notan.data import Data, open_data
from notan.data.build import build
from notan.data.instructions import Question, conversations, instructed, main, plain, triples, write
from notan.data.pictures import Pixels
from notan.data.raw import Raw
from notan.data.split import split
from notan.errors import NotanError

COLOUR = Question(("which colour?", "name the colour", "what colour is it?"), ("red", "green", "blue"))
COUNT = Question(("how many?",), ("one", "", "three"))                  # two of them cannot be asked about
VALUES = np.array([[0, 0], [1, 1], [2, 2], [-1, 0], [1, -1], [-1, -1]])


def coloured(tmp_path, rows: int = 60) -> Data:
    """Pictures of one colour with one, two or three rows of white pixels, and what is in them."""
    colour, count = np.arange(rows) % 3, np.arange(rows) // 3 % 3
    image = np.zeros((rows, 3, 16, 16), dtype=np.uint8)
    for i in range(rows):
        image[i, colour[i]] = 120 + i % 60
        image[i, :, : 2 * (count[i] + 1)] = 255
    raw = Raw("coloured", {"image": Pixels(image), "attributes": np.stack([colour, count], 1), "label": colour},
              classes=("red", "green", "blue"))
    return build(raw, tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0.0)


# ---- questions -------------------------------------------------------------------------------------------------------------

def test_every_known_value_is_asked_about_once():
    found = triples(VALUES, [COLOUR, COUNT])
    asked = sorted(zip(found.picture.tolist(), found.question.tolist(), found.answer))
    assert asked == [(0, 0, "red"), (0, 1, "one"), (1, 0, "green"), (2, 0, "blue"), (2, 1, "three"), (3, 1, "one"),
                     (4, 0, "green")]
    for q, instruction in zip(found.question, found.instruction):
        assert instruction in (COLOUR, COUNT)[q].asked


def test_they_are_a_function_of_seed_and_row_with_all_wordings_and_questions():
    values = np.tile([[0, 0]], (900, 1))
    found, again, other = (triples(values, [COLOUR, COUNT], each=1, seed=s) for s in (0, 0, 1))
    assert found.instruction == again.instruction and found.instruction != other.instruction
    longer = triples(np.tile([[0, 0]], (1000, 1)), [COLOUR, COUNT], each=1)
    assert longer.instruction[:900] == found.instruction
    assert np.array_equal(found.picture, np.arange(900))                # one of each
    counts = np.bincount(found.question)
    assert abs(counts[0] - 450) < 60                                    # four deviations
    for wording in COLOUR.asked:
        assert abs(found.instruction.count(wording) - counts[0] / 3) < 40
    assert len(triples(values, [COLOUR, COUNT], each=2).picture) == 1800


def test_odd_questions_are_refused():
    with pytest.raises(NotanError, match=r"question 1 \('how many\?'\) has 3 answers, the values go up to 3"):
        triples(np.array([[0, 3]]), [COLOUR, COUNT])
    with pytest.raises(NotanError, match="question 0 has no wording"):
        triples(np.array([[0]]), [Question((), ("a",))])
    with pytest.raises(NotanError, match="for 1 questions"):
        triples(VALUES, [COLOUR])


def test_answers_are_the_same_in_any_case_and_punctuation():
    assert plain(" Yes!  ") == plain("yes.") == "yes" != plain("yes, two")
    assert plain("A  Dog's") == "a dog s" and plain("?!") == "?!" != plain("")


# ---- data with instructions ----------------------------------------------------------------------------------------------------

def test_pictures_are_asked_about_and_not_copied(tmp_path):
    data = coloured(tmp_path)
    made = instructed(data, [COLOUR, COUNT._replace(answers=("one", "two", "three"))], each=2)
    assert len(made.train) == 2 * len(data.train) and len(made.test) == 2 * len(data.test) and made.info.rows == len(made.train)
    assert made.info.columns == ("image", "instruction", "answer", "picture_id", "label")
    batch = made.train.take(np.arange(len(made.train)))
    values = data.train.take(batch["picture_id"].numpy())
    assert (batch["image"] == values["image"]).all() and (batch["label"] == values["label"]).all()
    for asked, answer, (colour, count) in zip(batch["instruction"], batch["answer"], values["attributes"].tolist()):
        assert answer == (COLOUR.answers[colour] if asked in COLOUR.asked else ("one", "two", "three")[count])
    assert made.train.name(1) == data.train.name(0)
    assert made.fingerprint != instructed(data, [COLOUR, COUNT._replace(answers=("one", "two", "three"))], seed=1).fingerprint


def test_other_wordings_for_the_test_split_and_questions_about_labels(tmp_path):
    data = coloured(tmp_path)
    made = instructed(data, [Question(("colour?",))], test=[Question(("hue?",))])
    assert set(made.train.stores["instruction"]) == {"colour?"} and set(made.test.stores["instruction"]) == {"hue?"}
    assert set(made.train.stores["answer"]) == {"red", "green", "blue"}
    with pytest.raises(NotanError, match="3 questions for coloured, which has 2 attributes and a label"):
        instructed(data, [COLOUR] * 3)


def test_a_folder_is_written_that_opens_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "home"))
    made = instructed(coloured(tmp_path), [COLOUR, COUNT])
    again = open_data(write(made, tmp_path / "out"))
    for ours, theirs in ((made.train, again.train), (made.test, again.test)):
        a, b = (rows.take(np.arange(len(rows))) for rows in (ours, theirs))
        assert (a["image"] == b["image"]).all() and a["instruction"] == b["instruction"] and a["answer"] == b["answer"]
        same = (x["picture_id"][:, None] == x["picture_id"] for x in (a, b))
        assert (next(same) == next(same)).all()


# ---- tables that ask about pictures --------------------------------------------------------------------------------------------

def table(tmp_path, rows) -> str:
    for name in {row["image"] for row in rows}:
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), len(name), np.uint8)).save(place)
    path = tmp_path / "triples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_one_file_are_one_picture_and_stay_in_one_split(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "home"))
    rows = [{"image": f"p/{'x' * (i % 20 + 1)}.png", "instruction": f"question {i // 20}", "answer": "yes"} for i in range(60)]
    data = open_data(table(tmp_path, rows))
    sides = [rows.values("picture_id") for rows in (data.train, data.test)]
    assert len(data.train) + len(data.test) == 60 and len(data.test) == 12
    assert not set(sides[0]) & set(sides[1])
    for rows in (data.train, data.test):
        batch = rows.take(np.arange(len(rows)))
        shown = batch["image"][:, 0, 0, 0]
        assert ((shown[:, None] == shown) == (batch["picture_id"][:, None] == batch["picture_id"])).all()
        assert (np.bincount(rows.values("picture_id"))[rows.values("picture_id")] == 3).all()


def test_a_split_without_repeated_names_is_as_it_was_and_one_picture_is_still_split():
    ids = np.arange(100)
    assert [len(x) for x in split(ids)] == [80, 20]
    train, test = split(ids // 3)
    assert not set(ids[train] // 3) & set(ids[test] // 3) and 20 <= len(test) <= 22
    assert [len(x) for x in split(np.zeros(10, dtype=np.int64))] == [8, 2]


# ---- conversations -------------------------------------------------------------------------------------------------------

def spoken(tmp_path, entries) -> str:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(entries))
    return str(path)


TALK = [
    {"id": "1", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": "Brown."}]},
    {"id": "2", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hello."}]},
    {"id": "3", "image": "b.png", "conversations": [
        {"from": "human", "value": "How many?\n<image>"}, {"from": "gpt", "value": "Two"},
        {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Nothing was asked"},
        {"from": "human", "value": "And?"}]},
]


def test_turns_of_conversations_become_triples(tmp_path):
    (tmp_path / "pictures").mkdir()
    for x in "ab":
        Image.new("L", (8, 8)).save(tmp_path / "pictures" / f"{x}.png")
    rows, note = conversations(spoken(tmp_path, TALK), tmp_path / "pictures")
    assert [(row["instruction"], row["answer"]) for row in rows] == [
        ("What is it?", "A dog."), ("Which colour?", "Brown."), ("How many?", "Two")]
    assert [row["image"] for row in rows] == [str(tmp_path / "pictures" / f"{x}.png") for x in "aab"]
    assert note == "3 turns about 2 pictures; left out: 1 entries without a picture, 1 empty turns."
    (tmp_path / "pictures" / "b.png").unlink()
    note = conversations(spoken(tmp_path, TALK), tmp_path / "pictures")[1]
    assert note.endswith(f"1 of these pictures do not exist (first: {tmp_path / 'pictures' / 'b.png'}): is --images right?")


@pytest.mark.parametrize(("entries", "said"), [
    ({"a": 1}, "holds a dict"), ([{"image": "a.png"}], "entry 0 of talk.json has no list `conversations`"),
    ([{"image": "a.png", "conversations": [{"role": "user"}]}], "entry 0"), ([TALK[1]], "no turn about a picture")])
def test_other_layouts_are_refused(tmp_path, entries, said):
    with pytest.raises(NotanError, match=said):
        conversations(spoken(tmp_path, entries))


def test_the_command_writes_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "home"))
    main(["--conversations", spoken(tmp_path, TALK), "--images", str(tmp_path / "pictures"),
          "--out", str(tmp_path / "out" / "t.jsonl")])
    first = json.loads((tmp_path / "out" / "t.jsonl").read_text().splitlines()[0])
    assert first == {"image": "../pictures/a.png", "instruction": "What is it?", "answer": "A dog."}
    for name in ("red", "green"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "q.json").write_text(json.dumps([{"asked": ["which colour?"]}]))
    main(["--data", str(tmp_path / "data"), "--questions", str(tmp_path / "q.json"), "--out", str(tmp_path / "asked")])
    assert "8 questions about 8 training pictures, 2 about 2" in capsys.readouterr().out
    assert set(open_data(tmp_path / "asked").train.stores["answer"]) == {"red", "green"}
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "asked")])


def test_the_command_says_what_is_wrong_and_takes_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "home"))

    def refused(*argv):
        with pytest.raises(SystemExit) as stopped:
            main([*argv, "--out", str(tmp_path / "asked")])
        return str(stopped.value.code)                                  # a text is printed to stderr, and the status is 1

    assert refused("--conversations", str(tmp_path / "none.json")).startswith("notan: ")
    rows = [{"image": f"{'x' * (i + 1)}.png", "kind": ("cat", "dog")[i % 2]} for i in range(10)]
    (tmp_path / "q.json").write_text(json.dumps([{"asked": ["what is it?"]}]))
    argv = ["--data", table(tmp_path, rows), "--questions", str(tmp_path / "q.json")]
    assert "notan: 1 questions for triples, which has 0 attributes and no label" in refused(*argv)
    assert "has no '='" in refused(*argv, "--column", "kind")
    main([*argv, "--column", "kind=label", "--out", str(tmp_path / "asked")])
    assert "8 questions about 8 training pictures" in capsys.readouterr().out
