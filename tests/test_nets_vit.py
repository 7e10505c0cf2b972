"""The ViT: names, arithmetic against `transformers`, what a mask hides, precision, and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.nets.convert import hf_config, hf_preprocessor, vit_to_hf
from notan.nets.pixels import patchify, unpatchify
from notan.nets.positions import sincos_2d
from notan.nets.protocols import ConvEncoder, ImageEncoder, TokenEncoder
from notan.nets.vit import Block, ViT, attention

TIMM_KEYS = {
    "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias",
    *(f"blocks.0.{part}.{kind}" for kind in ("weight", "bias")
      for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
}


def _vit(dtype=torch.float64, **options):
    torch.manual_seed(0)
    statistics = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    vit = ViT(16, 3, **({"patch": 4, "dim": 24, "depth": 2, "heads": 3} | statistics | options))
    with torch.no_grad():
        for p in vit.parameters():                                      # biases and norms too, so that each matters
            p.add_(torch.randn_like(p) * 0.05)
    return vit.to(dtype)


def _pixels(B=3, dtype=torch.float64):
    return torch.rand(B, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def _mask(B=3, hidden=10):
    return torch.rand(B, 16, generator=torch.Generator().manual_seed(2)).argsort(1) < hidden


@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_names_are_timms_and_positions_are_saved(positions):
    state = _vit(depth=1, positions=positions).state_dict()
    assert set(state) == TIMM_KEYS
    assert state["pos_embed"].shape == (1, 17, 24) and state["patch_embed.proj.weight"].shape == (24, 3, 4, 4)


def test_equals_the_vit_of_transformers_after_renaming(tmp_path):
    import json

    from safetensors.torch import save_file
    from transformers import ViTModel

    vit, x = _vit(torch.float32), _pixels(dtype=torch.float32)
    save_file(vit_to_hf(vit.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf_config(vit.config)))
    theirs, report = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    theirs, vit = theirs.double().eval(), vit.double()
    prepared = hf_preprocessor(vit.config)
    mean, std = (torch.tensor(prepared[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    out = theirs(pixel_values=(x.double() - mean) / std).last_hidden_state
    torch.testing.assert_close(vit(x.double()), out, rtol=1e-7, atol=1e-7)


def test_only_encoders_can_be_renamed():
    with pytest.raises(NotanError, match=r"decoder\.weight"):
        vit_to_hf({"decoder.weight": torch.zeros(1)})


def test_hidden_pixels_change_nothing_and_visible_ones_do():
    vit, x, mask = _vit(), _pixels(), _mask()
    z = vit(x, mask)
    assert z.shape == (3, 1 + 6, 24)
    patches = patchify(x, 4)
    other = torch.where(mask[..., None], 1 - patches, patches)
    torch.testing.assert_close(vit(unpatchify(other, 4, (4, 4)), mask), z)
    other = torch.where(mask[..., None], patches, 1 - patches)
    assert (vit(unpatchify(other, 4, (4, 4)), mask) - z).abs().max() > 1e-3


def test_a_masked_pass_is_attention_among_visible_tokens():
    vit, x, mask = _vit(depth=1), _pixels(), _mask()
    every = vit.embed(x)
    seen = torch.cat([torch.ones(3, 1, dtype=torch.bool), ~mask], 1)
    by_hand = torch.stack([vit.norm(vit.blocks[0](every[b:b + 1, seen[b]]))[0] for b in range(3)])
    torch.testing.assert_close(vit(x, mask), by_hand)
    torch.testing.assert_close(vit(x, torch.zeros_like(mask)), vit(x))


@pytest.mark.parametrize("last", [0, 1, 5, 7])
def test_the_tail_of_a_block_is_the_end_of_what_it_gives_with_the_same_gradients(last):
    torch.manual_seed(0)
    block = Block(12, 3).double()
    block.attn.qkv.bias.data.normal_()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    cut, whole = block.tail(x, last), block(x)[:, 7 - last:]
    torch.testing.assert_close(cut, whole)
    weight, inputs = torch.randn_like(cut), [x, *block.parameters()]
    got, wanted = (torch.autograd.grad((y * weight).sum(), inputs) for y in (cut, whole))
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b)


def test_features_and_maps_are_views_of_the_same_tokens():
    x = _pixels()
    for pool in ("mean", "cls"):
        vit = _vit(pool=pool)
        z, maps = vit(x), vit.maps(x)
        torch.testing.assert_close(vit.features(x), z[:, 1:].mean(1) if pool == "mean" else z[:, 0])
        assert maps.shape == (3, 24, 4, 4)
        torch.testing.assert_close(maps[:, :, 1, 2], z[:, 1 + 6])       # raster order


def test_it_is_the_encoder_it_says_it_is():
    vit = _vit()
    assert isinstance(vit, TokenEncoder) and isinstance(vit, ImageEncoder) and not isinstance(vit, ConvEncoder)
    assert vit.tokens == 16 and vit.grid == (4, 4) and vit.dim == 24
    again = ViT(**{k: v for k, v in vit.config.items() if k != "name"})
    assert again.config == vit.config
    again.load_state_dict(vit.state_dict())
    torch.testing.assert_close(again.double()(_pixels()), vit(_pixels()))


def test_precisions_agree():
    exact = _vit()(_pixels())
    torch.testing.assert_close(_vit(torch.float32)(_pixels()).double(), exact, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = _vit(torch.float32)(_pixels().float(), None)
    torch.testing.assert_close(rough.double(), exact, rtol=0.1, atol=0.1)


def test_gradient_reaches_every_parameter_and_not_fixed_positions():
    vit = _vit(positions="sincos")
    vit(_pixels(), _mask()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in vit.parameters())
    assert "pos_embed" not in dict(vit.named_parameters())


def test_compiled_equals_eager():
    vit, x = _vit(torch.float32, depth=1), _pixels(dtype=torch.float32)
    torch.testing.assert_close(torch.compile(vit, backend="aot_eager", fullgraph=True)(x), vit(x))


@settings(max_examples=20, deadline=None)
@given(B=st.integers(1, 3), C=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(1, 4), p=st.integers(1, 4))
def test_patchify_is_row_column_channel_and_unpatchify_undoes_it(B, C, h, w, p):
    x = torch.rand(B, C, h * p, w * p)
    patches = patchify(x, p)
    assert torch.equal(unpatchify(patches, p, (h, w)), x)
    i, j, row, column, channel = h - 1, w // 2, p // 2, p - 1, C - 1
    flat = (row * p + column) * C + channel
    assert patches[0, i * w + j, flat] == x[0, channel, i * p + row, j * p + column]


def test_positions_tell_column_then_row():
    table = sincos_2d((3, 5), 16)
    assert table.shape == (15, 16)
    torch.testing.assert_close(table[0], torch.tensor([0.0] * 4 + [1.0] * 4).repeat(2))
    assert torch.equal(table[1, 8:], table[0, 8:]) and not torch.equal(table[1, :8], table[0, :8])   # next column
    assert torch.equal(table[5, :8], table[0, :8]) and not torch.equal(table[5, 8:], table[0, 8:])   # next row
    assert table[5, 8] == pytest.approx(0.8414710, abs=1e-6)            # sin(1)


@pytest.mark.parametrize("options, said", [
    ({"patch": 5}, "patch 5"), ({"heads": 5}, "5 heads"), ({"pool": "max"}, "pool"), ({"positions": "rope"}, "rope"),
    ({"dim": 30, "heads": 3, "positions": "sincos"}, "multiple of 4"), ({"mean": (0.1, 0.2)}, "mean"),
])
def test_bad_settings_are_named(options, said):
    with pytest.raises(NotanError, match=said):
        _vit(**options)


def test_bad_pixels_are_named():
    vit = _vit()
    with pytest.raises(NotanError, match="16, 16"):
        vit(torch.rand(2, 3, 20, 20))
    with pytest.raises(NotanError, match="uint8"):
        vit(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_to_some_tokens_is_that_to_them_alone(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g).to(dtype) for n in (4, 6, 6))
    shown = torch.tensor([[True] * 6, [True, False, True, True, False, True]])
    found = attention(q, k, v, shown=shown)
    for b in range(2):
        alone = attention(q[b : b + 1], k[b : b + 1, :, shown[b]], v[b : b + 1, :, shown[b]])
        close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 1e-2}
        torch.testing.assert_close(found[b : b + 1], alone, **close)
