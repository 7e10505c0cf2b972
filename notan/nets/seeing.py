"""Language models that see, read at a token of their own: a picture under an instruction, and a text, as vectors in one space.

A folder that `save_seeing` writes is one of `transformers`, which AutoModelForImageTextToText and AutoProcessor open; beside it
lie the readout token and the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.dual import head
from notan.nets.files import load_weights, moved_into
from notan.nets.hub import fingerprint
from notan.nets.insert import replaced_at
from notan.nets.language import explained, read_by_head, without_bars
from notan.nets.lora import merged

IMAGE, LENGTH, SIDE = "<image>", 128, 224                               # SIDE: of pictures, where a model takes any
OWN = "readout.safetensors"
SIZES = {"dim": 128, "depth": 3, "heads": 4, "context": 192, "patch": 8, "image_size": 0, "picture_depth": 3}


class Seeing(nn.Module):
    """A `SeeingModel` around an image-text-to-text model of `transformers` and its processor.

    What is read is [picture; instruction; readout], or [text; readout]: a vector of its own stands at the end, from where the
    model sees all that is before it, and P leads from its last state to the space. Instructions and texts are cut after
    `context` tokens. config: what `build_seeing` rebuilds it from.
    """

    def __init__(self, model: Any, processor: Any, config: dict[str, Any], *, dim: int) -> None:
        super().__init__()
        words = model.get_input_embeddings().weight.detach()
        self.model, self.processor, self.config = model, processor, config
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "right"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.readout = Readout(words.shape[1], dim, words.std())
        self.dim, self.channels, self.image_size = dim, 3, config.get("image_size") or _side(model)
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
        self.context = min(LENGTH, room - 1 - self._rows(torch.zeros(1, 3, self.image_size, self.image_size),
                                                         [""])["input_ids"].shape[1])
        if self.context < 1:
            raise NotanError(f"a context of {room} tokens, all of which a picture takes", "room for an instruction",
                             "a longer context, or larger patches")

    def image(self, pixels: Tensor, instructions: Sequence[str] | None = None) -> Tensor:
        """Pixels (B, C, S, S) in [0, 1], under an instruction each or none, to (B, d), not normalised.

        The model's own processor makes its input of them, so no gradient goes back to the pixels.
        """
        return self.read(self._rows(pixels, self._cut(instructions if instructions is not None else [""] * len(pixels))))

    def text(self, texts: list[str]) -> Tensor:
        """Texts alone to (B, d), not normalised."""
        return self.read(self._rows(None, self._cut(texts)))

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    def forward(self, pixels: Tensor, instructions: Sequence[str] | None = None) -> Tensor:
        return self.image(pixels, instructions)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, d)
        return self.image(pixels)

    def read(self, rows: dict[str, Tensor]) -> Tensor:
        """P h of what a processor made, `input_ids` and `attention_mask` (B, L), padded on the right: (B, d).

        The mask hides nothing: nothing that counts comes after padding.
        """
        rows = dict(rows)
        ids, place = rows["input_ids"], rows.pop("attention_mask").sum(1)                       # (B, L), (B,)
        rows = {name: F.pad(x, (0, 1)) if x.shape == ids.shape else x for name, x in rows.items()}
        rows["input_ids"] = F.pad(ids, (0, 1), value=self.tokenizer.pad_token_id)

        def put(_words: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
            return replaced_at(x, self.readout.vector, place) if x.shape[:2] == rows["input_ids"].shape else x

        hook = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            h = read_by_head(self.model, **rows, attention_mask=torch.ones_like(rows["input_ids"]), use_cache=False)
        finally:
            hook.remove()
        return self.readout.P(h[torch.arange(len(h), device=h.device), place])

    def _rows(self, pixels: Tensor | None, said: Sequence[str]) -> dict[str, Tensor]:
        """What the processor makes of pictures and words, on the model's device."""
        from PIL import Image

        chat, seen = bool(getattr(self.processor, "chat_template", None)), {}
        if pixels is not None:
            arrays = (pixels.expand(-1, 3, -1, -1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            seen = {"images": [Image.fromarray(x) for x in arrays]}
        texts = [(self._chat if chat else self._plain)(text, pixels is not None) for text in said]
        rows = self.processor(text=texts, return_tensors="pt", padding=True, add_special_tokens=not chat, **seen)
        own = self.readout.vector
        return {name: x.to(own.device, own.dtype if x.is_floating_point() else None) for name, x in rows.items()
                if isinstance(x, Tensor) and x.numel()}

    def _chat(self, text: str, picture: bool) -> str:
        content = [{"type": "image"}] * picture + [{"type": "text", "text": text}] * bool(text)
        return self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                                  add_generation_prompt=True)

    def _plain(self, text: str, picture: bool) -> str:
        return f"{self.processor.image_token}\n{text}" if picture else text or "\n"

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """Texts of at most `context` tokens, and what says where a picture is taken out of them."""
        texts = [text.replace(self.processor.image_token, " ") for text in texts]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self.tokenizer.decode(row[: self.context]) if len(row) > self.context else text for text, row in zip(texts, ids)]


