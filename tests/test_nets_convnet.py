"""The plain convolutional encoder."""

from __future__ import annotations

import pytest
import torch

from notan.errors import NotanError
from notan.nets.build import build_encoder, load_encoder, save_encoder
from notan.nets.convnet import ConvNet
from notan.nets.protocols import ConvEncoder


def test_shapes_and_protocol():
    net = ConvNet(28, 1, widths=(8, 16, 24), strides=(2, 2, 1))
    x = torch.rand(3, 1, 28, 28)
    assert isinstance(net, ConvEncoder) and net.dim == 24 and net.stride == 4
    assert net(x).shape == (3, 24, 7, 7) and net.trunk(x[:, :, :7, :7]).shape == (3, 24, 2, 2)
    net.eval()
    torch.testing.assert_close(net.features(x), net.maps(x).mean((2, 3)))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    net = build_encoder("convnet:image_size=16,channels=3,widths=(8,16),strides=(2,1)")
    net.features(torch.rand(8, 3, 16, 16))                              # moves the statistics
    save_encoder(net, tmp_path)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_encoder(tmp_path).features(x), net.eval().features(x))


@pytest.mark.parametrize(("widths", "strides"), [((8, 16), (2,)), ((), ()), ((8, 0), (1, 1)), (32, 2)])
def test_impossible_layers_are_refused(widths, strides):
    with pytest.raises(NotanError, match="as many strides as widths"):
        ConvNet(16, 3, widths=widths, strides=strides)
