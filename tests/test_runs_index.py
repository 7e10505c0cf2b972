"""An index on disk: killed anywhere it goes on to the same files, it follows a folder that changes, and damage is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from notan import cli, embed
from notan.data import Rows
from notan.data.pictures import Form, decode, decode_and_show
from notan.errors import NotanError
from notan.nets.build import build_encoder, save_encoder
from notan.runs import index as store
from notan.runs import indexing
from notan.runs.doctor import examine
from notan.runs.index import FILES, Index, Writer

CONTENT = ("vectors", "rows", "items", "thumbs")


def encoder(seed: int = 0):
    torch.manual_seed(seed)
    return build_encoder("convnet:image_size=16,channels=3,widths=[8],strides=[2]").eval()


def draw(path: Path, seed: int, side: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*side[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for i in range(11):
        draw(tmp_path / "photos" / ("cat" if i % 3 else "dog") / f"{i:02d}.png", i)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(indexing, "PART", 4)


def names(index: Index) -> dict[str, int]:
    return {index.item(int(row))["name"]: int(row) for row in np.flatnonzero(index.alive)}


def content(folder: Path) -> dict[str, object]:
    header = json.loads((folder / "index.json").read_text())
    return {name: (folder / f"{name}.bin").read_bytes() for name in FILES} | {"header": header}


# -------------------------------------------------------------------------------------------------------- whole or not at all

class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal."""


def test_killed_at_any_write_it_goes_on_to_the_same_files(photos, tmp_path, monkeypatch):
    model = encoder()
    indexing.index(model, str(photos), tmp_path / "whole", batch=2)
    wanted = content(tmp_path / "whole")
    fsync, kills = os.fsync, 0
    for k in range(1, 100):
        calls = [0]

        def dying(handle, k=k, calls=calls):
            calls[0] += 1
            if calls[0] == k:
                raise Killed
            fsync(handle)

        folder = tmp_path / f"killed-{k}"
        monkeypatch.setattr(os, "fsync", dying)
        try:
            indexing.index(model, str(photos), folder, batch=2)
            break
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(os, "fsync", fsync)
        if (folder / "index.json").exists():
            before = Index(folder)                                      # what is there can be read meanwhile
            assert len(before) == before.count and before.count % 4 in (0, 3)
        indexing.index(model, str(photos), folder, batch=2)
        assert content(folder) == wanted
    assert kills >= 3 * 5                                               # three parts of four files and a manifest


def test_what_a_killed_writer_left_is_cut_off(photos, tmp_path):
    model = encoder()
    indexing.index(model, str(photos), tmp_path / "i")
    sizes = {name: (tmp_path / "i" / f"{name}.bin").stat().st_size for name in FILES}
    for name in FILES:
        with (tmp_path / "i" / f"{name}.bin").open("ab") as file:
            file.write(b"half a part" * 1000)
    assert len(Index(tmp_path / "i")) == 11                             # readers do not see it
    indexing.index(model, str(photos), tmp_path / "i")
    assert sizes == {name: (tmp_path / "i" / f"{name}.bin").stat().st_size for name in FILES}


def test_kill_9_leaves_an_index_that_goes_on_and_a_free_lock(photos, tmp_path):
    save_encoder(encoder(), tmp_path / "model")
    code = ("import os, sys\nfrom notan.runs import index as store, indexing\nindexing.PART = 4\ncalls = []\n"
            "keep = store.Writer._save\n"
            "def save(self):\n    calls.append(0)\n    os.kill(os.getpid(), 9) if len(calls) == 3 else keep(self)\n"
            "store.Writer._save = save\nindexing.index(*sys.argv[1:4])\n")
    paths = [str(path) for path in (tmp_path / "model", photos, tmp_path / "index")]
    done = subprocess.run([sys.executable, "-c", code, *paths], check=False)
    assert done.returncode == -signal.SIGKILL
    found = Index(tmp_path / "index")
    assert found.count == 4 and (tmp_path / "index" / "vectors.bin").stat().st_size == 8 * 8 * 2     # a part too many on the disk
    embed(tmp_path / "model", str(photos), out=tmp_path / "index")
    embed(tmp_path / "model", str(photos), out=tmp_path / "whole")
    assert content(tmp_path / "index") == content(tmp_path / "whole")


