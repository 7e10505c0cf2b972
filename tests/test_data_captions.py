"""Captions that are missing, blank, or there twice are treated alike by every kind of data, read whole or streamed.

A row without a caption is refused, with the count and the first one's name; a string that is blank is a caption, counted in the
notes, and refused where there is no other. A caption's file that is blank has none.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from notan import cli
from notan.data import loader_of, open_data
from notan.data.items import items_of
from notan.errors import NotanError

ROWS = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6), i, np.uint8)).save(file, "png")
    return file.getvalue()


def pictures(root: Path, rows: int = ROWS, first: int = 0) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i in range(rows):
        (root / f"{i}.png").write_bytes(png(first + i))
    return root


def sidecars(root: Path, texts: list[Any]) -> Path:
    pictures(root)
    for i, text in enumerate(texts):
        if text is not None:
            (root / f"{i}.txt").write_text("\n".join(text) if isinstance(text, list) else text)
    return root


def jsonl(root: Path, texts: list[Any]) -> Path:
    pictures(root)
    name = "captions" if any(isinstance(text, list) for text in texts) else "text"
    rows = [{"file_name": f"{i}.png"} | ({} if text is None else {name: text}) for i, text in enumerate(texts)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def csv(root: Path, texts: list[Any]) -> Path:
    pictures(root)
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f'{i}.png,{text or ""}\n' for i, text in enumerate(texts)))
    return root


def parquet(root: Path, texts: list[Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    name = "captions" if any(isinstance(text, list) for text in texts) else "text"
    pq.write_table(pa.table({"image": [png(i) for i in range(ROWS)], name: texts}), root / "x.parquet", row_group_size=5)
    return root


def tar(root: Path, texts: list[Any]) -> Path:
    root.mkdir()
    with tarfile.open(root / "x.tar", "w") as file:
        for i, text in enumerate(texts):
            members = {"png": png(i)}
            if isinstance(text, list):
                members["json"] = json.dumps({"captions": text}).encode()
            elif text is not None:
                members["txt"] = text.encode()
            for suffix, content in members.items():
                about = tarfile.TarInfo(f"{i}.{suffix}")
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
    return root


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("third", [None, "", "\xff"])
def test_texts_beside_pictures_can_be_left_out(tmp_path, stream, third):
    root = sidecars(tmp_path / "data", texts(third))
    if third == "\xff":
        (root / "3.txt").write_bytes(b"\xff")
    with pytest.raises(NotanError, match="or --column text= to leave the texts out"):
        open_data(root, stream=stream)
    data = open_data(root, stream=stream, columns={"text": ""})
    assert data.info.columns == ("image",) and len(data.train) + len(data.test) == ROWS
    items = items_of(root, None, {"text": ""})
    assert (len(items), items.columns, items.text(0)) == (ROWS, ("image",), "")
    for columns in ({"text": "query"}, {"text": "", "label": ""}, {"captions": ""}):
        with pytest.raises(NotanError, match=r"no columns to rename.*at most --column text="):
            open_data(root, stream=stream, columns=columns)


def test_a_command_leaves_texts_beside_pictures_out(tmp_path, capsys):
    root = sidecars(tmp_path / "data", texts(None))
    argv = ["train", "simclr", "--data", str(root), "--steps", "1", "--batch", "4", "--threads", "1", "--encoder",
            "vit:dim=32,depth=1,heads=2,patch=3", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 1 and "--column text=" in capsys.readouterr().err
    assert cli.main([*argv, "--column", "text="]) == 0


def texts(third: Any) -> list[Any]:
    return [third if i == 3 else f"text {i}" for i in range(ROWS)]


def lists(third: Any) -> list[Any]:
    return [third if i == 3 else [f"text {i}", "more"] for i in range(ROWS)]


NO_TEXT = r"column 'text' has no text in 1 of \d+ rows \(first: row \d"
NO_CAPTIONS = r"column 'captions' has no captions in 1 of \d+ rows \(first: row \d"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("make, cells, said", [
    (sidecars, texts(None), r"1 of 12 pictures .* have no caption \(first: 3\.txt is missing\)"),
    (jsonl, texts(None), NO_TEXT), (csv, texts(None), NO_TEXT), (parquet, texts(None), NO_TEXT),
    (tar, texts(None), r"1 of 12 samples of data have no \.txt, or an empty one \(first: x\.tar 3\)"),
    (sidecars, texts(""), r"1 of 12 caption files .* are empty \(first: 3\.txt\)"),
    (sidecars, texts(" \n "), r"1 of 12 caption files .* are empty \(first: 3\.txt\)"),
    (tar, texts(""), r"1 of 12 samples of data have no \.txt, or an empty one \(first: x\.tar 3\)"),
    (tar, texts(" \n "), r"the \.txt of x\.tar 3 is blank"),
    (csv, texts(""), NO_TEXT),                                          # in a csv nothing tells it from none
    (jsonl, lists(None), NO_CAPTIONS), (parquet, lists(None), NO_CAPTIONS),
    (tar, lists(None), r"1 of 12 samples of data have no \.json, or an empty one \(first: x\.tar 3\)"),
    (jsonl, lists([]), NO_CAPTIONS), (parquet, lists([]), NO_CAPTIONS), (tar, lists([]), NO_CAPTIONS),
    (jsonl, lists(["a", None]), NO_CAPTIONS), (parquet, lists(["a", None]), NO_CAPTIONS), (tar, lists(["a", None]), NO_CAPTIONS),
    (sidecars, lists([" ", ""]), r"1 of 12 caption files .* are empty \(first: 3\.txt\)"),
    (jsonl, lists("one text"), r"column 'captions' has a single text in 1 of 12 rows \(first: row 3\).*make every row a list"),
    (jsonl, texts(" ")[3:4] * ROWS, "column 'text' of data is blank in every row"),
    (parquet, lists([""])[3:4] * ROWS, "column 'captions' of data is blank in every row"),
])
def test_rows_without_a_caption_are_refused_by_name(tmp_path, stream, make, cells, said):
    path = make(tmp_path / "data", cells)
    with pytest.raises(NotanError, match=f"(?s){said}"):
        open_data(path, stream=stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("make, cells, said", [
    (jsonl, texts(" "), "1 of 12 rows of column 'text' are blank: they are learned as they are."),
    (parquet, texts(""), "1 of 12 rows of column 'text' are blank: they are learned as they are."),
    (jsonl, lists(["", "a"]), "1 of 12 rows of column 'captions' have a blank caption: they are learned as they are."),
    (parquet, lists(["a", " "]), "1 of 12 rows of column 'captions' have a blank caption: they are learned as they are."),
    (tar, lists([" "]), "1 of 12 rows of column 'captions' have a blank caption: they are learned as they are."),
])
def test_blank_strings_are_counted_and_kept(tmp_path, stream, make, cells, said):
    data = open_data(make(tmp_path / "data", cells), stream=stream)
    assert said in data.notes
    column = "captions" if "captions" in data.info.columns else "text"
    found = [cell for rows in (data.train, data.test) for cell in rows.take(np.arange(len(rows)))[column]]
    assert sorted(map(str, found)) == sorted(map(str, cells))


@pytest.mark.parametrize("stream", [False, True])
def test_a_single_text_as_captions_is_called_as_the_user_calls_it(tmp_path, stream):
    path = jsonl(tmp_path / "data", texts("text 3"))
    with pytest.raises(NotanError, match=r"column 'text' has a single text in every row.*one text a row: --column text=text"):
        open_data(path, stream=stream, columns={"text": "captions"})


def test_two_columns_of_texts_may_be_captions(tmp_path):
    root = pictures(tmp_path / "data")
    rows = [{"file_name": f"{i}.png", "first": f"a {i}", "second": f"b {i}"} for i in range(ROWS)]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(NotanError, match=r"would both become 'text'.*=captions") as said:
        open_data(root, columns={"first": "text", "second": "text"})
    assert "--column second= leaves it out, and --column first=captions --column second=captions makes" in said.value.fix
    data = open_data(root, columns={"first": "captions", "second": "captions"})
    assert data.train.take([0])["captions"][0][1].startswith("b ")
    with pytest.raises(NotanError, match="would both become 'answer'") as said:
        open_data(root, columns={"first": "answer", "second": "answer"})
    assert "captions" not in said.value.fix


@pytest.mark.parametrize("stream", [False, True])
def test_a_column_that_is_there_twice(tmp_path, stream):
    root = pictures(tmp_path / "data")
    line = '{{"file_name": "{0}.png", "text": "a {0}", "text": "b {0}"}}\n'
    (root / "metadata.jsonl").write_text("".join(line.format(i) for i in range(ROWS)))
    with pytest.raises(NotanError, match=r"metadata\.jsonl cannot be read as json.*twice"):
        open_data(root, stream=stream)
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text("file_name,text,text\n" + "".join(f"{i}.png,a {i},b {i}\n" for i in range(ROWS)))
    data = open_data(root, stream=stream)
    assert any("not used: text.1" in note for note in data.notes)
    assert all(text.startswith("a ") for text in data.train.take(np.arange(len(data.train)))["text"])
    second = open_data(root, stream=stream, columns={"text.1": "text", "text": ""})
    assert all(text.startswith("b ") for text in second.train.take(np.arange(len(second.train)))["text"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_beside_two_pictures_is_said(tmp_path, stream):
    root = sidecars(tmp_path / "data", texts("text 3"))
    Image.new("L", (6, 6), 77).save(root / "3.jpg")
    data = open_data(root, stream=stream)
    assert any("1 texts lie beside several pictures, and are captions of each (3.txt ...)" in note for note in data.notes)
    assert data.rows + len(data.test) == ROWS + 1


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_of_a_split_are_looked_for_beside_its_own_table(tmp_path, stream):
    for part, first in (("train", 0), ("test", 100)):
        pictures(tmp_path / "data" / part, 4, first)
        lines = [json.dumps({"file_name": f"{i}.png", "text": f"{first + i}"}) for i in range(4)]
        (tmp_path / "data" / part / "metadata.jsonl").write_text("\n".join(lines))
    data = open_data(tmp_path / "data", stream=stream)
    for rows in (data.train, data.test):
        batch = rows.take(np.arange(4))
        assert [str(i) for i in batch["image"][:, 0, 0, 0].tolist()] == batch["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_number_among_texts_is_named_and_the_others_are_what_they_were(tmp_path, stream):
    with pytest.raises(NotanError, match=r"column 'text' has no text in 1 of 12 rows \(first: row 3\)"):
        open_data(jsonl(tmp_path / "data", texts(3)), stream=stream)


@pytest.mark.parametrize("kind", [parquet, tar])
def test_other_columns_of_the_same_file_are_other_data(tmp_path, kind):
    """Pixels are cached by what they are of: a second column of pictures is not the first one's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "data"
    if kind is parquet:
        root.mkdir()
        table = {"a": [png(i) for i in range(ROWS)], "b": [png(100 + i) for i in range(ROWS)]}
        pq.write_table(pa.table(table), root / "x.parquet")
    else:
        root.mkdir()
        with tarfile.open(root / "x.tar", "w") as file:
            for i in range(ROWS):
                for name, content in (("a", png(i)), ("b", png(100 + i))):
                    about = tarfile.TarInfo(f"{i}.{name}.png")
                    about.size = len(content)
                    file.addfile(about, io.BytesIO(content))
    a, b = (open_data(root, stream=True, columns={name: "image"}) for name in "ab")
    assert a.fingerprint != b.fingerprint
    assert a.train.take([0])["image"].max() < 100 <= b.train.take([0])["image"].min()


