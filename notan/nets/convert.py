"""Weights of our encoders under the names that `transformers` uses, with the same mathematics."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from notan.errors import NotanError

_PREFIX = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def vit_to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A `ViT` state dict under the names in which `transformers` stores a `ViTModel` on disk.

    The fused qkv matrices (3 D, D) become query, key and value. `from_pretrained` reads the result on any version.
    """
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in _PREFIX:
            out[_PREFIX[name]] = value
            continue
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None:
            raise NotanError(f"weight {name!r}", "the state dict of a ViT", "convert the encoder only, not the method")
        layer, part, kind = match.groups()
        if part == "attn.qkv":
            for target, piece in zip(("query", "key", "value"), value.chunk(3)):
                out[f"encoder.layer.{layer}.attention.attention.{target}.{kind}"] = piece.contiguous()
        else:
            out[f"encoder.layer.{layer}.{_IN_BLOCK[part]}.{kind}"] = value
    return out


def hf_config(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a `ViTModel` that does what the `ViT` with this config does."""
    return {
        "model_type": "vit", "architectures": ["ViTModel"], "hidden_size": config["dim"],
        "num_hidden_layers": config["depth"], "num_attention_heads": config["heads"],
        "intermediate_size": int(config["dim"] * config["mlp_ratio"]), "image_size": config["image_size"],
        "patch_size": config["patch"], "num_channels": config["channels"], "qkv_bias": True, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }


def hf_preprocessor(config: dict[str, Any]) -> dict[str, Any]:
    """The `preprocessor_config.json` beside it: bytes to [0, 1], resize, and the encoder's own mean and std."""
    side, channels = config["image_size"], config["channels"]
    return {
        "image_processor_type": "ViTImageProcessor", "do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True,
        "size": {"height": side, "width": side}, "resample": 2, "do_normalize": True,
        "image_mean": _per_channel(config["mean"], channels), "image_std": _per_channel(config["std"], channels),
    }


def _per_channel(values: list[float], channels: int) -> list[float]:
    return list(values) * channels if len(values) == 1 else list(values)