def test_what_is_kept_is_what_the_model_gives(photos, tmp_path):
    model = encoder()
    done = indexing.index(model, str(photos), tmp_path / "i", dtype="float32", precision="fp32")
    index = Index(tmp_path / "i")
    indexing.index(model, str(photos), tmp_path / "low", dtype="float32", precision="bf16")
    low = Index(tmp_path / "low").vectors
    assert 1e-5 < abs(low - index.vectors).max() < 1e-2 and (low * index.vectors).sum(1).min() > 0.999
    assert (done.new, done.total, index.kind, index.classes) == (11, 11, "picture", ["cat", "dog"])
    for name, row in names(index).items():
        pixels = torch.from_numpy(decode(photos / name, Form(16, 3, "crop")))[None].float() / 255
        with torch.inference_mode():
            z = torch.nn.functional.normalize(model.features(pixels)[0].double(), dim=0)
        np.testing.assert_allclose(index.vectors[row], z, atol=1e-6)
        item = index.item(row)
        assert item["class"] == name.split("/")[0] == index.classes[index.rows["label"][row]]
        assert item["path"] == str(photos / name)
        import io
        with Image.open(io.BytesIO(index.thumb(row))) as thumb:
            assert thumb.format == "JPEG" and thumb.size == (24, 20)


# ----------------------------------------------------------------------------------------------------------------- following

def test_a_folder_that_changes_is_followed_and_nothing_is_read_twice(photos, tmp_path, monkeypatch):
    model, read = encoder(), []
    indexing.index(model, str(photos), tmp_path / "i")
    before, old = names(Index(tmp_path / "i")), decode_and_show
    monkeypatch.setattr(indexing, "decode_and_show", lambda source, *how: read.append(Path(source).name) or old(source, *how))
    assert indexing.index(model, str(photos), tmp_path / "i").new == 0 and read == []
    draw(photos / "cat" / "new.png", 50)
    draw(photos / "bird" / "first.png", 51)                             # a new class, first in the alphabet
    draw(photos / "cat" / "01.png", 52, side=(30, 30))
    (photos / "dog" / "03.png").unlink()
    done = indexing.index(model, str(photos), tmp_path / "i")
    assert (done.new, done.changed, done.gone, done.total) == (2, 1, 1, 12)
    assert sorted(read) == ["01.png", "first.png", "new.png"]
    index = Index(tmp_path / "i")
    after = names(index)
    assert "dog/03.png" not in after and after["cat/01.png"] >= 11
    assert all(after[name] == row for name, row in before.items() if name not in ("cat/01.png", "dog/03.png"))
    assert index.classes == ["cat", "dog", "bird"]
    assert all(index.item(row)["class"] == name.split("/")[0] == index.classes[index.rows["label"][row]]
               for name, row in after.items())
    fresh = tmp_path / "fresh"
    indexing.index(model, str(photos), fresh)
    again = Index(fresh)
    for name, row in names(again).items():
        np.testing.assert_allclose(again.vectors[row], index.vectors[after[name]], atol=1e-3)


def test_two_folders_share_an_index_and_a_split_drops_nothing(photos, tmp_path):
    model = encoder()
    for i in range(4):
        draw(tmp_path / "more" / f"{i:02d}.png", 90 + i)
    indexing.index(model, str(photos), tmp_path / "i")
    assert indexing.index(model, str(tmp_path / "more"), tmp_path / "i").total == 15
    (tmp_path / "more" / "00.png").unlink()
    done = indexing.index(model, str(tmp_path / "more"), tmp_path / "i")
    assert (done.gone, done.total) == (1, 14)
    done = indexing.index(model, str(photos), tmp_path / "i", split="train")
    assert (done.gone, done.new, done.total) == (0, 0, 14)
    train, test = (indexing.index(model, str(photos), tmp_path / split, split=split).total for split in ("train", "test"))
    assert train + test == 11 and 0 < test < train


