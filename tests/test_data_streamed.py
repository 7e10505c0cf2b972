"""open_data(stream=True): the same rows as without, each once an epoch, none of the test rows, from any kind of shard."""

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered import epoch, numbers, png

from notan.data import loader_of, open_data, sample, shards, streamed
from notan.data.lines import LineShard
from notan.data.plan import Plan
from notan.errors import NotanError
from notan.runs.embed import embed


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def pictures(root: Path, each: int = 10) -> Path:
    for c, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for i in range(each):
            (root / name / f"{i}.png").write_bytes(png(i + each * c))
    return root


def tables(root: Path, kind: str, rows: int = 40, parts: int = 2, first: int = 0, **more: list) -> Path:
    """`rows` rows in files called 0.kind, ...: pictures of the rows' numbers, labels 7 and 9, and a text."""
    root.mkdir(parents=True, exist_ok=True)
    for part, index in enumerate(np.array_split(np.arange(first, first + rows), parts)):
        cells = {"label": [7 + 2 * (int(i) % 2) for i in index], "text": [f"row, {i}" for i in index]}
        if kind == "parquet":
            cells["img"] = [png(i) for i in index]
        else:
            cells["img"] = [f"files/{i}.png" for i in index]
            (root / "files").mkdir(exist_ok=True)
            for i in index:
                (root / "files" / f"{i}.png").write_bytes(png(i))
        write(root / f"{part}.{kind}", cells | more)
    if kind != "parquet":  # a folder with pictures is one of pictures, unless a table is called metadata
        os.rename(root / "files", root.parent / "files")
    return root


def write(path: Path, cells: dict) -> None:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(cells), path, row_group_size=8)
    elif path.suffix == ".jsonl":
        pd.DataFrame(cells).assign(img=["../" + i for i in cells["img"]]).to_json(path, orient="records", lines=True)
    else:
        sep = "\t" if path.suffix == ".tsv" else ","
        pd.DataFrame(cells).assign(img=["../" + i for i in cells["img"]]).to_csv(path, index=False, sep=sep)


KINDS = ["parquet", "jsonl", "csv", "tsv"]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_give_every_row_once_and_hold_the_test_rows_out(tmp_path, kind):
    root = tables(tmp_path / "t", kind)
    data, whole = open_data(root, stream=True), open_data(root)
    assert data.info.columns == whole.info.columns and data.info.classes == whole.info.classes == ("7", "9")
    assert (data.rows, len(data.train), len(data.test)) == (32, 32, 8) and data.info.rows == 32
    held = numbers(data.test.take(np.arange(8))["image"])
    seen = epoch(data)
    assert sorted(numbers(seen["image"]) + held) == list(range(40)) and sorted(seen["row"].tolist()) == list(range(32))
    assert seen["text"] == [f"row, {i}" for i in numbers(seen["image"])]
    assert seen["label"].tolist() == [i % 2 for i in numbers(seen["image"])]
    assert numbers(epoch(data, seed=1)["image"]) != numbers(seen["image"])
    again = open_data(root, stream=True)
    assert again.fingerprint == data.fingerprint and numbers(again.test.take(np.arange(8))["image"]) == held
    assert any("8 rows, by key, are held out for test" in note for note in data.notes)


def test_giant_row_groups_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GIANT", 7)
    monkeypatch.setattr(shards, "BLOCK", 3)
    data = open_data(tables(tmp_path / "t", "parquet"), stream=True)
    assert len(data.streamed.shards) == 6 and max(b - a for s in data.streamed.shards for a, b in s.blocks) <= 3
    held = numbers(data.test.take(np.arange(8))["image"])
    assert sorted(numbers(epoch(data)["image"]) + held) == list(range(40))


def test_a_folder_of_pictures_has_the_split_it_has_without_streaming(tmp_path):
    root = pictures(tmp_path / "pets")
    data, whole = open_data(root, stream=True), open_data(root)
    assert data.info.classes == whole.info.classes == ("a", "b") and data.rows == len(whole.train) == 16
    names = [{d.test.name(i) for i in range(len(d.test))} for d in (data, whole)]
    assert names[0] == names[1]
    seen = epoch(data)
    assert seen["label"].tolist() == [int(i >= 10) for i in numbers(seen["image"])]
    assert sorted(numbers(seen["image"])) == sorted(numbers(whole.train.take(np.arange(16))["image"]))