def test_files_not_named_after_a_split_are_said_where_others_are(tmp_path):
    for name, first in (("birds-train-0", 0), ("birds-test-0", 100), ("extra", 200)):
        lines = [json.dumps({"text": f"{first + i}"}) for i in range(4)]
        tmp_path.joinpath("data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    for stream in (False, True):
        data = open_data(tmp_path / "data", stream=stream)
        assert (data.rows, len(data.test)) == (4, 4)
        assert any("not used beside train and test: extra.jsonl" in note for note in data.notes)


def test_texts_beside_pictures_are_read_through_once(tmp_path, monkeypatch):
    from notan.data import folder

    root = sidecars(tmp_path / "data", lists(["one"]))
    first = open_data(root, stream=True)
    read = []
    lines = folder._lines
    monkeypatch.setattr(folder, "_lines", lambda path: read.append(path) or lines(path))
    data = open_data(root, stream=True)
    assert data.info.columns == first.info.columns == ("image", "captions") and data.fingerprint == first.fingerprint
    assert sorted(read) == sorted(map(str, root.glob("*.txt")))         # for the rows that are kept, and not to look through them
    batch = loader_of(data, batch_size=8, seed=1).batch(0)
    number = batch["image"][:, 0, 0, 0].tolist()
    assert batch["captions"] == [["one"] if i == 3 else [f"text {i}", "more"] for i in number]
