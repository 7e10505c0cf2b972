"""Backbones of `transformers`, built from configs and read from local folders: shapes, statistics, saving, errors."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from notan.errors import NotanError
from notan.nets.build import build_encoder, load_encoder, save_encoder
from notan.nets.hub import HubEncoder, from_hub, reads_pictures
from notan.nets.norm import GlobalBatchNorm2d
from notan.nets.protocols import ImageEncoder, TokenEncoder

os.environ["HF_HUB_OFFLINE"] = "1"


def _config(kind):
    import transformers as T

    wide = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 32, "patch_size": 8}
    return {
        "vit": lambda: T.ViTConfig(**wide, **image),
        "dinov2": lambda: T.Dinov2Config(**wide, **image, mlp_ratio=2),
        "dinov2_with_registers": lambda: T.Dinov2WithRegistersConfig(**wide, **image, num_register_tokens=3),
        "siglip_vision_model": lambda: T.SiglipVisionConfig(**wide, **image),
        "clip_vision_model": lambda: T.CLIPVisionConfig(**wide, **image),
        "swin": lambda: T.SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2],
                                     window_size=4),
        "resnet": lambda: T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic"),
        "convnext": lambda: T.ConvNextConfig(hidden_sizes=[8, 24], depths=[1, 1], num_stages=2),
    }[kind]()


SHAPES = {"vit": (4, 1), "dinov2": (4, 1), "dinov2_with_registers": (4, 4), "siglip_vision_model": (4, 0),
          "clip_vision_model": (4, 1), "swin": (4, 0), "resnet": (4, 0), "convnext": (4, 0)}


def _save(kind, folder, **preprocessor):
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(_config(kind))
    model.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


@pytest.mark.parametrize("kind", SHAPES)
def test_any_backbone_is_an_encoder(kind, tmp_path):
    model = _save(kind, tmp_path).eval()
    encoder = from_hub(str(tmp_path), image_size=32).eval()
    side, prefix = SHAPES[kind]
    assert isinstance(encoder, ImageEncoder) and not isinstance(encoder, TokenEncoder)
    assert (encoder.dim, encoder.grid, encoder.prefix) == (24, (side, side), prefix)
    x = torch.rand(2, 3, 32, 32)
    theirs = model(pixel_values=(x - 0.5) / 0.5).last_hidden_state
    maps, features = encoder.maps(x), encoder.features(x)
    assert maps.shape == (2, 24, side, side) and features.shape == (2, 24)
    if theirs.dim() == 4:
        torch.testing.assert_close(maps, theirs)
        torch.testing.assert_close(features, theirs.mean((2, 3)))
    else:
        torch.testing.assert_close(maps.flatten(2).mT, theirs[:, prefix:])
        pooled = model(pixel_values=(x - 0.5) / 0.5).pooler_output if kind.endswith("vision_model") else None
        torch.testing.assert_close(features, pooled if pooled is not None else theirs[:, 0] if prefix else theirs.mean(1))


@pytest.mark.parametrize("kind", ["vit", "resnet", "clip_vision_model"])
def test_saved_encoders_need_the_hub_no_more(kind, tmp_path):
    _save(kind, tmp_path / "hub", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    info = SimpleNamespace(image_size=32, channels=3, mean=(), std=())
    encoder = build_encoder(f"hf:{tmp_path / 'hub'}", info).eval()
    assert encoder.config["mean"] == [0.1, 0.2, 0.3] and len(encoder.config["hash"]) == 16
    save_encoder(encoder, tmp_path / "ours")
    for file in (tmp_path / "hub").iterdir():
        file.unlink()
    again = load_encoder(tmp_path / "ours")
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.features(x), encoder.features(x), rtol=0, atol=0)
    assert again.config == encoder.config


def test_a_folder_of_transformers_is_recognised_without_a_prefix(tmp_path):
    _save("dinov2", tmp_path)
    assert isinstance(load_encoder(tmp_path), HubEncoder)


def test_the_hash_is_of_the_weights(tmp_path):
    _save("vit", tmp_path / "a")
    _save("vit", tmp_path / "b")
    a, b = from_hub(str(tmp_path / "a")), from_hub(str(tmp_path / "b"))
    assert a.config["hash"] == b.config["hash"]
    with torch.no_grad():
        next(b.model.parameters()).add_(1)
    b.model.save_pretrained(tmp_path / "b")
    assert from_hub(str(tmp_path / "b")).config["hash"] != a.config["hash"]


def test_batch_norms_of_a_foreign_net_become_global(tmp_path):
    _save("resnet", tmp_path)
    assert any(isinstance(m, GlobalBatchNorm2d) for m in from_hub(str(tmp_path)).modules())


def test_a_whole_clip_gives_its_vision_half(tmp_path):
    import transformers as T

    wide = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = wide | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = T.CLIPConfig(text_config=text, vision_config=wide | {"image_size": 32, "patch_size": 8}, projection_dim=8)
    T.CLIPModel(config).save_pretrained(tmp_path)
    encoder = from_hub(str(tmp_path))
    assert encoder.image_size == 32 and encoder.features(torch.rand(2, 3, 32, 32)).shape == (2, 24)


def test_what_is_not_there_or_not_for_images_is_named(tmp_path):
    import transformers as T

    with pytest.raises(NotanError, match="cannot load"):
        from_hub(str(tmp_path / "nothing"))
    T.BertModel(T.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                             vocab_size=9)).save_pretrained(tmp_path / "bert")
    with pytest.raises(NotanError, match="takes no images"):
        from_hub(str(tmp_path / "bert"))
    _save("vit", tmp_path / "vit")
    with pytest.raises(NotanError, match="--cache-side 32"):
        from_hub(str(tmp_path / "vit"), image_size=64)


# ---- what a name holds ----------------------------------------------------------------------------------------------------

def _kinds():
    from transformers import BeitConfig, BertConfig, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, ViTConfig

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sees = {**size, "image_size": 16, "patch_size": 8}
    words = {**size, "vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    return {"beit": (BeitConfig(**sees), True), "vit": (ViTConfig(**sees), True), "clip_vision": (CLIPVisionConfig(**sees), True),
            "clip": (CLIPConfig(vision_config=sees, text_config=words), True), "bert": (BertConfig(**words), False),
            "clip_text": (CLIPTextConfig(**words), False)}


@pytest.mark.parametrize("kind", ["beit", "vit", "clip_vision", "clip", "bert", "clip_text"])
def test_a_config_says_what_a_model_reads(kind):
    config, wanted = _kinds()[kind]                                     # BEiT has a vocabulary, of pictures' pieces
    assert reads_pictures(config) == wanted


def test_weights_of_a_hub_s_text_model_are_read_once_and_a_missing_name_is_asked_for_once(tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModel, BertConfig, BertModel

    from notan.methods._example import texts
    from notan.nets.language import new_tokenizer
    from notan.runs.embed import load_tower

    new_tokenizer(texts(8)["text"], 300, 32).save_pretrained(tmp_path / "bert")
    BertModel(BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                         pad_token_id=0)).save_pretrained(tmp_path / "bert")
    asked: list[str] = []

    def counted(kind):
        whole = kind.from_pretrained.__func__

        def from_pretrained(cls, source, **how):
            asked.append(kind.__name__)
            return whole(cls, source, **how)
        monkeypatch.setattr(kind, "from_pretrained", classmethod(from_pretrained))

    counted(AutoModel)
    assert load_tower(f"hf:{tmp_path / 'bert'}").dim == 16 and asked == ["AutoModel"]
    asked.clear()
    counted(AutoConfig)
    with pytest.raises(NotanError, match="transformers cannot load 'no/such-model-here'"):
        load_tower("hf:no/such-model-here")
    assert asked == ["AutoConfig"]
