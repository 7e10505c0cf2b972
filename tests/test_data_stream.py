"""A stream's position is (seed, epoch, step): every step can be found alone, by any rank, without a buffer."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from notan.data import keys
from notan.data.pictures import Form
from notan.data.shards import FileShard, IterableShard, ParquetShard, form_of, shards_of
from notan.data.stream import Stream
from notan.errors import NotanError

FORM = Form(6, 1, "crop")


class Numbers:
    """A shard of features that says which row each one is."""

    def __init__(self, first, rows, block, seekable=True):
        self.name, self.first, self.seekable, self.reads = f"shard {first}", first, seekable, []
        self.blocks = [(a, min(a + block, rows)) for a in range(0, rows, block)]

    def read(self, start, stop):
        self.reads.append(start)
        return {"features": [[float(self.first + i)] for i in range(start, stop)]}


def stream(sizes=(30, 7, 19), block=5, **settings_):
    first = np.cumsum([0, *sizes])
    shards = [Numbers(int(a), n, block) for a, n in zip(first, sizes)]
    return Stream(shards, **({"form": None, "batch_size": 8, "seed": 1, "window": 3} | settings_))


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), i, np.uint8)).save(file, "png")
    return file.getvalue()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_rows_and_any_step_is_found_alone(sizes, block, window, seed):
    batch_size = min(8, sum(sizes))
    whole = stream(sizes, block, batch_size=batch_size, window=window, seed=seed)
    batches = [whole.batch(step) for step in range(2 * whole.steps_per_epoch)]
    for epoch in range(2):
        rows = torch.cat([b["row"] for b in batches[epoch * whole.steps_per_epoch :][: whole.steps_per_epoch]])
        assert len(set(rows.tolist())) == len(rows) == sum(sizes) - whole.dropped
    for step in (0, len(batches) - 1, len(batches) // 2):
        alone = stream(sizes, block, batch_size=batch_size, window=window, seed=seed)
        assert equal(alone.batch(step), batches[step])
        assert batches[step]["features"][:, 0].long().equal(batches[step]["row"])
        epoch = step // whole.steps_per_epoch
        assert np.array_equal(batches[step]["key"], keys.row_keys(seed, epoch, batches[step]["row"].numpy()))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 30))
def test_slices_of_ranks_concatenate(size, step):
    parts = [stream(rank=r, size=size).batch(step) for r in range(size)]
    whole = stream().batch(step)
    assert all(torch.equal(torch.cat([p[name] for p in parts]), whole[name]) for name in whole)


def test_it_mixes_shards_and_reads_only_what_it_needs():
    mixed = stream(sizes=(200, 200, 200), block=10, window=5)
    rows = mixed.batch(0)["row"]
    assert len(set((rows // 10).tolist())) > 2  # several blocks in one batch
    assert sum(len(shard.reads) for shard in mixed.shards) == 5
    assert mixed.batch(0)["row"].tolist() != mixed.batch(mixed.steps_per_epoch)["row"].tolist()
    at = mixed.at(7)
    assert equal(next(at), mixed.batch(7)) and equal(next(at), mixed.batch(8))
    at.close()


def test_parquet_shards(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for s in range(2):
        cells = [{"bytes": png(20 * s + i), "path": None} for i in range(20)]
        table = pa.table({"img": cells, "label": [i % 2 for i in range(20)], "junk": ["x"] * 20})
        pq.write_table(table, tmp_path / f"{s}.parquet", row_group_size=6)
    shards = shards_of(tmp_path)
    assert shards[0].blocks == [(0, 6), (6, 12), (12, 18), (18, 20)]
    assert form_of(shards[0], 64) == FORM
    batches = [Stream(shards, form=FORM, batch_size=10, seed=0).batch(i) for i in range(4)]
    seen = torch.cat([b["row"] for b in batches])
    assert seen.sort().values.equal(torch.arange(40))
    for b in batches:
        assert b["image"].shape == (10, 1, 6, 6) and b["image"][:, 0, 0, 0].long().equal(b["row"])
        assert b["label"].equal(b["row"] % 20 % 2) and "junk" not in b
    (tmp_path / "bad.parquet").write_bytes(b"x")
    with pytest.raises(NotanError, match="cannot be read as parquet"):
        ParquetShard(tmp_path / "bad.parquet")


def test_unreadable_pictures_leave_their_batch_and_stop_it_beyond_the_limit(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    (tmp_path / "7.png").write_bytes(png(7)[:30])
    shard = FileShard("folder", [str(tmp_path / f"{i}.png") for i in range(20)], [i % 3 for i in range(20)])
    lenient = Stream([shard], form=FORM, batch_size=20, seed=0, limit_bad=0.05)
    batch = lenient.batch(0)
    assert sorted(batch["row"].tolist()) == [i for i in range(20) if i != 7] and batch["image"].shape[0] == 19
    assert list(lenient.bad) == [7] and "7.png" in lenient.bad[7]
    assert "1 pictures cannot be read" in lenient.skipped() and lenient.skipped() == ""
    with pytest.raises(NotanError, match=r"1 of 20 pictures cannot be read: \S*7\.png \(not a picture\)"):
        Stream([shard], form=FORM, batch_size=20, seed=0, limit_bad=0).batch(0)


def test_an_iterable_dataset_is_read_forwards_and_resumed():
    import datasets

    table = datasets.Dataset.from_dict({"caption": [f"text {i}" for i in range(600)], "label": list(range(600))})
    make = lambda: Stream(  # noqa: E731
        [IterableShard(table.to_iterable_dataset(), 600)], form=None, batch_size=50, seed=0, window=1
    )
    undisturbed = [make().batch(i) for i in range(3)] + [(s := make()).batch(0), s.batch(9)]
    rows = undisturbed[0]["row"].tolist()
    assert max(rows) < 256 and undisturbed[0]["text"] == [f"text {i}" for i in rows]
    again = make()
    assert [again.batch(i)["text"] for i in range(3)] == [b["text"] for b in undisturbed[:3]]
    assert make().batch(9)["text"] == undisturbed[4]["text"]
    short = Stream([IterableShard(table.to_iterable_dataset(), 700)], form=None, batch_size=700, seed=0)
    with pytest.raises(NotanError, match="ended at row 600 of 700"):
        short.batch(0)


def test_labels_by_name_and_bad_settings():
    class Names(Numbers):
        def read(self, start, stop):
            return {"label": ["no", "yes"] * ((stop - start) // 2)}

    shard = Names(0, 4, 4)
    assert sorted(Stream([shard], form=None, batch_size=4, seed=0, classes=["no", "yes"]).batch(0)["label"].tolist()) == [
        0, 0, 1, 1]  # fmt: skip
    with pytest.raises(NotanError, match="classes="):
        Stream([shard], form=None, batch_size=4, seed=0).batch(0)
    with pytest.raises(NotanError, match="from a stream of 4"):
        Stream([shard], form=None, batch_size=5, seed=0)


def test_a_folder_of_pictures_in_shares(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(5):
            (tmp_path / c / f"{i}.png").write_bytes(png(i + 5 * "ab".index(c)))
    shards = shards_of(tmp_path, rows=4)
    assert [s.blocks for s in shards] == [[(0, 4)], [(0, 4)], [(0, 2)]]
    batch = Stream(shards, form=FORM, batch_size=10, seed=0).batch(0)
    shown = batch["image"][:, 0, 0, 0].long()
    assert batch["label"].equal((shown >= 5).long()) and shown.sort().values.equal(torch.arange(10))
    order = shown[batch["row"].argsort()].tolist()
    assert order == [int(s.paths[i][-5]) + 5 * s.labels[i] for s in shards for i in range(len(s.paths))]
    assert set(shards[0].labels) == {0, 1}  # neighbours are not of one class