def test_what_cannot_be_read_is_skipped_named_and_tried_again_when_it_changes(photos, tmp_path):
    model = encoder()
    (photos / "cat" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(NotanError, match=r"2 of 13 .*broken.png \(not a picture\)"):
        (photos / "dog" / "empty.png").write_bytes(b"")
        indexing.index(model, str(photos), tmp_path / "i", limit_bad=0.01)
    done = indexing.index(model, str(photos), tmp_path / "i", limit_bad=0.5)
    assert (done.new, done.unreadable, done.total) == (0, 2, 11)
    draw(photos / "cat" / "broken.png", 70)
    (photos / "dog" / "empty.png").unlink()
    done = indexing.index(model, str(photos), tmp_path / "i")
    assert (done.new, done.unreadable, done.total) == (1, 0, 12) and Index(tmp_path / "i").header["unreadable"] == {}
    (photos / "cat" / "01.png").write_bytes(b"")                        # what was there is found no more, and is named
    done = indexing.index(model, str(photos), tmp_path / "i", limit_bad=0.5)
    assert (done.changed, done.unreadable, done.total) == (0, 1, 11)
    assert [said[1:3] for said in Index(tmp_path / "i").header["unreadable"].values()] == [["cat/01.png", "the file is empty"]]


def test_rows_of_tables_arrays_and_numbers(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), dtype=np.uint8)
    from notan.data.table import Data, DataInfo

    info = DataInfo("made", 6, ("image", "label"), 8, 3, classes=("a", "b"))
    stores = {"image": image, "label": np.arange(9) % 2}
    data = Data(Rows(stores, np.arange(6)), Rows(stores, np.arange(6, 9)), info, "x")
    embed(encoder(), data, out=tmp_path / "arrays")
    index = Index(tmp_path / "arrays")
    assert sorted(names(index)) == ["test row 6", "test row 7", "test row 8", *(f"train row {i}" for i in range(6))]
    assert index.rows["label"].tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    image[7] += 1
    assert indexing.index(encoder(), data, tmp_path / "arrays").changed == 1

    table = build_encoder({"name": "table", "width": 3, "centre": (0.0,) * 3, "spread": (1.0,) * 3})
    (tmp_path / "n.csv").write_text("a,b,c\n" + "".join(f"{i},{i * i % 7},1.5\n" for i in range(12)))
    embed(table, str(tmp_path / "n.csv"), out=tmp_path / "numbers")
    assert (Index(tmp_path / "numbers").kind, len(Index(tmp_path / "numbers"))) == ("numbers", 12)
    with pytest.raises(NotanError, match="has features, and ConvNet reads pictures"):
        embed(encoder(), str(tmp_path / "n.csv"), out=tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------------ refusals

def test_one_writer_one_model_one_form(photos, tmp_path):
    indexing.index(encoder(), str(photos), tmp_path / "i")
    about = {key: Index(tmp_path / "i").header[key] for key in ("kind", "model", "dtype", "fit")}
    with Writer(tmp_path / "i", about):
        with pytest.raises(NotanError, match="another process is writing"):
            indexing.index(encoder(), str(photos), tmp_path / "i")
    save_encoder(encoder(1), tmp_path / "other")
    with pytest.raises(NotanError, match=r"made by ConvNet \([0-9a-f]{16}\), and this is .*other \([0-9a-f]{16}\)") as refused:
        indexing.index(tmp_path / "other", str(photos), tmp_path / "i")
    assert indexing.index(encoder(), str(photos), tmp_path / "i").total == 11, refused      # and the lock is free meanwhile
    for how, words in (({"fit": "pad"}, "fit 'crop'"), ({"dtype": "float32"}, "dtype 'float16'"),
                       ({"fit": "crap"}, "did you mean"), ({"split": "val"}, "no split"),
                       ({"dtype": "int8"}, "float16 or float32")):
        with pytest.raises(NotanError, match=words):
            indexing.index(encoder(), str(photos), tmp_path / "i", **how)
    assert len(Index(tmp_path / "i")) == 11                             # the lock is free again, and nothing has changed


def test_a_folder_of_other_things_is_not_written_to(photos, tmp_path):
    with pytest.raises(NotanError, match="holds other files and no index"):
        indexing.index(encoder(), str(photos), photos)
    assert not (photos / "index.json").exists() and not (photos / "vectors.bin").exists()
    with pytest.raises(NotanError, match="is a file"):
        indexing.index(encoder(), str(photos), photos / "cat" / "01.png")
    with pytest.raises(NotanError, match="only an index has"):
        embed(encoder(), str(photos), out=tmp_path / "e.parquet", approximate=True)
    with pytest.raises(NotanError, match="--cache-side"):
        embed(encoder(), str(photos), out=tmp_path / "i", data_options={"cache_side": 32})


@pytest.mark.parametrize("name", CONTENT)
def test_a_damaged_part_is_named(photos, tmp_path, name):
    indexing.index(encoder(), str(photos), tmp_path / "i")
    path = tmp_path / "i" / f"{name}.bin"
    good = path.read_bytes()
    parts = Index(tmp_path / "i").header["parts"]
    for number in (0, 2):
        place = parts[number][name][0] + 1
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(NotanError, match=rf"part {number} of .*{name}\.bin \(rows {4 * number} to"):
            Index(tmp_path / "i").check()
    path.write_bytes(good[:-1])
    with pytest.raises(NotanError, match=rf"{name}\.bin has [\d,]+ bytes of"):
        Index(tmp_path / "i")
    path.write_bytes(good)
    Index(tmp_path / "i").check()


def test_the_doctor_looks_at_an_index(photos, tmp_path, capsys):
    save_encoder(encoder(), tmp_path / "model")
    (photos / "cat" / "broken.png").write_bytes(b"no picture")
    embed(tmp_path / "model", str(photos), out=tmp_path / "i", data_options={"limit_bad": 0.5})
    assert cli.main(["doctor", str(tmp_path / "i")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cat/broken.png of" in said and "11 picture rows of 8 numbers by" in said
    (tmp_path / "model").rename(tmp_path / "moved")
    assert cli.main(["doctor", str(tmp_path / "i")]) == 0 and "its model is not at" in " ".join(capsys.readouterr().out.split())
    thumbs = (tmp_path / "i" / "thumbs.bin")
    thumbs.write_bytes(b"x" * thumbs.stat().st_size)
    assert cli.main(["doctor", str(tmp_path / "i")]) == 1 and "part 0 of" in capsys.readouterr().out


def test_what_is_no_index_is_said(tmp_path):
    with pytest.raises(NotanError, match="is no index"):
        Index(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(NotanError, match="cannot be read"):
        Index(tmp_path)
    (tmp_path / "index.json").write_text('{"notan_index": 99}')
    with pytest.raises(NotanError, match="version 99"):
        Index(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- details

def test_a_picture_and_its_thumbnail_from_one_reading(tmp_path):
    draw(tmp_path / "large.png", 0, side=(400, 300))
    with Image.open(tmp_path / "large.png") as picture:
        picture.resize((1600, 1200)).save(tmp_path / "large.jpg", quality=90)
    for name, size in (("large.png", (128, 96)), ("large.jpg", (128, 96))):
        for form in (Form(16, 3, "crop"), Form(200, 1, "pad")):
            pixels, jpeg = decode_and_show(tmp_path / name, form, 128)
            np.testing.assert_array_equal(pixels, decode(tmp_path / name, form))
            (tmp_path / "thumb.jpg").write_bytes(jpeg)
            assert Image.open(tmp_path / "thumb.jpg").size == size
    grey = np.zeros((1, 5, 9), np.uint8)
    assert decode_and_show(grey, Form(4, 3, "pad"), 128)[0].shape == (3, 4, 4)


def test_results_come_in_order_however_long_they_take():
    from concurrent.futures import ThreadPoolExecutor
    from time import sleep

    live, most = [0], [0]

    def work(i):
        sleep(0.01 * (i % 3))
        return i

    def counted():
        for i in range(20):
            live[0] += 1
            most[0] = max(most[0], live[0])
            yield i

    with ThreadPoolExecutor(4) as pool:
        found = []
        for x in indexing.ahead(pool, work, counted(), 5):
            live[0] -= 1
            found.append(x)
    assert found == list(range(20)) and most[0] <= 6


def test_dropped_rows_are_runs():
    gone = np.array([1, 1, 0, 0, 1, 0, 1], dtype=bool)
    assert store._runs(gone) == [[0, 2], [4, 5], [6, 7]] and store._runs(gone[:0]) == []


def test_a_folder_with_an_index_json_of_its_own_is_left_alone(photos, tmp_path):
    (photos / "index.json").write_text('{"pages": []}')
    for call in (Index, lambda path: Writer(path, {})):
        with pytest.raises(NotanError) as said:
            call(photos)
        assert "no index" in said.value.seen and "delete" not in said.value.fix
    assert not (photos / ".lock").exists() and "rows for training" in " ".join(f.what for f in examine(photos))
    with pytest.raises(NotanError, match="is no index"):
        Index(photos / "index.json")


@pytest.mark.parametrize("change", [{"rows": "x"}, {"bytes": None}])
def test_an_index_json_with_odd_keys_is_said(photos, tmp_path, change):
    indexing.index(encoder(), str(photos), tmp_path / "i")
    header = json.loads((tmp_path / "i" / "index.json").read_text())
    (tmp_path / "i" / "index.json").write_text(json.dumps(header | change))
    with pytest.raises(NotanError, match=rf"index.json cannot be read \({min(change)} is"):
        Index(tmp_path / "i")


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    about = {"kind": "picture", "model": {"name": "m", "fingerprint": "f", "vector": None}, "dtype": None, "fit": "crop"}
    with Writer(tmp_path / "i", about) as writer:
        with pytest.raises(NotanError, match="not finite"):
            writer.append(np.array([[np.nan, 1.0]]), [1], [{"name": "a", "stamp": "", "source": ""}])
    assert Index(tmp_path / "i").count == 0


def test_a_choice_of_vectors_where_there_is_none_is_refused(photos, tmp_path):
    with pytest.raises(NotanError, match="gives one vector"):
        indexing.index(encoder(), str(photos), tmp_path / "i", vector="common")
    assert not (tmp_path / "i").exists()


def test_places_that_cannot_be_written_are_named(photos, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "i", tmp_path / "file" / "e.parquet"):
        with pytest.raises(NotanError, match="cannot be made"):
            embed(encoder(), str(photos), out=out)