def test_given_test_splits_are_kept(tmp_path):
    for split, rows in (("train", 20), ("test", 6)):
        tables(tmp_path / "t" / split, "parquet", rows)
        pictures(tmp_path / "p" / split, rows // 2)
    for name in "tp":
        data = open_data(tmp_path / name, stream=True)
        assert (data.rows, len(data.train), len(data.test)) == (20, 20, 6)
        assert sorted(numbers(epoch(data)["image"])) == list(range(20))


def test_no_more_than_so_many_rows_are_kept_and_they_come_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(streamed, "KEPT", 12)
    monkeypatch.setattr(sample, "BLOCK", 4)
    data = open_data(tables(tmp_path / "t", "parquet", 200, 4), stream=True)
    assert (len(data.train), len(data.test), data.rows) == (12, 12, 188)
    names = {data.train.name(i).split(" row ")[0] for i in range(12)}
    assert len(names) > 1 and max(int(data.train.name(i).split(" row ")[1]) for i in range(12)) > 16
    assert "12 of them and 12 test rows are kept at hand" in data.info.notes
    train, test = (set(numbers(rows.take(np.arange(12))["image"])) for rows in (data.train, data.test))
    seen = numbers(epoch(data)["image"])
    assert len(seen) == len(set(seen)) == 188 and train <= set(seen) and not test & set(seen)


class Counted:
    seekable = True

    def __init__(self, name, blocks):
        self.name, stops = name, np.cumsum([0, *blocks]).tolist()
        self.blocks = list(pairwise(stops))

    def read(self, start, stop):
        return {"features": [(self.name, i) for i in range(start, stop)]}

    def where(self, row):
        return f"{self.name} {row}"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(1, 400),
       st.integers(1, 400))  # fmt: skip
def test_drawn_rows_are_disjoint_and_as_many_as_wanted(sizes, a, b):
    parts = [Counted(i, blocks) for i, blocks in enumerate(sizes)]
    rows = sum(map(sum, sizes))
    wanted = [min(a, rows), min(b, rows - min(a, rows))]
    drawn = sample.draw(parts, wanted)
    assert [len(part.names) for part in drawn] == wanted
    every = [cell for part in drawn for cell in part.columns.get("features", [])]
    assert len(every) == len(set(every)) == sum(wanted)
    rest = [sample.Rest(s, {x: p for (of, x), p in drawn[0].places.items() if of == i}) for i, s in enumerate(parts)]
    left = [cell for s in rest for x, y in s.blocks for cell in s.read(x, y)["features"]]
    assert len(left) == rows - wanted[0] and not set(left) & set(drawn[0].columns.get("features", []))
    for s in rest:
        assert [s.where(i) for x, y in s.blocks[-2:] for i in range(x, y)] == [
            f"{n} {i}" for x, y in s.blocks[-2:] for n, i in s.read(x, y)["features"]]  # fmt: skip


