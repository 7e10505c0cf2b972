"""Encoders by name and from folders: same weights, same outputs, whole files, and errors that name the fix."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from notan.errors import NotanError
from notan.nets import build
from notan.nets.build import build_encoder, fitting_patch, load_encoder, save_encoder
from notan.nets.protocols import ConvEncoder, TokenEncoder


def _info(**changes):
    values = {"image_size": 16, "channels": 3, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.0), "width": None} | changes
    return SimpleNamespace(**values)


def _same(a, b):
    x = torch.rand(2, a.channels, a.image_size, a.image_size)
    a, b = a.eval(), b.eval()
    assert a.config == b.config
    torch.testing.assert_close(a.features(x), b.features(x), rtol=0, atol=0)
    torch.testing.assert_close(a.maps(x), b.maps(x), rtol=0, atol=0)


def test_sizes_and_statistics_come_from_the_data():
    vit = build_encoder("vit:dim=24,depth=1,heads=2,pool=cls", _info())
    assert isinstance(vit, TokenEncoder) and vit.config["pool"] == "cls" and vit.dim == 24
    assert vit.config["mean"] == [0.4, 0.5, 0.6] and vit.config["std"] == [0.2, 0.3, 1.0]      # a constant channel
    net = build_encoder({"name": "resnet10", "width": 4, "stem": "imagenet"}, _info(channels=1, mean=(), std=()))
    assert isinstance(net, ConvEncoder) and net.channels == 1 and net.config["mean"] == [0.5]
    assert build_encoder("vit-tiny:depth=1,mean=(0.1,)", _info()).config["mean"] == [0.1]


@pytest.mark.parametrize("spec", ["vit:dim=24,depth=1,heads=2", "vit:dim=24,depth=1,heads=2,positions=learned,patch=8",
                                  "resnet10:width=4", "resnet50:width=2,norm=group,preact=true,last_group=3"])
def test_save_and_load_give_the_same_encoder(spec, tmp_path):
    encoder = build_encoder(spec, _info())
    save_encoder(encoder, tmp_path / "run" / "encoder")
    _same(encoder, load_encoder(tmp_path / "run" / "encoder"))
    _same(encoder, load_encoder(tmp_path / "run"))                      # a run folder
    _same(encoder, build_encoder(str(tmp_path / "run"), _info()))
    assert sorted(os.listdir(tmp_path / "run" / "encoder")) == ["config.json", "model.safetensors"]


def test_saving_twice_replaces_and_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    first, second = (build_encoder("resnet10:width=4", _info()) for _ in range(2))
    save_encoder(first, tmp_path)

    def no_space(*_):
        raise OSError("no space left")

    monkeypatch.setattr(build.os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        save_encoder(second, tmp_path)
    monkeypatch.undo()
    _same(first, load_encoder(tmp_path))
    save_encoder(second, tmp_path)
    _same(second, load_encoder(tmp_path))


@pytest.mark.parametrize("spec, said", [
    ("vti", "did you mean 'vit'"), ("resnet19", "did you mean 'resnet1"), ("vit:dimm=3", "did you mean 'dim'"),
    ("vit:dim", "has no value"), ({"dim": 3}, "without a name"), ("resnet18:depth=34", "no option 'depth'"),
    ("vit:heads=5,dim=24", "5 heads"), ("no/such/folder", "no/such/folder"),
])
def test_unknown_names_and_options_suggest_the_nearest(spec, said):
    with pytest.raises(NotanError, match=said):
        build_encoder(spec, _info())


def test_without_an_image_column_there_is_no_size():
    with pytest.raises(NotanError, match="image size"):
        build_encoder("vit", _info(image_size=None))


@pytest.mark.parametrize("side, patch", [
    (8, 2), (16, 4), (28, 7), (32, 8), (64, 16), (96, 16), (224, 16), (10, 2), (15, 3), (6, 2)])
def test_a_patch_that_fits(side, patch):
    assert fitting_patch(side) == patch


def test_no_patch_fits_an_odd_side():
    with pytest.raises(NotanError, match="side 13"):
        build_encoder("vit", _info(image_size=13))


def test_weights_for_other_images_are_refused(tmp_path):
    save_encoder(build_encoder("resnet10:width=4", _info()), tmp_path)
    with pytest.raises(NotanError, match="--cache-side 16"):
        build_encoder(str(tmp_path), _info(image_size=32))
    with pytest.raises(NotanError, match="3 channels"):
        build_encoder(str(tmp_path), _info(channels=1))


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(NotanError, match="holds no encoder"):
        load_encoder(tmp_path)
    save_encoder(build_encoder("resnet10:width=4", _info()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"width": 8}))
    with pytest.raises(NotanError, match="does not fit"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage!")
    with pytest.raises(NotanError, match="does not fit"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotanError, match="missing"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NotanError, match="not JSON"):
        load_encoder(tmp_path)
