"""The doctor names what is wrong, and has nothing to say where nothing is."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from notan import cli
from notan.data.doctor import SEVERITIES, Finding, diagnose
from notan.errors import NotanError
from notan.runs.doctor import examine


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def write(path, seed, size=(12, 12), grey=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if grey else (*size, 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


def sound(root, each=130):
    for split, count in (("train", each), ("test", 60)):
        for c, name in enumerate("ab"):
            for i in range(count):
                write(root / split / name / f"{i}.png", seed=1000 * (2 * c + (split == "test")) + i)
    return root


def whats(found, severity=None):
    return " | ".join(f.what for f in found if severity in (None, f.severity))


def test_sound_data_has_no_findings(tmp_path):
    assert diagnose(sound(tmp_path / "ok")) == []


def test_everything_wrong_is_named_worst_first(tmp_path):
    root = sound(tmp_path / "bad")
    train, test = root / "train", root / "test"
    whole = (train / "a" / "0.png").read_bytes()
    (train / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(train / "a" / "1.png", test / "a" / "0.png")  # into the test split
    shutil.copy(train / "a" / "2.png", train / "a" / "copy.png")  # twice in training
    shutil.copy(train / "a" / "3.png", train / "b" / "torn.png")  # under two labels
    write(train / "b" / "1.png", 1, size=(1, 1))
    write(train / "b" / "2.png", 1, size=(12, 90))
    write(train / "b" / "3.png", 1, grey=True)
    Image.new("RGB", (12, 12), "red").save(train / "b" / "4.png")
    for i in range(3):
        write(train / "rare" / f"{i}.png", 900 + i)
    write(test / "new" / "0.png", 999)
    found = diagnose(root)
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=SEVERITIES.index)
    said = whats(found)
    for part in (
        "1 of 265 pictures cannot be read: train/a/0.png",
        "1 of 121 test pictures are also in training: train/a/1.png = test/a/0.png",
        "training pictures repeat another: train/a/2.png = train/a/copy.png",
        "copies with another label: train/a/3.png = train/b/torn.png",
        "smaller than 8 pixels: train/b/1.png (1 x 1)",
        "over four times as long as wide: train/b/2.png (90 x 12)",
        "pictures are grey", "one flat colour: train/b/1.png, train/b/4.png", "fewer than 5 training rows: rare (3)",
        "classes are unbalanced", "shorter sides run from 1 to 12",
    ):  # fmt: skip
        assert part in said, part
    assert "classes only in the test split: new" in whats(found, "error")
    assert "without test rows: rare" in whats(found, "warning")
    assert all(f.fix for f in found if f.severity != "note")


def test_data_that_cannot_be_opened_is_a_finding(tmp_path):
    (tmp_path / "empty").mkdir()
    found = diagnose(tmp_path / "empty")
    assert len(found) == 1 and found[0].severity == "error" and "it is empty" in found[0].what
    assert isinstance(found[0], Finding) and diagnose("no-such-name-at-all/x.csv")[0].severity == "error"


def test_nan_labels_and_few_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,label\n1,a\n2,\n3,b\n")
    assert "empty or NaN in 1 of 3" in whats(diagnose(path, columns={"x": "features"}), "error")
    path.write_text("x,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(9)))
    assert "rows for training" in whats(diagnose(path, columns={"x": "features"}), "error")


def test_one_class_and_no_label(tmp_path):
    for i in range(12):
        write(tmp_path / "one" / "cat" / f"{i}.png", i)
        write(tmp_path / "flat" / f"{i}.png", i)
    assert "there is one class" in whats(diagnose(tmp_path / "one"), "warning")
    assert "there is no label" in whats(diagnose(tmp_path / "flat"), "note")


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_the_command_takes_columns_as_its_notes_advise(tmp_path, capsys, stream):
    for i in range(12):
        write(tmp_path / "data" / "files" / f"{i}.png", i)
    rows = [{"photo_of": f"files/{i}.png", "words": f"number {i}"} for i in range(12)]
    path = tmp_path / "data" / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def said(*more):
        status = cli.main(["doctor", str(path), *stream, *more])
        return status, " ".join(capsys.readouterr().out.split())

    status, found = said()
    assert status == 1 and "say what a column is: --column theirs=image" in found
    status, found = said("--column", "photo_of=image", "--cache-side", "8")
    assert "Columns not used: words (--column words=NAME says what one is)" in found and "Pictures are kept at 8 x 8" in found
    assert "a caption each, of 2 words" in said("--column", "photo_of=image", "--column", "words=text")[1]
    assert cli.main(["doctor", str(path), *stream, "--column", "words"]) == 1 and "has no '='" in capsys.readouterr().err


def test_a_run_has_no_columns_to_rename(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(NotanError, match="is a run folder: no data is opened"):
        examine(tmp_path, {"a": "image"})


def test_rows_of_one_picture_are_no_copies(tmp_path):
    """Two questions about each picture; in training one of them has a copy under another name, and so has one of each split."""
    for split, first, count in (("train", 0, 60), ("test", 100, 20)):
        for i in range(count):
            write(tmp_path / split / f"{i}.png", first + i)
    Image.new("RGB", (12, 12), "red").save(tmp_path / "train" / "7.png")
    write(tmp_path / "train" / "8.png", 1, size=(12, 90))

    def tables():
        for split, count in (("train", 60), ("test", 20)):
            rows = [{"image": f"../{split}/{i}.png", "instruction": asked, "answer": "yes"}
                    for i in range(count) for asked in ("is it?", "is it not?")]  # fmt: skip
            (tmp_path / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return whats(diagnose(tmp_path))

    said = tables()
    assert "repeat another" not in said and "also in training" not in said
    assert "1 pictures are one flat colour: 7.png" in said
    assert "1 pictures are over four times as long as wide: 8.png (90 x 12)" in said
    shutil.copy(tmp_path / "train" / "1.png", tmp_path / "train" / "2.png")
    shutil.copy(tmp_path / "train" / "3.png", tmp_path / "test" / "3.png")
    said = tables()
    assert "1 of 60 training pictures repeat another" in said and "1 of 20 test pictures are also in training" in said
