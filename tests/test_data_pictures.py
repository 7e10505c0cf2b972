"""Any picture becomes the same pixels every time, whatever its format; damaged ones are named, never lost silently."""

import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from notan.data import Loader, open_data
from notan.data import cache as cache_module
from notan.data.cache import OnTheFly, decoded
from notan.data.pictures import Encoded, Files, Form, Pixels, decode, header
from notan.errors import NotanError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def folder(root: Path, classes=("cat", "dog"), each=6, size=(20, 24), channels=3, suffix="png") -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noise(*size, channels, seed=100 * c + i)).save(root / name / f"{i}.{suffix}")
    return root


def test_every_mode_becomes_the_same_form(tmp_path):
    rgb = Image.fromarray(noise(20, 30))
    levels = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    rgb.save(tmp_path / "rgb.png")
    rgb.convert("L").save(tmp_path / "l.png")
    rgb.convert("1").save(tmp_path / "one.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    rgb.convert("RGBA").save(tmp_path / "rgba.png")
    rgb.convert("LA").save(tmp_path / "la.png")
    Image.fromarray(levels).save(tmp_path / "sixteen.png")
    Image.fromarray(levels).save(tmp_path / "sixteen.tif")
    Image.fromarray(levels.astype(np.float32) / 65535).save(tmp_path / "float.tif")
    rgb.save(tmp_path / "frames.gif", save_all=True, append_images=[Image.fromarray(noise(20, 30, seed=9))])
    rgb.save(tmp_path / "lossy.webp")
    for path in sorted(tmp_path.glob("*.*")):
        for fit in ("crop", "pad", "squash"):
            for channels in (1, 3):
                form = Form(16, channels, fit)
                pixels = decode(str(path), form)
                assert pixels.dtype == np.uint8 and pixels.shape == (channels, 16, 16), path
                assert np.array_equal(pixels, decode(path.read_bytes(), form)), path
                assert pixels.std() > 10 or fit == "pad"
    grey = {p.name for p in tmp_path.glob("*.*") if header(str(p))[2] == 1}
    assert grey == {"l.png", "one.png", "la.png", "sixteen.png", "sixteen.tif", "float.tif"}
    form = Form(20, 1, "crop")
    wanted = np.asarray(levels[:, 5:25] / 257)
    for name in ("sixteen.png", "sixteen.tif", "float.tif"):
        assert np.abs(decode(str(tmp_path / name), form)[0] - wanted).max() <= 1, name


def test_first_frame_alpha_and_orientation(tmp_path):
    a, b = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))
    a.save(tmp_path / "frames.gif", save_all=True, append_images=[b])
    assert decode(str(tmp_path / "frames.gif"), Form(8, 3, "crop"))[:, 4, 4].tolist() == [255, 0, 0]
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    assert (decode(str(tmp_path / "clear.png"), Form(8, 3, "crop")) == 255).all()  # over white
    top = np.zeros((8, 8, 3), np.uint8)
    top[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down: turn 90 degrees clockwise to see it
    Image.fromarray(top).save(tmp_path / "turned.png", exif=exif)
    seen = decode(str(tmp_path / "turned.png"), Form(8, 1, "crop"))[0]
    assert seen[:, 4:].min() == 255 and seen[:, :4].max() == 0


def test_fits():
    wide = np.zeros((1, 10, 30), np.uint8)
    wide[:, :, 10:20] = 200
    assert (decode(wide, Form(10, 1, "crop")) == 200).all()
    padded = decode(wide, Form(30, 1, "pad"))[0]
    assert padded[:10].max() == 0 and padded[20:].max() == 0 and padded[10:20, 10:20].min() == 200
    squashed = decode(wide, Form(9, 1, "squash"))[0]
    assert abs(int(squashed[0, 4]) - 200) <= 8 and squashed[:, 0].max() == 0


def test_one_pixel_and_draft_decoding(tmp_path):
    Image.new("L", (1, 1), 77).save(tmp_path / "one.png")
    assert (decode(str(tmp_path / "one.png"), Form(12, 3, "crop")) == 77).all()
    y, x = np.mgrid[:400, :600]
    smooth = np.stack([x * 255 // 600, y * 255 // 400, (x + y) * 255 // 1000], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "large.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "large.png")
    a, b = (decode(str(tmp_path / f"large.{s}"), Form(32, 3, "crop")).astype(int) for s in ("jpg", "png"))
    assert np.abs(a - b).max() <= 6  # a reduced decode is nearly the full one


def test_cache_equals_on_the_fly_bit_for_bit(tmp_path):
    root = folder(tmp_path / "pets", size=(40, 50), suffix="jpg")
    cached, live = open_data(root, cache_side=16), open_data(root, cache_side=16, cache_limit_gb=0)
    assert isinstance(live.train.stores["image"], OnTheFly) and isinstance(cached.train.stores["image"], np.memmap)
    assert any("on the fly" in note for note in live.notes)
    assert len(cached.train) == len(live.train) and cached.info.mean == live.info.mean
    for split in ("train", "test"):
        index = np.arange(len(getattr(cached, split)))[::-1]
        a, b = getattr(cached, split).take(index), getattr(live, split).take(index)
        assert all(a[name].equal(b[name]) for name in ("image", "label", "row"))
    again = open_data(root, cache_side=16)
    assert again.fingerprint == cached.fingerprint == live.fingerprint


def test_cache_is_reused_and_follows_changes(tmp_path, monkeypatch):
    root = folder(tmp_path / "pets")
    first = open_data(root)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decode", lambda *a: pytest.fail("decoded again"))
        patch.setattr(cache_module, "header", lambda *a: pytest.fail("opened again"))
        assert open_data(root).fingerprint == first.fingerprint
    Image.fromarray(noise(20, 24, seed=77)).save(root / "cat" / "0.png")
    os.utime(root / "cat" / "0.png", ns=(1, 1))
    changed = open_data(root)
    assert changed.fingerprint != first.fingerprint
    form = Form(20, 3, "crop")
    rows = [(s, i) for s in (changed.train, changed.test) for i in range(len(s)) if s.name(i) == "cat/0.png"]
    (owner, i), wanted = rows[0], decode(str(root / "cat" / "0.png"), form)
    assert np.array_equal(owner.take(np.array([i]))["image"][0].numpy(), wanted)


def test_a_damaged_cache_is_rebuilt_and_two_writers_agree(tmp_path):
    files = Files(sorted(map(str, (folder(tmp_path / "pets") / "cat").glob("*.png"))))
    form, root = Form(12, 3, "crop"), tmp_path / "cache"
    found: list = []
    writers = [threading.Thread(target=lambda: found.append(decoded(files, form, root, 8))) for _ in range(4)]
    [t.start() for t in writers], [t.join() for t in writers]
    assert len(found) == 4 and all(np.array_equal(f.store, found[0].store) for f in found)
    kept = next((root / "pixels").glob("*.npy"))
    kept.write_bytes(kept.read_bytes()[:200])
    wanted = np.stack([decode(files.read(i), form) for i in range(6)])
    assert np.array_equal(decoded(files, form, root, 8).store, wanted)
    assert not list((root / "pixels").glob(".writing*"))


def test_a_full_disk_is_said_and_costs_nothing(tmp_path, monkeypatch):
    root = folder(tmp_path / "pets")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "write_whole", full)
    data = open_data(root, cache_side=12)
    assert isinstance(data.train.stores["image"], OnTheFly)
    assert any("No space left" in note for note in data.notes)


def test_unreadable_pictures_are_named_and_limited(tmp_path):
    root = folder(tmp_path / "pets", each=30, suffix="jpg", size=(64, 64))
    broken = root / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    data = open_data(root, limit_bad=0.05)
    assert len(data.train) + len(data.test) == 59
    assert any("cat/3.jpg" in note and "1 of 60" in note for note in data.notes)
    names = [rows.name(i) for rows in (data.train, data.test) for i in range(len(rows))]
    assert "cat/3.jpg" not in names and len(set(names)) == 59
    assert len(open_data(root, limit_bad=0.05, cache_limit_gb=0).train) == len(data.train)
    (root / "dog" / "4.jpg").write_text("not a picture")
    (root / "dog" / "5.jpg").write_bytes(b"")
    with pytest.raises(NotanError, match=r"3 of 60 pictures.*cat/3\.jpg.*dog/4\.jpg.*not a picture.*--limit-bad"):
        open_data(root, limit_bad=0.01)
    with pytest.raises(NotanError, match="cannot be read"):
        open_data(root, limit_bad=0)


def test_all_grey_is_one_channel_and_mixed_is_three(tmp_path):
    assert open_data(folder(tmp_path / "grey", channels=1)).info.channels == 1
    mixed = folder(tmp_path / "mixed", channels=1)
    Image.fromarray(noise(20, 24)).save(mixed / "cat" / "0.png")
    data = open_data(mixed)
    assert data.info.channels == 3
    image = data.train.take(np.arange(1))["image"]
    assert image.shape == (1, 3, 20, 20)


def test_side_is_never_above_the_median(tmp_path):
    root = folder(tmp_path / "pets", size=(30, 40))
    Image.fromarray(noise(1, 1)).save(root / "cat" / "0.png")
    data = open_data(root, cache_side=64)
    assert data.info.image_size == 30
    assert any("1 of 12 pictures are smaller" in note for note in data.notes)
    assert open_data(root, cache_side=64, fit="pad").info.image_size == 40
    assert any("--cache-side" in note for note in open_data(root, cache_side=8).notes)


def test_moments_are_those_of_the_training_pixels(tmp_path):
    data = open_data(folder(tmp_path / "pets"))
    pixels = data.train.take(np.arange(len(data.train)))["image"].double() / 255
    assert np.allclose(data.info.mean, pixels.mean((0, 2, 3)), atol=1e-9)
    assert np.allclose(data.info.std, pixels.std((0, 2, 3), correction=0), atol=1e-9)


def test_constant_pictures_do_not_divide_by_zero(tmp_path):
    for i in range(4):
        (tmp_path / "black").mkdir(exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / "black" / f"{i}.png")
    data = open_data(tmp_path / "black")
    assert data.info.std == (1.0,) and data.info.mean == (0.0,) and data.info.classes == ()


def test_a_file_that_disappears_is_named(tmp_path):
    root = folder(tmp_path / "pets")
    data = open_data(root, cache_limit_gb=0)
    for path in root.rglob("*.png"):
        path.unlink()
    with pytest.raises(NotanError, match=r"\.png could be read when the data was opened"):
        next(Loader(data.train, batch_size=2, seed=0).at(0))


def test_pixels_and_bytes_take_the_same_way():
    array = noise(20, 20)
    form = Form(11, 3, "crop")
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    planes = array.transpose(2, 0, 1)
    assert np.array_equal(decode(file.getvalue(), form), decode(planes, form))
    grey = Form(20, 1, "crop")
    assert np.abs(decode(file.getvalue(), grey).astype(int) - decode(planes, grey)).max() <= 1
    rows = [{"x": {"bytes": file.getvalue(), "path": None}}, {"x": None}]
    encoded = Encoded(rows, "x", "stamp")
    assert np.array_equal(decode(encoded.read(0), form), decode(planes, form))
    with pytest.raises(ValueError, match="there is none"):
        encoded.read(1)
    with pytest.raises(NotanError, match="uint8"):
        Pixels(np.zeros((2, 3, 4, 4), np.float32))


def test_the_description_of_a_cache_is_plain_json(tmp_path):
    open_data(folder(tmp_path / "pets"))
    about = [json.loads(p.read_text()) for p in (tmp_path / "cache" / "pixels").glob("*.json")]
    assert about[0]["pictures"] == 12 and about[0]["form"]["fit"] == "crop" and about[0]["bad"] == {}
