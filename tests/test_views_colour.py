"""Colour: each operation beside a plain reference, and jitter beside its operations in the drawn order."""

import colorsys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.views import colour
from notan.views.random import bernoulli, fold, uniform

KEY = fold(torch.arange(48), 5)
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
unit = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)


def pictures(rows=48, channels=3, side=20, dtype=torch.float64):
    return torch.rand(rows, channels, side, side + 4, generator=torch.Generator().manual_seed(1)).to(dtype)


@settings(max_examples=300, deadline=None)
@given(unit, unit, unit, st.sampled_from([-0.5, 0.0, 0.25, 0.5]) | st.floats(-0.5, 0.5))
def test_hue_is_that_of_hsv(r, g, b, turn):
    pixel = torch.tensor([r, g, b], dtype=torch.float64).view(1, 3, 1, 1)
    h, s, v = colorsys.rgb_to_hsv(r, g, b)
    expected = torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1.0, s, v), dtype=torch.float64)
    seen = colour.hue(pixel, torch.tensor([turn], dtype=torch.float64)).flatten()
    if max(r, g, b) - min(r, g, b) > 1e-9:
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1.1e-9 + 1e-6)


def test_hue_of_float32_is_close_and_in_range():
    pixels = pictures(dtype=torch.float32)
    pixels[:4], pixels[4:8, 0], pixels[8:12] = pixels[:4].round(), 1.0, pixels[8:12, :1].expand(-1, 3, -1, -1)
    turn = uniform(KEY, "turn", 1, -0.5, 0.5)[:, 0]
    seen = colour.hue(pixels, turn)
    assert seen.min() >= 0 and seen.max() <= 1
    torch.testing.assert_close(seen.double(), colour.hue(pixels.double(), turn.double()), rtol=0, atol=3e-6)
    torch.testing.assert_close(colour.hue(pixels, torch.zeros(48)), pixels, rtol=0, atol=1e-6)
    assert torch.equal(seen[8:12], pixels[8:12])  # grey has no hue


def test_brightness_contrast_and_saturation_blend():
    pixels, factor = pictures(), uniform(KEY, "factor", 1, 0, 2)[:, 0].double()
    weights = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)
    changed = [change(pixels, factor) for change in (colour.brightness, colour.contrast, colour.saturation)]
    for x, f, bright, even, grey in zip(pixels, factor, *changed):
        luma = torch.einsum("c,chw->hw", weights, x)
        torch.testing.assert_close(bright, (f * x).clamp(0, 1))
        torch.testing.assert_close(even, (f * x + (1 - f) * luma.mean()).clamp(0, 1))
        torch.testing.assert_close(grey, (f * x + (1 - f) * luma).clamp(0, 1))


