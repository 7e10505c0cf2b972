"""Crops: equal to crop-then-resize image by image, and the affine says where each pixel came from."""

import math

import pytest
import torch
import torch.nn.functional as F

from notan.errors import NotanError
from notan.views import geometry
from notan.views.random import bernoulli, fold

KEY = fold(torch.arange(40), 11)


def pictures(rows=40, height=36, width=44, channels=3):
    return torch.randint(0, 256, (rows, channels, height, width), generator=torch.Generator().manual_seed(0)).byte()


def ramp(height, width, rows=1):
    """An image whose two channels are the relative x and y of each pixel's centre."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x, y]).expand(rows, 2, height, width)


@pytest.mark.parametrize("size", [8, 32, 50])
def test_a_crop_is_cut_then_antialiased_resize(size):
    images = pictures()
    boxes, flip = geometry.crop_boxes(KEY, height=36, width=44), bernoulli(KEY, "flip", 0.5)
    view = geometry.crop(images, boxes, flip, size)
    assert view.pixels.shape == (40, 3, size, size) and view.pixels.dtype == torch.float32
    for image, box, mirrored, seen in zip(images, boxes, flip, view.pixels):
        x0, y0, x1, y1 = (box * torch.tensor([44, 36, 44, 36])).round().int().tolist()
        cut = image[None, :, y0:y1, x0:x1].double() / 255
        expected = F.interpolate(cut, (size, size), mode="bilinear", antialias=True)[0]
        torch.testing.assert_close(seen.double(), expected.flip(2) if mirrored else expected, rtol=0, atol=1e-5)


def test_a_crop_of_doubles_is_exact():
    images = pictures(4).double() / 255
    boxes = torch.tensor([[4 / 44, 9 / 36, 40 / 44, 30 / 36]], dtype=torch.float64).expand(4, 4)
    expected = F.interpolate(images[:, :, 9:30, 4:40], (17, 17), mode="bilinear", antialias=True)
    torch.testing.assert_close(geometry.crop(images, boxes, None, 17).pixels, expected, rtol=0, atol=1e-12)


def test_the_affine_says_where_pixels_came_from():
    boxes, flip = geometry.crop_boxes(KEY, height=64, width=80, scale=(0.3, 0.8)), bernoulli(KEY, "flip", 0.5)
    for size, away in ((80, 1e-6), (16, 0.1 / 80)):  # enlarged exactly; a reduced ramp is within a tenth of a pixel
        view = geometry.crop(ramp(64, 80, len(KEY)), boxes, flip, size)
        centres = geometry.cell_centres(view.affine, size).view(-1, size, size, 2)
        inner = slice(2, -2)
        seen = view.pixels.permute(0, 2, 3, 1)[:, inner, inner]
        torch.testing.assert_close(seen, centres[:, inner, inner], rtol=0, atol=away)


def test_boxes_between_pixels_interpolate():
    """Half a pixel to the right, the ramp moves by half a pixel."""
    boxes = torch.tensor([[2.5 / 32, 0, 18.5 / 32, 0.5]])
    seen = geometry.crop(ramp(32, 32), boxes, None, 16).pixels
    expected = (torch.arange(16) + 3.0) / 32
    torch.testing.assert_close(seen[0, 0, 3, 1:-1], expected[1:-1], rtol=0, atol=1e-6)


def test_the_whole_box_at_the_same_size_is_the_image():
    images = pictures(3, 20, 20)
    whole = torch.tensor([[0.0, 0, 1, 1]]).expand(3, 4)
    torch.testing.assert_close(geometry.crop(images, whole, None, 20).pixels, images / 255, rtol=0, atol=1e-6)
    mirrored = geometry.crop(images, whole, torch.ones(3, dtype=torch.bool), 20)
    torch.testing.assert_close(mirrored.pixels, images.flip(3) / 255, rtol=0, atol=1e-6)
    assert mirrored.affine[0].tolist() == [[-1, 0, 1], [0, 1, 0]]


def test_boxes_follow_the_paper():
    key = fold(torch.arange(20000), 0)
    boxes = geometry.crop_boxes(key, height=200, width=200, scale=(0.2, 0.6)) * 200
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.testing.assert_close(boxes, boxes.round(), rtol=0, atol=1e-3)
    area, aspect = w * h / 200**2, (w / h).log() / math.log(4 / 3)
    assert boxes.min() >= 0 and boxes.max() <= 200 + 1e-3
    assert area.min() > 0.19 and area.max() < 0.61 and aspect.abs().max() < 1.03
    assert abs(float(area.mean()) - 0.4) < 0.005 and abs(float(aspect.mean())) < 0.03
    assert abs(float(aspect.var()) - 1 / 3) < 0.01
    for start, side in ((boxes[:, 0], w), (boxes[:, 1], h)):
        assert abs(float((start / (200 - side).clamp(min=1)).mean()) - 0.5) < 0.02


@pytest.mark.parametrize("height, width, expected", [(10, 400, [0.485, 0, 0.515, 1]), (400, 10, [0, 0.485, 1, 0.515])])
def test_an_image_too_long_gives_its_centre(height, width, expected):
    """No box of 80 % of the area has an aspect near 1; 13 pixels of 400 are the largest within 4/3, from 193 or 194."""
    boxes = geometry.crop_boxes(KEY, height=height, width=width, scale=(0.8, 1.0))
    torch.testing.assert_close(boxes, torch.tensor([expected]).expand(40, 4), rtol=0, atol=3e-3)


def test_rows_do_not_depend_on_the_batch():
    images = pictures()
    make = lambda some, key: geometry.crop(some, geometry.crop_boxes(key, height=36, width=44), None, 24)  # noqa: E731
    whole, pieces = make(images, KEY), [make(images[i : i + 7], KEY[i : i + 7]) for i in range(0, 40, 7)]
    assert torch.equal(whole.affine, torch.cat([piece.affine for piece in pieces]))
    torch.testing.assert_close(whole.pixels, torch.cat([piece.pixels for piece in pieces]), rtol=0, atol=1e-6)


def test_resize_is_antialiased():
    images = pictures(5)
    for size, shape in ((12, (12, 12)), ((50, 20), (50, 20)), ((36, 44), (36, 44))):
        expected = F.interpolate(images / 255, shape, mode="bilinear", antialias=True)
        torch.testing.assert_close(geometry.resize(images, size), expected, rtol=0, atol=1e-5)


def test_pad_crop_is_a_window_of_the_padded_image():
    images = pictures()
    view = geometry.pad_crop(images, KEY, 4)
    padded = F.pad(images / 255, (4, 4, 4, 4))
    x, y = ((view.affine[:, :, 2] * torch.tensor([44, 36])).round().int() + 4).unbind(1)
    assert len(set(x.tolist())) == 9 and len(set(y.tolist())) == 9
    for row in range(40):
        expected = padded[row, :, y[row] : y[row] + 36, x[row] : x[row] + 44]
        torch.testing.assert_close(view.pixels[row], expected, rtol=0, atol=1e-7)
    assert torch.equal(geometry.pad_crop(images, KEY, 0).pixels, geometry.floats(images))


def test_cell_centres_of_the_identity():
    identity = geometry.box_affine(torch.tensor([[0.0, 0, 1, 1]]))
    assert geometry.cell_centres(identity, (1, 2)).tolist() == [[[0.25, 0.5], [0.75, 0.5]]]


def test_floats_leaves_its_input():
    images = pictures(2)
    before = images.clone()
    pixels = geometry.floats(images)
    assert pixels.max() <= 1 and torch.equal(images, before) and geometry.floats(pixels) is pixels


def test_bad_input_is_named():
    with pytest.raises(NotanError, match="scale"):
        geometry.crop_boxes(KEY, height=8, width=8, scale=(0.0, 1.0))
    with pytest.raises(NotanError, match="images"):
        geometry.crop(pictures(3), torch.rand(2, 4), None, 8)
