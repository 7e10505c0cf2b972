"""Tiny random `transformers` models of several families, and prompts for them: what the contracts of decoding run on."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2Config,
    Qwen2VLConfig,
)

VOCABULARY, IMAGE, START = 61, 60, 59                                   # the last two: a picture's place, and its beginning
MARKS = [57, 58, 59, 60]                                                # what no text holds: such a model must not emit them
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BODY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128}
CONFIGS = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **COMMON),
    "llama": lambda: LlamaConfig(**BODY, **COMMON),
    "qwen2": lambda: Qwen2Config(**BODY, **COMMON),
    "llava": lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                       image_size=8, patch_size=4, projection_dim=16).to_dict(),
        text_config=LlamaConfig(**BODY, **COMMON).to_dict(), image_token_id=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=4),
    "qwen2_vl": lambda: Qwen2VLConfig(
        text_config={**BODY, **COMMON,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4,
                       "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=IMAGE, vision_start_token_id=START, video_token_id=58, vision_end_token_id=57, tie_word_embeddings=False),
}
SEEING = ("llava", "qwen2_vl")
PICTURE = 4                                                             # tokens of one picture in both


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float64):
    torch.manual_seed(seed)
    auto = AutoModelForImageTextToText if family in SEEING else AutoModelForCausalLM
    model = auto.from_config(CONFIGS[family]()).to(dtype).eval()
    with torch.no_grad():                                               # untrained heads are nearly uniform
        for p in model.parameters():
            p.mul_(3 if p.ndim > 1 else 1)
    return model


def prompts(family: str = "llama", B: int = 2, L: int = 7, pads: tuple[int, ...] = (0, 3), seed: int = 0,
            dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """B prompts of at most L tokens, padded on the left; a family that sees gets a picture after the first token of each."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (B, L), generator=g)
    mask = torch.ones_like(ids)
    for b, n in zip(range(B), pads):
        ids[b, :n], mask[b, :n] = 2, 0
    if family not in SEEING:
        return {"input_ids": ids, "attention_mask": mask}
    place = torch.tensor([START] + [IMAGE] * PICTURE) if family == "qwen2_vl" else torch.tensor([IMAGE] * PICTURE)
    ids = torch.stack([torch.cat([row[: n + 1], place, row[n + 1:]]) for row, n in zip(ids, pads)])
    mask = torch.cat([mask, mask.new_ones(B, len(place))], dim=1)
    if family == "llava":
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(B, 3, 8, 8, generator=g, dtype=dtype)}
    patches = torch.randn(B * PICTURE * 4, 3 * 2 * 4 * 4, generator=g, dtype=dtype)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": patches,
            "image_grid_thw": torch.tensor([[1, 4, 4]] * B), "mm_token_type_ids": (ids == IMAGE).long()}


def repeated(inputs: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """The rows again and again, prompt by prompt, each with its picture."""
    return {name: x.repeat(times, *[1] * (x.ndim - 1)) for name, x in inputs.items()}


def row(inputs: dict[str, Tensor], b: int, pad: int) -> dict[str, Tensor]:
    """Row b alone, without its padding, and its picture."""
    B = len(inputs["input_ids"])
    found = {}
    for name, x in inputs.items():
        part = x.chunk(B)[b]
        found[name] = part[:, pad:] if name in ("input_ids", "attention_mask", "mm_token_type_ids") else part
    return found