def test_a_factor_of_one_changes_nothing():
    pixels, one = pictures(), torch.ones(48, dtype=torch.float64)
    for change in (colour.brightness, colour.contrast, colour.saturation):
        torch.testing.assert_close(change(pixels, one), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_its_four_operations_in_the_drawn_order(channels):
    pixels = pictures(channels=channels)
    seen = colour.jitter(pixels, KEY, **STRENGTHS, p=0.8)
    order, factors, turn = colour.jitter_draws(KEY, **STRENGTHS)
    chosen = bernoulli(KEY, "jitter", 0.8)
    assert len(set(map(tuple, order.tolist()))) > 12 and 0 < chosen.sum() < 48
    factors = torch.cat([factors, turn[:, None]], dim=1).double()
    changes = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
    for row in range(48):
        x = pixels[row : row + 1]
        for op in order[row].tolist() if chosen[row] else ():
            x = changes[op](x, factors[row, op][None])
        torch.testing.assert_close(seen[row], x[0], rtol=0, atol=1e-9)


def test_jitter_draws_are_in_range():
    key = fold(torch.arange(5000), 1)
    order, factors, turn = colour.jitter_draws(key, 0.4, 1.5, 0.0, 0.1)
    assert 0.6 <= factors[:, 0].min() < 0.61 and 1.39 < factors[:, 0].max() <= 1.4
    assert 0.0 <= factors[:, 1].min() < 0.01 and 2.49 < factors[:, 1].max() <= 2.5
    assert (factors[:, 2] == 1).all() and turn.abs().max() <= 0.1 and turn.min() < -0.09 and turn.max() > 0.09
    assert order.float().mean(0).sub(1.5).abs().max() < 0.1


def test_grayscale_takes_its_share():
    pixels = pictures()
    seen, chosen = colour.grayscale(pixels, KEY, 0.5), bernoulli(KEY, "grayscale", 0.5)
    assert torch.equal(seen[~chosen], pixels[~chosen])
    torch.testing.assert_close(seen[chosen], colour.luma(pixels[chosen]).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("radius", [1, 4, None])
def test_blur_is_a_reflected_convolution(radius):
    pixels = pictures(side=44)
    seen, chosen = colour.blur(pixels, KEY, p=0.5, radius=radius), bernoulli(KEY, "blur", 0.5)
    assert torch.equal(seen[~chosen], pixels[~chosen]) and chosen.any()
    radius = 2 if radius is None else radius
    sigma = uniform(KEY, "blur sigma", 1, 0.1, 2.0).double()
    for row in chosen.nonzero()[:, 0].tolist():
        kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma[row] ** 2))
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        padded = F.pad(pixels[row, :, None], (radius,) * 4, mode="reflect")
        torch.testing.assert_close(seen[row], F.conv2d(padded, kernel[None, None])[:, 0], rtol=0, atol=1e-7)


def test_solarise_inverts_the_bright():
    pixels = pictures()
    seen, chosen = colour.solarise(pixels, KEY, threshold=0.7, p=0.5), bernoulli(KEY, "solarise", 0.5)
    assert torch.equal(seen[~chosen], pixels[~chosen])
    assert torch.equal(seen[chosen], torch.where(pixels[chosen] >= 0.7, 1 - pixels[chosen], pixels[chosen]))


OPERATIONS = {
    "jitter": lambda x, key: colour.jitter(x, key, **STRENGTHS, p=0.8),
    "grayscale": lambda x, key: colour.grayscale(x, key, 0.4),
    "blur": lambda x, key: colour.blur(x, key, p=0.6),
    "solarise": lambda x, key: colour.solarise(x, key, p=0.4),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_alone_give_the_same_and_inputs_stay(name, channels):
    pixels = pictures(channels=channels, side=70, dtype=torch.float32)
    before, change = pixels.clone(), OPERATIONS[name]
    seen = change(pixels, KEY)
    assert torch.equal(pixels, before) and seen.shape == pixels.shape and seen.dtype == pixels.dtype
    assert seen.min() >= 0 and seen.max() <= 1 + 1e-6
    pieces = [change(pixels[i : i + 5], KEY[i : i + 5]) for i in range(0, 48, 5)]
    torch.testing.assert_close(seen, torch.cat(pieces), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_rows_and_empty_batches(name):
    empty = torch.zeros(0, 3, 8, 8)
    assert OPERATIONS[name](empty, KEY[:0]).shape == empty.shape
    never = [key for key in KEY.split(1) if torch.equal(OPERATIONS[name](one := pictures(1), key), one)]
    assert never  # some row alone is left as it is


def test_one_channel_has_no_hue_to_change():
    pixels, factor = pictures(channels=1), torch.full((48,), 0.3, dtype=torch.float64)
    for change in (colour.saturation, colour.hue):
        assert torch.equal(change(pixels, factor), pixels)
    assert torch.equal(colour.grayscale(pixels, KEY, 1.0), pixels)


def test_bad_input_is_named():
    with pytest.raises(NotanError, match="jitter"):
        colour.jitter(pictures(), KEY, brightness=-1, contrast=0, saturation=0, hue=0)
    with pytest.raises(NotanError, match=r"0\.7"):
        colour.jitter(pictures(), KEY, brightness=0, contrast=0, saturation=0, hue=0.7)
    with pytest.raises(NotanError, match="radius 20"):
        colour.blur(pictures(), KEY, radius=20)