class Readout(nn.Module):
    """The vector that stands at the end, and the map P from the state above it to the space, without a bias."""

    def __init__(self, width: int, dim: int, spread: Tensor) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width) * spread)
        self.P = head(width, dim)


def freeze(model: Any, *, pictures: bool, words: bool) -> None:
    """Keep the head of a language model that sees as it is, and with them its picture encoder and its language model. What lies
    between the two learns.
    """
    parts = [p for name, p in model.get_encoder(modality="image").named_parameters() if "merger" not in name] if pictures else []
    parts += [*model.get_decoder().parameters()] if words else []
    own, top = model.get_input_embeddings().weight, model.get_output_embeddings()
    for p in [*parts, *(p for p in top.parameters() if p is not own)]:
        p.requires_grad_(False)


def _side(model: Any) -> int:
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    return side if isinstance(side, int) else SIDE


# ---------------------------------------------------------------------------------------------------------- to build one

def llava(tokenizer: Any, *, dim: int, depth: int, heads: int, context: int, patch: int, image_size: int,
          picture_depth: int) -> Seeing:
    """LLaVA's architecture (Liu et al. 2023, arXiv 2304.08485) at any size: CLIP's picture encoder of `picture_depth` blocks, two
    layers between, Llama of `depth` blocks; with weights from torch's generator.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    if dim % (2 * heads) or image_size % patch:
        raise NotanError(f"llava of dim {dim} with {heads} heads, and patches of {patch} in pictures of {image_size}",
                         "an even number of numbers for each head, and whole patches",
                         f"heads={max(1, dim // 32)}, patch={max(1, image_size // 8)}")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    size: dict[str, Any] = {"hidden_size": dim, "intermediate_size": 4 * dim, "num_attention_heads": heads}
    vision = CLIPVisionConfig(num_hidden_layers=picture_depth, image_size=image_size, patch_size=patch, projection_dim=dim,
                              **size)
    text = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=depth, max_position_embeddings=context,
                       tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                       pad_token_id=tokenizer.pad_token_id, **size)
    places = (image_size // patch) ** 2
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1, tie_word_embeddings=True,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), image_seq_length=places))
    model.model.vision_tower.post_layernorm.requires_grad_(False)       # states are taken before it
    config = {"name": "llava", "dim": dim, "depth": depth, "heads": heads, "context": context, "patch": patch,
              "image_size": image_size, "picture_depth": picture_depth, "vocabulary": len(tokenizer)}
    return Seeing(model, _processor(tokenizer, image_size, patch), config, dim=dim)


def _processor(tokenizer: Any, side: int, patch: int) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    pixels = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side},
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(pixels, tokenizer, patch_size=patch, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, image_token=IMAGE)


# ---------------------------------------------------------------------------------------------------- to keep and to open

def save_seeing(seeing: Any, folder: Path) -> None:
    """Write model and processor as `transformers` reads them, and readout and head beside them; config.json last.

    What was added to the weights (LoRA) is added up.
    """
    from safetensors.torch import save_file

    own = {name: x.detach().cpu().contiguous() for name, x in seeing.readout.state_dict().items()}
    with moved_into(folder) as place:
        with without_bars():
            seeing.model.save_pretrained(place, state_dict=merged(seeing.model))
        seeing.processor.save_pretrained(place)
        save_file(own, place / OWN, {"format": "pt"})


def load_seeing(source: str | Path, dim: int = 0) -> Seeing:
    """The model and the processor in `source`, a name on the hub or a folder (or a run's), in float32; with the readout and the
    head that lie there, else new ones.

    dim: of the space; where 0 that of the head, or 768. Raises `NotanError` for what cannot be loaded, and a head of another dim.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    inner = Path(source) / "model"
    path = inner if (inner / "config.json").exists() else Path(source)
    name = str(path) if path.is_dir() else str(source)
    with explained(source, "an image-text-to-text model"), without_bars():
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(name)
    kept = path / OWN
    width = _width(kept) if kept.exists() else dim or 768
    if dim and dim != width:
        raise NotanError(f"{source} has a space of {width} numbers, and {dim} were asked for", f"{width}", "leave out dim")
    dim = width
    config = {"name": "hf", "source": str(source), "hash": fingerprint(model), "dim": dim}
    seeing = Seeing(model.train(), processor, config, dim=dim)
    if kept.exists():
        load_weights(seeing.readout, kept)
    return seeing


def _width(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(file.get_slice("P.weight").get_shape()[0])
