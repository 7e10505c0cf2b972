"""ResNets: torchvision's names and counts, arithmetic against `transformers`, strides, variants, the start."""

import pytest
import torch
import torch.nn.functional as F

from notan.errors import NotanError
from notan.nets.norm import GlobalBatchNorm2d
from notan.nets.protocols import ConvEncoder, TokenEncoder
from notan.nets.resnet import ResNet

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _torchvision_resnet18_keys():
    """The state dict of torchvision's resnet18 without its classifier, spelled out."""
    keys = {"conv1.weight", *(f"bn1.{k}" for k in BN)}
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            for i in (1, 2):
                keys |= {f"layer{layer}.{block}.conv{i}.weight", *(f"layer{layer}.{block}.bn{i}.{k}" for k in BN)}
        if layer > 1:
            keys |= {f"layer{layer}.0.downsample.0.weight", *(f"layer{layer}.0.downsample.1.{k}" for k in BN)}
    return keys


def _count(module):
    return sum(p.numel() for p in module.parameters())


def test_resnet18_has_torchvisions_names_shapes_and_count():
    net = ResNet(224, 3, depth=18, stem="imagenet")
    state = net.state_dict()
    assert set(state) == _torchvision_resnet18_keys() and len(state) == 120
    assert state["conv1.weight"].shape == (64, 3, 7, 7)
    assert state["layer3.0.downsample.0.weight"].shape == (256, 128, 1, 1)
    assert _count(net) == 11_176_512 and _count(net) + 512 * 1000 + 1000 == 11_689_512


@pytest.mark.parametrize("depth, dim, count", [(34, 512, 21_797_672), (50, 2048, 25_557_032)])
def test_deeper_ones_have_torchvisions_counts(depth, dim, count):
    net = ResNet(224, 3, depth=depth, stem="imagenet")
    assert net.dim == dim and _count(net) + dim * 1000 + 1000 == count


@pytest.mark.parametrize("depth", [18, 50])
def test_equals_the_resnet_of_transformers(depth):
    from transformers import ResNetConfig, ResNetModel

    kind = "bottleneck" if depth == 50 else "basic"
    widths = [8, 16, 32, 64] if depth == 18 else [32, 64, 128, 256]
    theirs = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=widths, layer_type=kind, hidden_act="relu",
                                      depths=[2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3])).double().eval()
    ours = ResNet(64, 3, depth=depth, width=8, stem="imagenet", mean=(0.0,), std=(1.0,)).double().eval()
    theirs_state = {k: torch.rand_like(v) + 0.1 if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(theirs_state)
    ours.load_state_dict({_our_name(k): v for k, v in theirs_state.items()})
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(pixel_values=x).last_hidden_state, rtol=1e-8, atol=1e-8)


def _our_name(name):
    name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    if name.startswith("encoder.stages."):
        _, _, stage, _, block, *rest = name.split(".")
        rest = ".".join(rest).replace("shortcut.convolution", "downsample.0")
        rest = rest.replace("shortcut.normalization", "downsample.1")
        for i in range(3):
            rest = rest.replace(f"layer.{i}.convolution", f"conv{i + 1}")
            rest = rest.replace(f"layer.{i}.normalization", f"bn{i + 1}")
        return f"layer{int(stage) + 1}.{block}.{rest}"
    return name


@pytest.mark.parametrize("stem, stride, side", [("cifar", None, 4), ("cifar", 4, 8), ("cifar", 1, 32),
                                                ("imagenet", None, 1), ("imagenet", 8, 4), ("imagenet", 4, 8)])
def test_total_stride(stem, stride, side):
    net = ResNet(32, 3, depth=10, width=4, stem=stem, stride=stride)
    out = net(torch.rand(2, 3, 32, 32))
    assert out.shape == (2, 32, side, side) and net.stride == 32 // side
    assert set(net.state_dict()) == set(ResNet(32, 3, depth=10, width=4, stem=stem).state_dict())


def test_dilation_keeps_the_weights_function_at_the_places_that_remain():
    """With dilation in place of stride, every second place of the denser map is the coarse map."""
    coarse = ResNet(64, 3, depth=10, width=4, stem="cifar").double().eval()
    dense = ResNet(64, 3, depth=10, width=4, stem="cifar", stride=4).double().eval()
    dense.load_state_dict(coarse.state_dict())
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(dense(x)[:, :, ::2, ::2], coarse(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("depth", [10, 50])
def test_every_block_starts_as_the_identity(depth):
    net = ResNet(32, 3, depth=depth, width=4)
    block = net.layer1[-1]
    x = torch.rand(2, net.widths[0], 8, 8)
    if block.downsample is None:
        torch.testing.assert_close(block(x), x)
    else:
        torch.testing.assert_close(block(x), F.relu(block.downsample(x)))


@pytest.mark.parametrize("preact", [False, True])
@pytest.mark.parametrize("depth", [10, 50])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_variants_run_and_every_parameter_learns(depth, norm, preact):
    net = ResNet(16, 1, depth=depth, width=4, norm=norm, preact=preact)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.rand_like(p) * 0.1)
    x = torch.rand(4, 1, 16, 16)
    net(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    assert net.features(x).shape == (4, net.dim) and net.maps(x).shape == (4, net.dim, 2, 2)
    assert any(isinstance(m, GlobalBatchNorm2d) for m in net.modules()) == (norm == "batch")


def test_group_norm_keeps_rows_apart():
    net = ResNet(16, 3, depth=10, width=8, norm="group").double()
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(x)[:2], net(x[:2]))


def test_the_trunk_is_the_first_groups_on_images_of_any_size():
    net = ResNet(32, 3, depth=10, width=4, preact=True).eval()
    patches = torch.rand(6, 3, 8, 8)
    by_hand = net.layer3(net.layer2(net.layer1(net.conv1(net.normalise.per_channel(patches)))))
    torch.testing.assert_close(net.trunk(patches, 3), by_hand)
    assert by_hand.shape == (6, net.widths[2], 2, 2)
    torch.testing.assert_close(net.trunk(torch.full((1, 3, 32, 32), 0.3)), net(torch.full((1, 3, 32, 32), 0.3)))


@pytest.mark.parametrize("last", [1, 2, 3])
def test_an_earlier_last_group_is_the_beginning_of_the_whole(last):
    torch.manual_seed(0)
    whole = ResNet(16, 3, depth=10, width=4, preact=True).eval()
    torch.manual_seed(0)
    part = ResNet(16, 3, depth=10, width=4, preact=True, last_group=last).eval()
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(part(x), whole.trunk(x, last))
    assert part.dim == whole.widths[last - 1] and part.stride == 2 ** (last - 1)
    assert set(part.state_dict()) < set(whole.state_dict())


def test_it_is_the_encoder_it_says_it_is():
    net = ResNet(16, 3, depth=10, width=4, stride=4, mean=(0.1, 0.2, 0.3), std=(0.2,))
    assert isinstance(net, ConvEncoder) and not isinstance(net, TokenEncoder)
    assert net.config["name"] == "resnet10" and net.config["stride"] == 4 and net.config["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("options, said", [
    ({"depth": 19}, "depth 19"), ({"stem": "small"}, "small"), ({"stride": 16}, "stride of 16"),
    ({"norm": "layer"}, "layer"), ({"last_group": 5}, "last_group"),
])
def test_bad_settings_are_named(options, said):
    with pytest.raises(NotanError, match=said):
        ResNet(16, 3, **options)