def test_files_of_one_class_each_are_mixed(tmp_path):
    for name in "ab":
        lines = [json.dumps({"text": f"{i}", "label": name}) for i in range(1000)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    first = loader_of(open_data(tmp_path, stream=True), batch_size=64, seed=0).batch(0)
    assert 8 < first["label"].sum() < 56


def test_tables_of_numbers_become_features(tmp_path):
    lines = ["x,y,label"] + [f"{i},{i / 2},{'p' if i % 2 else 'q'}" for i in range(20)]
    (tmp_path / "n.csv").write_text("\n".join(lines))
    data = open_data(tmp_path / "n.csv", stream=True)
    seen = epoch(data)
    assert seen["features"].dtype == torch.float32 and data.info.classes == ("p", "q")
    assert seen["features"][:, 1].equal(seen["features"][:, 0] / 2)
    assert seen["label"].tolist() == [1 - int(x) % 2 for x in seen["features"][:, 0]]


def test_text_files_are_read_from_any_block_and_counted_once(tmp_path, monkeypatch):
    path, quoted = tmp_path / "x.csv", [f'"a, ""{i}""\nb"' for i in range(700)]
    path.write_bytes("\ufefftext,target\r\n".encode() + "\r\n".join(f"{q},{i}" for i, q in enumerate(quoted)).encode())
    shard = LineShard(path)
    shard.count(None, tmp_path / "cache")
    shard.plan = Plan({"text": ["text"], "target": ["target"]})
    assert shard.found == ["text", "target"] and shard.numeric == ["target"]
    assert shard.blocks == [(0, 256), (256, 512), (512, 700)]
    for a, b in reversed(shard.blocks):
        found = shard.read(a, b)
        assert found["text"] == [f'a, "{i}"\nb' for i in range(a, b)]
        assert found["target"].tolist() == list(range(a, b))
    monkeypatch.setattr(LineShard, "_counted", None)
    again = LineShard(path)
    again.count(None, tmp_path / "cache")
    assert again.blocks == shard.blocks


def test_unreadable_pictures_are_counted_and_named(tmp_path):
    root = pictures(tmp_path / "pets", 30)
    (root / "a" / "3.png").write_bytes(png(3)[:40])
    (root / "b" / "4.png").write_bytes(b"")
    data = open_data(root, stream=True, limit_bad=0.1)
    assert any("2 of 60 pictures cannot be read and are skipped" in note and "a/3.png (" in note for note in data.notes)
    loader = loader_of(data, batch_size=data.rows, seed=0)
    batch, said = loader.batch(0), loader.skipped()
    bad = [name for name in ("a/3.png", "b/4.png") if name in said]
    assert len(batch["row"]) == data.rows - len(bad) and f"{len(bad)} pictures cannot be read" in said
    assert loader.skipped() == ""
    with pytest.raises(NotanError, match=r"2 of 60 pictures of pets cannot be read: .*a/3\.png \("):
        open_data(root, stream=True, limit_bad=0.01)


def test_pictures_that_go_bad_later_stop_the_stream(tmp_path):
    root = pictures(tmp_path / "pets")
    loader = loader_of(open_data(root, stream=True), batch_size=16, seed=0)
    for path in root.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(NotanError, match=r"16 of 16 pictures cannot be read: [ab]/\d\.png \(not a picture\).*at most 1.0%"):
        loader.batch(0)
    parts = open_data(tables(tmp_path / "t", "parquet"), stream=True)
    (tmp_path / "t" / "1.parquet").unlink()
    with pytest.raises(NotanError, match=r"1\.parquet, rows .* cannot be read \(FileNotFoundError.*open the data again"):
        epoch(parts)


def bad_json(root: Path) -> Path:
    (root / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
    return root


def no_label(root: Path) -> Path:
    (root / "x.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b"}\n{"text": "c", "label": null}')
    return root


def other_columns(root: Path) -> Path:
    tables(root, "parquet")
    write(root / "2.parquet", {"photo": [png(0)], "label": [7]})
    return root


def ragged(root: Path) -> Path:
    (root / "x.csv").write_text("text,label\na,1\nb,1,2\n")
    return root


def two_kinds(root: Path) -> Path:
    (root / "x.csv").write_text("text\na\n")
    (root / "y.jsonl").write_text('{"text": "a"}')
    return root


def no_text(root: Path) -> Path:
    (root / "x.jsonl").write_text("\n".join('{"text": "a"}' if i != 300 else '{"txt": "a"}' for i in range(400)))
    return root


@pytest.mark.parametrize("make, options, said", [
    (lambda root: root, {}, "it is empty"),
    (lambda root: tables(root, "parquet"), {"columns": {"foto": "image"}}, r"no column 'foto'.*one of label, text, img"),
    (lambda root: tables(root, "parquet"), {"columns": {"img": "imag"}}, "did you mean 'image'"),
    (lambda root: pictures(root), {"columns": {"img": "image"}}, "folder of pictures: it has no columns"),
    (lambda root: "digits", {}, "digits is a built-in source.*leave out --stream"),
    (other_columns, {}, r"2\.parquet has the columns photo, label, and no '\w+' as .*0\.parquet has.*rename its columns"),
    (bad_json, {}, r"x\.jsonl cannot be read as jsonl before byte 24 .*repair the line"),
    (ragged, {}, r"x\.csv cannot be read as csv before byte \d+ \(3 cells in a row, 2 in the header\)"),
    (two_kinds, {}, r"holds \.csv and \.jsonl files"),
    (no_label, {}, r"'label' is empty or NaN in 2 of 3 rows of the train split.*--column label="),
    (no_text, {}, r"x\.jsonl, rows 256 to 400: column 'text' has no text in 1 of 144 rows"),
    (lambda root: tables(root, "parquet", 1, 1), {}, "has 1 rows.*at least 2"),
])  # fmt: skip
def test_what_cannot_be_streamed_is_explained(tmp_path, make, options, said):
    root = tmp_path / "data"
    root.mkdir()
    with pytest.raises(NotanError, match=f"(?s){said}"):
        open_data(make(root), stream=True, **options)


def test_batches_and_embed_need_what_a_stream_does_not_have(tmp_path):
    data = open_data(tables(tmp_path / "t", "parquet"), stream=True)
    with pytest.raises(NotanError, match=r"a batch of 33 rows from a stream of 32.*--batch 32 or less"):
        loader_of(data, batch_size=33, seed=0)
    with pytest.raises(NotanError, match=r"chooses its own batches.*leave out --stream"):
        loader_of(data, batch_size=4, seed=0, batches=lambda *_: np.zeros((1, 4)))
    with pytest.raises(NotanError, match="only a sample of its rows"):
        embed("nowhere", data, out=tmp_path / "e.parquet")


def test_what_does_not_fit_names_the_flag(tmp_path, monkeypatch):
    import datasets

    data = open_data(pictures(tmp_path / "pets"), cache_limit_gb=0)
    assert any("decoded on the fly" in note and "--stream" in note for note in data.notes)
    assert not any("--stream" in note for note in open_data(tmp_path / "pets", stream=True, cache_limit_gb=0).notes)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(NotanError, match=r"does not fit on the disk.*--stream"):
        open_data(tables(tmp_path / "t", "parquet"))
