"""Names on the hub of `datasets`: no hub is asked here. A folder that `datasets` understands goes through the same calls."""

import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from notan.data import hub, loader_of, open_data, streamed, tables
from notan.data.shards import ParquetShard, undressed
from notan.errors import NotanError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), i, np.uint8)).save(file, "png")
    return file.getvalue()


def repository(root):
    """Parquet files as the hub has them: split names, row groups, classes and pictures as `datasets` writes them."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, rows, parts in (("train", 30, 2), ("test", 10, 1)):
        for part, index in enumerate(np.array_split(np.arange(rows), parts)):
            cells = {"img": [{"bytes": png(i), "path": None} for i in index], "label": [int(i) % 2 for i in index]}
            table = datasets.Dataset.from_dict(cells, features=features)
            (root / "data").mkdir(parents=True, exist_ok=True)
            table.to_parquet(root / "data" / f"{split}-{part:05d}-of-{parts:05d}.parquet", batch_size=4)
    return root


def opened(found, tmp_path):
    return streamed.open_stream(found, tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0)


def test_a_repository_is_read_whole(tmp_path):
    raw = tables.read_hub(str(repository(tmp_path / "repo")), {"img": "image"}, "")
    assert raw.classes == ("no", "yes") and len(raw.train["label"]) == 30 and len(raw.test["image"]) == 10
    assert raw.train["label"].tolist() == [0, 1] * 15 and raw.train["image"].read(7) == png(7)


def test_a_repository_of_parquet_files_is_streamed(tmp_path):
    found = streamed.hub(str(repository(tmp_path / "repo")), None, "")
    assert [type(shard) for shard in found.train] == [ParquetShard] * 2 and len(found.train[0].blocks) > 1
    data = opened(found, tmp_path)
    assert (data.rows, len(data.test), data.info.classes) == (30, 10, ("no", "yes"))
    batch = loader_of(data, batch_size=30, seed=0).batch(0)
    shown = batch["image"][:, 0, 0, 0]
    assert shown.sort().values.tolist() == list(range(30)) and batch["label"].equal(shown.long() % 2)
    other = repository(tmp_path / "other")
    (other / "data" / "test-00000-of-00001.parquet").unlink()
    assert opened(streamed.hub(str(other), None, ""), tmp_path).fingerprint != data.fingerprint


def test_addresses_are_opened_through_fsspec(tmp_path):
    root = repository(tmp_path / "repo")
    near, far = (ParquetShard(prefix + str(root / "data" / "test-00000-of-00001.parquet")) for prefix in ("", "file://"))
    assert near.blocks == far.blocks and near.labels("label") == far.labels("label")
    (tmp_path / "x.png").write_bytes(png(3))
    assert undressed(f"file://{tmp_path / 'x.png'}") == png(3)


def test_what_is_no_parquet_is_one_long_stream(tmp_path):
    root = tmp_path / "repo"
    root.mkdir()
    (root / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)))
    with pytest.raises(NotanError, match=r"does not say how many rows.*leave out --stream"):
        streamed.hub(str(root), None, "")
    (root / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': even\n          '1': odd\n"
        "  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: 40\n---\n"
    )
    data = opened(streamed.hub(str(root), None, ""), tmp_path)
    assert (data.rows, len(data.test), data.info.classes) == (32, 8, ("even", "odd"))
    batch = loader_of(data, batch_size=32, seed=0).batch(0)
    held = data.test.take(np.arange(8))["text"]
    assert sorted(batch["text"] + held) == sorted(f"t{i}" for i in range(40))
    assert batch["label"].tolist() == [int(t[1:]) % 2 for t in batch["text"]]


@pytest.fixture
def no_hub(monkeypatch):
    """An endpoint where nothing listens."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unreachable_name_is_explained_at_once(no_hub, stream):
    import datasets

    start = time.perf_counter()
    with pytest.raises(NotanError) as caught:
        open_data("nobody/nothing", stream=stream)
    assert time.perf_counter() - start < 20  # seconds, not the minutes of its retries
    assert "'nobody/nothing' is no built-in source, no file and no folder here" in caught.value.seen
    assert "hub cannot be reached" in caught.value.seen and "not downloaded before" in caught.value.seen
    assert "connect to the network" in caught.value.fix and "save_to_disk" in caught.value.fix
    assert not datasets.config.HF_HUB_OFFLINE and datasets.is_progress_bar_enabled()


def test_a_name_that_the_hub_does_not_know_is_said_as_the_hub_says_it(monkeypatch):
    import datasets

    def unknown(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub")

    monkeypatch.setattr(hub, "_unreachable", lambda name: "")
    monkeypatch.setattr(datasets, "load_dataset", unknown)
    with pytest.raises(NotanError, match=r"hub says: Dataset 'nobody/nothing' doesn't exist.*a hub name"):
        open_data("nobody/nothing")


def test_without_a_hub_what_was_downloaded_before_is_used(tmp_path, no_hub):
    """The cache of a repository, laid down as a download would have."""
    import datasets

    datasets.load_dataset(str(repository(tmp_path / "pictures")), cache_dir=str(tmp_path / "hf"))
    shutil.move(tmp_path / "hf" / "pictures", tmp_path / "hf" / "nobody___pictures")
    data = open_data("nobody/pictures")
    assert (len(data.train), len(data.test), data.info.classes) == (30, 10, ("no", "yes"))
    with pytest.raises(NotanError, match=r"has been downloaded as a whole.*leave out --stream"):
        open_data("nobody/pictures", stream=True)


def test_splits_that_share_their_label_alone(tmp_path):
    import datasets

    parts = {"train": {"text": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}, "test": {"label": [0, 1]}}
    datasets.DatasetDict({name: datasets.Dataset.from_dict(rows) for name, rows in parts.items()}).save_to_disk(tmp_path / "d")
    data = open_data(tmp_path / "d")
    assert data.info.columns == ("label",) and "Column text is not in the test split and is left out." in data.notes
