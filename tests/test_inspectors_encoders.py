"""The inspectors of encoders: temperature and geometry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from notan import cli
from notan.errors import NotanError
from notan.inspectors import geometry, temperature
from notan.inspectors._example import Bright, pictures


class By:
    """An encoder that is a function of uint8 pictures."""

    def __init__(self, function):
        self.function = function

    def encode(self, batch: dict) -> Tensor:
        return self.function(batch["image"])


def flat(image: Tensor) -> Tensor:
    return image.float().flatten(1) - 100


# --------------------------------------------------------------------------------------------------------- temperature

def test_the_penalty_is_the_share_of_the_gradient():
    s = torch.randn(7, dtype=torch.float64, requires_grad=True)
    loss = -torch.log_softmax(s / 0.3, 0)[0]
    grad, = torch.autograd.grad(loss, s)
    r = temperature.relative_penalty(s[1:].detach(), 0.3)
    torch.testing.assert_close(r, grad[1:].abs() / grad[0].abs())
    torch.testing.assert_close(r.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(grad[1:].sum(), -grad[0])


def test_entropy_rises_with_tau_from_the_nearest_alone_to_all():
    u = F.normalize(torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    taus = (1e-4, 0.05, 0.1, 0.5, 1.0, 1e4)
    by_name = temperature.shares(u, taus, None)
    found = [{name: values[i] for name, values in by_name.items()} for i in range(len(taus))]
    entropies = [f["entropy"] for f in found]
    assert entropies == sorted(entropies) and entropies[0] < 0.05 and entropies[-1] == pytest.approx(math.log(39), abs=1e-6)
    assert found[-1]["effective negatives"] == pytest.approx(39, abs=1e-4)
    assert found[0]["nearest 10"] == pytest.approx(1) and found[-1]["nearest 10"] == pytest.approx(10 / 39, abs=1e-4)


def test_parts_are_the_whole(monkeypatch):
    model, data = Bright().double(), pictures()
    whole = temperature.measure(model, data)
    monkeypatch.setattr(temperature, "TILE", 1)
    again = temperature.measure(model, data)
    for k in whole.keys() - {"figure"}:
        assert again[k] == pytest.approx(whole[k]), k


def test_rows_without_labels_or_without_two_of_a_class_have_no_tolerance():
    data = pictures()
    with_labels = temperature.measure(Bright().double(), data)
    assert "tolerance" in with_labels and all(0 <= x <= 1 for x in with_labels["own class"])
    bare = [{k: v for k, v in b.items() if k != "label"} for b in data]
    alone = [{**b, "label": b["row"]} for b in data]
    for rows in (bare, alone):
        found = temperature.measure(Bright().double(), rows)
        assert "tolerance" not in found and "own class" not in found


def test_nearest_are_in_order_and_separation_is_from_the_first():
    found = temperature.measure(By(flat), pictures())
    assert found["nearest"] == sorted(found["nearest"], reverse=True) and len(found["nearest"]) == 10
    assert found["separation"] == pytest.approx(found["views"] - found["nearest"][0])


@pytest.mark.parametrize("taus", ["0", "-1,0.2", "a", "", "0.1,,0.2", "nan", "inf"])
def test_temperatures_that_cannot_be(taus):
    with pytest.raises(NotanError, match=r"--taus 0\.07"):
        temperature.measure(By(flat), pictures(), taus=taus)


@pytest.mark.parametrize("inspector", [temperature, geometry])
def test_all_equal_rows_and_zero_vectors_are_finite(inspector):
    for value in (1.0, 0.0):
        found = inspector.measure(By(lambda image, v=value: torch.full((len(image), 4), v)), pictures())
        numbers = [x for v in found.values() if isinstance(v, (int, float, list)) for x in (v if isinstance(v, list) else [v])]
        assert all(map(math.isfinite, numbers)) and abs(found["uniformity"]) < 1e-12


@pytest.mark.parametrize("inspector", [temperature, geometry])
def test_features_that_are_not_finite_and_too_few_rows(inspector):
    with pytest.raises(NotanError, match="20 of 20 rows are not finite"):
        inspector.measure(By(lambda image: flat(image) * math.nan), pictures())
    with pytest.raises(NotanError, match="1 rows"):
        inspector.measure(By(flat), [{k: v[:1] for k, v in pictures()[0].items()}])


# ------------------------------------------------------------------------------------------------------------ geometry

def test_what_an_encoder_does_not_see_it_does_not_react_to():
    def grey(image):
        r, g, b = image.float().unbind(1)
        return (0.299 * r + 0.587 * g + 0.114 * b).flatten(1) - 120

    blind, seeing = geometry.measure(By(grey), pictures()), geometry.measure(By(flat), pictures())
    assert blind["reacts to grey"] < 1e-3 < 0.1 < seeing["reacts to grey"] and seeing["reacts to hue"] > 0.1
    folded = geometry.measure(By(lambda image: (image.float() + image.float().flip(3)).flatten(1) - 200), pictures())
    assert folded["reacts to mirroring"] < 1e-9 < 0.5 < seeing["reacts to mirroring"]


def test_grey_pictures_have_no_hue_to_react_to():
    grey = [{**b, "image": b["image"][:, :1].expand(-1, 3, -1, -1)} for b in pictures()]
    for data in (grey, [{**b, "image": b["image"][:, :1]} for b in pictures()]):
        found = geometry.measure(By(flat), data)
        assert "reacts to hue" not in found and "reacts to blur" in found


def test_a_picture_that_is_not_square_and_several_outputs():
    wide = [{**b, "image": F.pad(b["image"], (0, 4))} for b in pictures()]
    found = geometry.measure(By(lambda image: {"a": image.float().mean((2, 3)) - 90, "b": image.float().amax((2, 3))}), wide)
    assert found["dimensions"] == 6 and math.isfinite(found["alignment"])


def test_numbers_of_known_features():
    z = torch.eye(20, dtype=torch.float64)
    found = geometry.measure(By(lambda image: z[: len(image)] if len(image) == 12 else z[12:]), pictures())
    assert found["isotropy"] == pytest.approx(1) and found["uniformity"] == pytest.approx(-4)
    assert found["RankMe"] == pytest.approx(20) and found["effective rank"] == pytest.approx(19)
    assert found["alignment"] == pytest.approx(0, abs=1e-12) and found["reacts to blur"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("slug", ["temperature", "geometry"])
def test_the_command_on_an_encoder(slug, tmp_path, capsys):
    from notan.nets.build import save_encoder
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    save_encoder(ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2), tmp_path / "encoder")
    assert cli.main(["inspect", slug, str(tmp_path / "encoder"), "--data", "digits", "--rows", "100", "--out",
                     str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "uniformity" in out and ("tolerance" in out) is (slug == "temperature")
    assert (tmp_path / "out" / f"{slug}-figure.png").stat().st_size > 5000
