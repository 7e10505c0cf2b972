"""Encoders and views of numbers: standardised inside, blind to padding, rebuilt from their config, drawn from keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan.data import DataInfo, Rows, keys, open_data
from notan.data.build import number_moments
from notan.errors import NotanError
from notan.nets.build import build_encoder, load_encoder, save_encoder
from notan.nets.numbers import Series, Table
from notan.nets.protocols import Encoder, ImageEncoder, NumberEncoder
from notan.views.numbers import noisy

TABLE = DataInfo("patients", 9, ("features", "target"), width=3, centre=(1.0, 50.0, 0.0), spread=(2.0, 10.0, 1.0))
SERIES = DataInfo("beats", 9, ("series",), width=2, centre=(1.0, 5.0), spread=(2.0, 1.0))
KEY = torch.from_numpy(keys.row_keys(0, 0, np.arange(400)))


def test_the_units_of_a_number_do_not_matter():
    torch.manual_seed(0)
    a = build_encoder("table:hidden=[8]", TABLE)
    b = Table(3, [8], centre=[0.0] * 3, spread=[1.0] * 3)
    b.load_state_dict(a.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(a.features(x * torch.tensor(TABLE.spread) + torch.tensor(TABLE.centre)), b.features(x))


@pytest.mark.parametrize(("spec", "info", "shape"), [("table:hidden=[8,4]", TABLE, (5, 3)),
                                                     ("series:widths=[8,4],kernel=3", SERIES, (5, 7, 2))])
def test_saved_and_loaded_it_is_the_same(spec, info, shape, tmp_path):
    made = build_encoder(spec, info)
    assert isinstance(made, NumberEncoder) and isinstance(made, Encoder) and not isinstance(made, ImageEncoder)
    save_encoder(made, tmp_path)
    x = torch.randn(shape)
    torch.testing.assert_close(load_encoder(tmp_path).features(x), made.features(x))
    assert made.features(x).shape == (5, 4) and torch.equal(made(x), made.features(x))
    build_encoder(str(tmp_path), info)


def test_padding_is_not_seen():
    torch.manual_seed(0)
    net = Series(2, [8, 4], centre=[3.0, -1.0], spread=[2.0, 0.5]).double()
    x, length = torch.randn(4, 6, 2).double(), torch.tensor([6, 3, 1, 5])
    padded = torch.cat([x, torch.full((4, 9, 2), 77.0)], 1)
    torch.testing.assert_close(net.features(padded, length), net.features(x, length))
    torch.testing.assert_close(net.features(x, length)[1:2], net.features(x[1:2, :3]))
    one = Series(1, [4])
    torch.testing.assert_close(one.features(x[..., 0].float(), length), one.features(x[..., :1].float(), length))


def test_what_does_not_fit_is_named(tmp_path):
    for spec, info, words in [("convnet", TABLE, "convnet reads pictures, and patients has features.*--recipe table"),
                              ("table", SERIES, "table was named for beats, which has series"),
                              ("series", TABLE, "series was named for patients"),
                              ("table", None, "without a width"), ("table:hidden=[]", TABLE, "without layers"),
                              ("series:kernel=4", SERIES, "odd kernel"), ("table:depth=3", TABLE, "no option 'depth'"),
                              ("table:width=5", TABLE, "3 values for 5 numbers")]:
        with pytest.raises(NotanError, match=words):
            build_encoder(spec, info)
    save_encoder(build_encoder("table", TABLE), tmp_path)
    other = DataInfo("other", 9, ("features",), width=4)
    with pytest.raises(NotanError, match=r"takes 3 numbers.*4, as the data has"):
        build_encoder(str(tmp_path), other)
    with pytest.raises(NotanError, match="rows of 4 numbers"):
        build_encoder("table", TABLE).features(torch.randn(2, 4))


# ---------------------------------------------------------------------------------------------------------------- views

def test_noise_and_hidden_numbers_are_what_they_say():
    x, centre, spread = torch.full((400, 50), 7.0), torch.arange(50.0), torch.linspace(1, 3, 50)
    plain = noisy(x, KEY, centre=centre, spread=spread, noise=0.0, hide=0.0)
    assert torch.equal(plain, x)
    moved = noisy(x, KEY, centre=centre, spread=spread, noise=0.5, hide=0.0)
    assert ((moved - x) / spread).std().item() == pytest.approx(0.5, rel=0.02)
    hidden = noisy(x, KEY, centre=centre, spread=spread, noise=0.0, hide=0.3)
    assert (hidden == centre).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert ((hidden == centre) | (hidden == x)).all()
    assert torch.equal(noisy(x, KEY, centre=centre, spread=spread, noise=0.0, hide=1.0), centre.expand(400, 50))


def test_a_view_belongs_to_its_row_and_not_to_the_padding():
    x, how = torch.randn(400, 6, 2), {"centre": torch.zeros(2), "spread": torch.ones(2), "noise": 0.3, "hide": 0.2}
    whole = noisy(x, KEY, **how)
    torch.testing.assert_close(noisy(x[7:9], KEY[7:9], **how), whole[7:9])
    torch.testing.assert_close(noisy(torch.cat([x, x], 1), KEY, **how)[:, :6], whole)
    assert noisy(x, KEY, **{k: v.double() if isinstance(v, torch.Tensor) else v for k, v in how.items()}).dtype == torch.float64


# ------------------------------------------------------------------------------------------------------- what data says

def test_the_data_says_its_width_and_moments(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal([2.0, -3.0], [1.0, 5.0], (60, 2))
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "\n".join(f"{a},{b},{a + b}" for a, b in x))
    data = open_data(path, columns={"y": "target"})
    seen = data.train.take(np.arange(len(data.train)))["features"].double()
    assert data.info.width == 2 and data.info.columns == ("features", "target") and data.info.image_size is None
    assert data.info.centre == pytest.approx(seen.mean(0).tolist(), rel=1e-5)
    assert data.info.spread == pytest.approx(seen.std(0, correction=0).tolist(), rel=1e-5)


def test_moments_of_series_are_over_all_steps():
    rows = Rows({"series": [np.array([[1.0, 0], [3, 0]]), np.array([[5.0, 0]])]})
    centre, spread = number_moments(rows)
    assert centre == (3.0, 0.0) and spread == pytest.approx((np.std([1, 3, 5]), 1.0))
    assert number_moments(Rows({"label": np.arange(3)})) == ((), ())


def test_the_built_in_table():
    data = open_data("diabetes")
    assert data.info.width == 10 and data.rows + len(data.test) == 442
    low, high = data.info.target_range
    assert 25 <= low < high <= 346
