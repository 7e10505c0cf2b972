"""The loader's position is (seed, epoch, step): resumed, split over ranks or made ahead, the batches are the same."""

import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.data import Loader, Rows, keys
from notan.errors import NotanError


def rows(n=50):
    image = np.arange(n * 12, dtype=np.int64).astype(np.uint8).reshape(n, 3, 2, 2)
    return Rows({"image": image, "label": np.arange(n) % 3})


def equal(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.integers(0, 40), st.integers(0, 2**40), st.integers(0, 3))
def test_resumed_at_a_step_equals_undisturbed(batch_size, step, seed, prefetch):
    undisturbed = Loader(rows(), batch_size=batch_size, seed=seed, prefetch=prefetch).at(0)
    resumed = Loader(rows(), batch_size=batch_size, seed=seed, prefetch=0).at(step)
    for a, b in zip(islice(undisturbed, step, step + 3), resumed):
        assert equal(a, b)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 50), st.integers(1, 4), st.integers(0, 20))
def test_slices_of_ranks_concatenate_to_the_global_batch(batch_size, size, step):
    whole = Loader(rows(), batch_size=batch_size, seed=3).batch(step)
    parts = [Loader(rows(), batch_size=batch_size, seed=3, rank=r, size=size).batch(step) for r in range(size)]
    for name in whole:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    counts = [len(part["row"]) for part in parts]
    assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    loader = Loader(rows(), batch_size=10, seed=0)
    epochs = [torch.cat([loader.batch(e * 5 + i)["row"] for i in range(5)]) for e in range(2)]
    assert loader.steps_per_epoch == 5 and loader.dropped == 0
    for order in epochs:
        assert order.sort().values.equal(torch.arange(50))
    assert not epochs[0].equal(epochs[1])


def test_dropped_rows_are_counted_and_change_with_the_epoch():
    loader = Loader(rows(), batch_size=16, seed=0)
    assert loader.steps_per_epoch == 3 and loader.dropped == 2
    missing = {frozenset(range(50)) - frozenset(torch.cat([loader.batch(3 * e + i)["row"] for i in range(3)]).tolist())
               for e in range(5)}  # fmt: skip
    assert len(missing) > 1


def test_keys_are_those_of_seed_epoch_and_row():
    batch = Loader(rows(), batch_size=8, seed=7).batch(9)  # 6 steps an epoch: epoch 1
    assert np.array_equal(batch["key"].numpy(), keys.row_keys(7, 1, batch["row"].numpy()))
    assert batch["label"].equal(batch["row"] % 3)


def test_batches_of_a_method():
    def by_label(columns, batch_size, seed, epoch):
        order = np.argsort(columns["label"] * 1000 + keys.shuffle(seed, epoch, len(columns["label"])))
        return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

    loader = Loader(rows(), batch_size=12, seed=0, batches=by_label)
    assert loader.steps_per_epoch == 4 and loader.dropped == 2
    assert loader.batch(0)["label"].unique().tolist() == [0]
    assert equal(loader.batch(6), next(Loader(rows(), batch_size=12, seed=0, batches=by_label).at(6)))
    with pytest.raises(NotanError, match="as many steps every epoch"):
        shrinking = Loader(rows(), batch_size=2, seed=0, batches=lambda c, b, s, e: np.zeros((9 - e, b), int))
        shrinking.batch(9)


@pytest.mark.parametrize("settings_, said", [
    ({"batch_size": 51}, r"batch of 51 rows, but the training split has 50.*--batch 50"),
    ({"batch_size": 0}, "at least 1"),
    ({"batch_size": 2, "size": 3}, "for 3 ranks"),
])  # fmt: skip
def test_batches_that_cannot_be(settings_, said):
    with pytest.raises(NotanError, match=said):
        Loader(rows(), seed=0, **settings_)


def test_rows_take_select_and_refuse():
    some = rows().select(np.array([4, 2, 40]))
    assert len(some) == 3 and some.values("label").tolist() == [1, 2, 1]
    batch = some.take(np.array([2, 0]))
    assert batch["row"].tolist() == [2, 0] and batch["image"].equal(rows().take(np.array([40, 4]))["image"])
    assert some.select(np.array([1])).values("label").tolist() == [2] and some.name(2) == "row 40"
    with pytest.raises(NotanError, match="row 3 was asked for"):
        some.take(np.array([3]))
    with pytest.raises(NotanError, match="too large"):
        some.values("image")
    with pytest.raises(NotanError, match="differ in length"):
        Rows({"label": np.arange(3), "target": np.arange(4)})


def test_a_batch_owns_its_memory():
    source = rows()
    batch = source.take(np.array([1]))
    batch["image"].zero_()
    batch["label"].zero_()
    assert source.take(np.array([1]))["image"].sum() > 0 and source.values("label")[1] == 1


def test_the_thread_ends_with_its_reader_and_passes_errors_on():
    class Failing:
        shape = (50, 1, 1, 1)

        def __len__(self):
            return 50

        def __getitem__(self, index):
            raise NotanError("the disk is gone")

    with pytest.raises(NotanError, match="the disk is gone"):
        next(Loader(Rows({"image": Failing()}), batch_size=4, seed=0).at(0))
    reader = Loader(rows(), batch_size=4, seed=0).at(0)
    next(reader)
    reader.close()
    deadline = time.monotonic() + 5
    while any(t.name == "notan-loader" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name == "notan-loader" for t in threading.enumerate())


def test_a_batch_of_fashion_size_takes_well_under_a_millisecond():
    image = np.zeros((6000, 1, 28, 28), np.uint8)
    loader = Loader(Rows({"image": image, "label": np.zeros(6000, np.int64)}), batch_size=256, seed=0)
    loader.batch(0)
    times = []
    for step in range(40):
        start = time.perf_counter()
        loader.batch(step % loader.steps_per_epoch)
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


def test_the_thread_ends_before_the_process_does():
    """Python kills daemon threads at its exit; inside of C++ (pyarrow reads a file) that would abort the process."""
    code = """
import time
from notan.data.loader import ahead

def slow():
    for i in range(9):
        print("begin", flush=True)
        time.sleep(0.3)
        print("end", flush=True)
        yield i

batches = ahead(slow(), 2)
next(batches)
time.sleep(0.1)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.count("begin") == out.count("end") == 2
