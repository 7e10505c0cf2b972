"""Runs on streamed data keep the promises: killed and resumed, split over ranks, compared, and run again from config.yaml."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from ranks import spawn
from safetensors.torch import load_file
from torch import Tensor

from notan import cli
from notan.data import loader_of, open_data
from notan.errors import NotanError
from notan.runs.compare import compare
from notan.runs.folder import Run
from notan.runs.train import Stopped, train, train_config

toy.register()
HERE = Path(__file__).parent
OPTIONS = {"stream": True, "limit_bad": 0.2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def blobs(tmp_path) -> str:
    """The toy's pictures in three parquet files; five of 160 cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = toy.data(320).train.take(np.arange(160))
    (tmp_path / "blobs").mkdir()
    for part, index in enumerate(np.array_split(np.arange(160), 3)):
        cells = []
        for i in index:
            file = io.BytesIO()
            Image.fromarray(rows["image"][i, 0].numpy()).save(file, "png")
            cells.append(file.getvalue() if i % 32 else b"no picture")
        table = pa.table({"image": cells, "label": rows["label"][index].tolist()})
        pq.write_table(table, tmp_path / "blobs" / f"{part}.parquet", row_group_size=16)
    return str(tmp_path / "blobs")


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "state").glob("step-*")) / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_stopped_and_resumed_is_undisturbed_and_what_was_skipped_is_told(tmp_path, blobs):
    options = {"steps": 15, "threads": 1, "data_options": OPTIONS}      # 4 steps an epoch
    whole = train("toy", blobs, out=tmp_path / "whole", **options)

    def stop_at_6(record: dict) -> None:
        if record["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match=r"saved at step [67] of 15"):
        train("toy", blobs, out=tmp_path / "r", log=stop_at_6, **options)
    run = train("toy", blobs, out=tmp_path / "r", **options)
    assert same(weights(whole.path), weights(run.path)) and not (tmp_path / "r" / "debug").exists()
    steps = [r for r in run.metrics() if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 16)) and steps[-1]["probe_accuracy"] > 0.25
    assert run.info.rows == 128 and "held out" in run.info.notes
    said = [r["message"] for r in whole.metrics() if r.get("alarm") == "unreadable"]
    assert len(said) == 1 and "pictures cannot be read and are skipped" in said[0] and ".parquet row " in said[0]
    with pytest.raises(NotanError, match="was trained on other rows"):
        (Path(blobs) / "2.parquet").unlink()
        train("toy", blobs, out=tmp_path / "r", **options)


def test_the_command_line_and_config_yaml_run_it_again(tmp_path, blobs, monkeypatch):
    for path in Path(blobs).glob("*.parquet"):                          # all pictures readable
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        pq.write_table(table.filter([c != b"no picture" for c in table["image"].to_pylist()]), path, row_group_size=16)
    argv = ["train", "toy", "--data", blobs, "--stream", "--steps", "5", "--threads", "1", "--out", str(tmp_path / "r")]
    assert cli.main(argv) == 0
    run = Run(tmp_path / "r")
    assert run.config["data_options"]["stream"] is True and run.finished
    again = train_config(run.path / "config.yaml")
    assert same(weights(run.path), weights(again.path))
    without = [a for a in argv if a != "--stream"]
    assert cli.main(without) == 1                                       # another run: it is not taken for this one
    assert cli.main([*without[:-1], str(tmp_path / "without")]) == 0
    assert "stream" not in Run(tmp_path / "without").config["data_options"]
    out = tmp_path / "results.json"
    monkeypatch.setattr(sys, "stdout", out.open("w"))
    assert cli.main(["probe", str(run.path), "--data", blobs, "--stream", "--json"]) == 0
    sys.stdout.close()
    assert json.loads(out.read_text())["ridge"]["accuracy"] > 0.25


def slices(rank: int, size: int, folder: str) -> list[Tensor]:
    data = open_data(folder, **OPTIONS)
    loader = loader_of(data, batch_size=30, seed=3, rank=rank, size=size)
    batches = [loader.batch(step) for step in (0, 3, 4, 9)]
    return [torch.cat([b["row"][:, None], b["key"][:, None], b["image"].flatten(1).long()], dim=1) for b in batches]


def test_slices_of_ranks_are_the_batch_of_one_process(blobs):
    one, parts = slices(0, 1, blobs), spawn(slices, 2, blobs)
    assert all(torch.equal(torch.cat([a, b]), whole) for a, b, whole in zip(*parts, one, strict=True))
    assert any(len(a) != len(b) for a, b in zip(*parts))                # where one could not be read


def start(folder: Path, blobs: str, *launcher: str) -> subprocess.Popen:
    script = folder.with_suffix(".py")
    script.write_text(f"""
import toy; toy.register()
from notan.runs import train as t
build = t.build_method
t.build_method = lambda *a: build(*a).double()
t.train("toy", {blobs!r}, out={str(folder)!r}, threads=1, steps=10, batch=30, clip=0.05, settings={{"dropout": 0.0}},
        data_options={OPTIONS!r})
""")
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, str(script)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def test_two_ranks_give_the_weights_of_one(tmp_path, blobs):
    """Through torchrun and the real path, in float64, unreadable pictures and so uneven ranks included."""
    for name, launcher in (("one", ()), ("two", ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"))):
        process = start(tmp_path / name, blobs, *launcher)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-9, msg=name)
    assert Run(tmp_path / "two").facts["ranks"] == 2


def test_compare_streams(tmp_path, blobs):
    study = compare(["toy"], blobs, out=tmp_path / "c", steps=4, seeds=1, batch=32, threads=1, supervised=False,
                    data_options=OPTIONS)
    assert study["data"]["rows"] == 128 and any("Streamed: 128 rows" in note for note in study["notes"])
    assert [row["arm"] for row in study["rows"]][:2] == ["raw pixels", "toy"]
    metrics = study["rows"][0]["metrics"]
    assert all(0.2 < values[0] <= 1 for values in metrics.values())
    assert (tmp_path / "c" / "report.html").exists() and (tmp_path / "c" / "encoders" / "toy").exists()


def test_methods_with_batches_of_their_own_are_refused(tmp_path, blobs, monkeypatch):
    monkeypatch.setattr(toy.Toy, "batches", lambda *_: np.zeros((1, 4), np.int64), raising=False)
    with pytest.raises(NotanError, match=r"chooses its own batches.*leave out --stream"):
        train("toy", blobs, out=tmp_path / "r", steps=2, threads=1, data_options=OPTIONS)
    assert not (tmp_path / "r").exists()


def test_a_batch_larger_than_the_data_is_explained(tmp_path, blobs):
    with pytest.raises(NotanError, match=r"a batch of 129 rows, but the training split has 128.*--batch 64"):
        train("toy", blobs, out=tmp_path / "r", batch=129, steps=2, data_options=OPTIONS)
