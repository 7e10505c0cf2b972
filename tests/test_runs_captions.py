"""Runs on pictures with captions that are streamed, from every kind of data, and what is said of captions that are cut."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from notan import cli
from notan.data import loader_of, open_data
from notan.runs.captions import sentence, told
from notan.runs.doctor import examine
from notan.runs.folder import Run
from notan.runs.report import run_study
from notan.runs.train import Stopped, train

TOWERS = {"image_encoder": "convnet:widths=[8],strides=[2]", "text_encoder": "text:dim=16,depth=1,heads=2,context=8"}
ROWS, COLOURS = 40, ("red", "green", "blue", "white")
LONG = "a square that is wider than it is high and"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), [i, 10 * (i % 4), 99], np.uint8)).save(file, "png")
    return file.getvalue()


def said(i: int) -> list[str]:
    """The captions of a picture; of every fifth one is long."""
    colour = COLOURS[i % 4]
    return [f"{colour} {i}", f"{LONG} {colour} {i}" if i % 5 == 0 else f"{i} is {colour}"]


def sidecars(root: Path) -> Path:
    for i in range(ROWS):
        path = root / COLOURS[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
        path.with_suffix(".txt").write_text("\n".join(said(i)))
    return root


def jsonl(root: Path) -> Path:
    sidecars(root)
    rows = [{"file_name": f"{COLOURS[i % 4]}/{i}.png", "captions": said(i), "label": COLOURS[i % 4]} for i in range(ROWS)]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def parquet(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir()
    for part, index in enumerate(np.array_split(np.arange(ROWS), 2)):
        table = {"image": [png(int(i)) for i in index], "captions": [said(int(i)) for i in index],
                 "label": [COLOURS[i % 4] for i in index]}
        pq.write_table(pa.table(table), root / f"{part}.parquet", row_group_size=8)
    return root


def tars(root: Path) -> Path:
    root.mkdir()
    for part, index in enumerate(np.array_split(np.arange(ROWS), 2)):
        with tarfile.open(root / f"{part:03}.tar", "w") as file:
            for i in index.tolist():
                for suffix, content in (("png", png(i)), ("json", json.dumps({"captions": said(i)}).encode()),
                                        ("cls", COLOURS[i % 4].encode())):
                    about = tarfile.TarInfo(f"{i}.{suffix}")
                    about.size = len(content)
                    file.addfile(about, io.BytesIO(content))
    return root


KINDS = [sidecars, jsonl, parquet, tars]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(max((run.path / "state").glob("step-*")) / "model.safetensors")


@pytest.mark.parametrize("make", KINDS)
def test_captions_stream_with_their_pictures_and_labels(tmp_path, make):
    whole, data = (open_data(make(tmp_path / f"{stream}"), stream=stream) for stream in (False, True))
    assert data.info.columns == whole.info.columns and set(data.info.columns) == {"image", "captions", "label"}
    assert data.info.classes == whole.info.classes == tuple(sorted(COLOURS))
    loader, seen = loader_of(data, batch_size=8, seed=0), []
    for step in range(loader.steps_per_epoch):
        batch = loader.batch(step)
        number = batch["image"][:, 0, 0, 0].tolist()
        assert batch["captions"] == [said(i) for i in number]
        assert [data.info.classes[c] for c in batch["label"].tolist()] == [COLOURS[i % 4] for i in number]
        seen += number
    assert len(set(seen)) == len(seen) == data.rows == 32


@pytest.mark.parametrize("make", KINDS)
def test_clip_trains_on_a_stream_stops_and_goes_on(tmp_path, make):
    data = str(make(tmp_path / "data"))
    options = {"steps": 6, "batch": 8, "encoder": TOWERS, "threads": 1, "data_options": {"stream": True}}
    straight = train("clip", data, out=tmp_path / "straight", **options)

    def stop(record: dict) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match=r"saved at step [34] of 6"):
        train("clip", data, out=tmp_path / "stopped", log=stop, **options)
    run = train("clip", data, out=tmp_path / "stopped", **options)
    a, b = weights(straight), weights(run)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_texts_changed_under_a_stream_are_named(tmp_path):
    from notan.errors import NotanError

    root = sidecars(tmp_path / "data")
    loader = loader_of(open_data(root, stream=True), batch_size=32, seed=0)
    for path in root.rglob("*.txt"):
        path.write_text(" ")
    with pytest.raises(NotanError, match=r"\.txt has 0 lines, and had some when the data was opened"):
        loader.batch(0)


def test_how_many_captions_are_cut_is_said_kept_and_shown(tmp_path):
    console = Console(file=(out := io.StringIO()), width=200)
    data = open_data(parquet(tmp_path / "data"))
    run = train("clip", data, out=tmp_path / "run", steps=1, batch=8, encoder=TOWERS, threads=1, console=console)
    found = run.facts["captions"]["text_encoder"]
    every = [text for some in data.train.take(np.arange(32))["captions"] for text in some]
    lengths = run.encoder("text_encoder").lengths(every)
    assert found == {"cut": sum(n > 8 for n in lengths), "of": 64, "longest": max(lengths), "context": 8, "rows": 32,
                     "training": 32}
    assert found["cut"] >= sum(LONG in text for text in every) > 0
    line = f"{found['cut']} of 64 captions are longer than 8 tokens and are cut (the longest has {max(lengths)})."
    assert line in out.getvalue() and told(run.facts) == [line]
    assert line in run_study(run)["notes"] and any(line[:-1] == f.what for f in examine(run.path))
    wide = {**TOWERS, "text_encoder": TOWERS["text_encoder"].replace("context=8", "context=64")}
    whole = train("clip", data, out=tmp_path / "wide", steps=1, batch=8, encoder=wide, threads=1)
    assert whole.facts["captions"]["text_encoder"]["cut"] == 0 and told(whole.facts) == []


def test_a_sample_says_that_it_is_one_and_methods_without_texts_say_nothing(tmp_path, monkeypatch):
    from notan.runs import captions

    monkeypatch.setattr(captions, "TEXTS", 10)
    data = open_data(parquet(tmp_path / "data"))
    run = train("clip", data, out=tmp_path / "run", steps=1, batch=8, encoder=TOWERS, threads=1)
    found = run.facts["captions"]["text_encoder"]
    assert (found["rows"], found["training"], found["of"]) == (10, 32, 20)
    assert told(run.facts)[0].startswith(f"In a sample of 10 of the 32 training rows {found['cut']} of 20 captions ")
    one = {"cut": 1, "of": 4096, "longest": 1071, "context": 32, "rows": 9, "training": 9}
    assert sentence(one) == "1 of 4,096 captions is longer than 32 tokens and is cut (the longest has 1,071)."
    alone = train("simclr", data, out=tmp_path / "alone", steps=1, batch=8, encoder=TOWERS["image_encoder"], threads=1)
    assert "captions" not in alone.facts and told(alone.facts) == []


def test_the_command_line_streams_tars(tmp_path, capsys):
    root = tars(tmp_path / "data")
    argv = ["--data", f"{root}/{{000..001}}.tar", "--stream"]
    assert cli.main(["train", "clip", *argv, "--steps", "2", "--batch", "8", "--threads", "1", "--out", str(tmp_path / "run"),
                     *(f"--{name.replace('_', '-')}={spec}" for name, spec in TOWERS.items())]) == 0
    assert "captions are longer than 8 tokens and are cut" in capsys.readouterr().out
    assert cli.main(["probe", str(tmp_path / "run"), *argv, "--protocol", "retrieval"]) == 0
    assert "R@1" in capsys.readouterr().out
    assert cli.main(["doctor", str(root), "--stream"]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "2 tars with 40 samples" in found and "32 training rows have 2 captions each, of 2 to 12 words" in found
