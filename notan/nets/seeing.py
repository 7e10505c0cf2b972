"""Language models that see, read at a token of their own: a picture under an instruction, and a text, as vectors in one space.

A folder that `save_seeing` writes is one of `transformers`, which AutoModelForImageTextToText and AutoProcessor open; beside it
lie the readout token and the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError, check_between
from notan.nets.dual import head
from notan.nets.files import moved_into
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

    def __init__(self, model: Any, processor: Any, config: dict[str, Any], *, dim: int, image_size: int) -> None:
        super().__init__()
        self.model, self.processor, self.config = model, processor, config
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        with torch.no_grad():                                           # of the output: some scale what the table has
            words = model.get_input_embeddings()(torch.arange(min(model.get_input_embeddings().weight.shape[0], 4096)))
        self.readout = Readout(words.shape[1], dim, words.std())
        self.dim, self.channels, self.image_size = dim, 3, image_size
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
        taken = 1 + self._rows(torch.zeros(1, 3, image_size, image_size), [""])["input_ids"].shape[1]
        self.context = min(LENGTH, room - taken)
        if self.context < 1:
            raise NotanError(f"a context of {room} tokens, all of which a picture takes", "room for an instruction",
                             f"context={taken + LENGTH}, or larger patches")

    def image(self, pixels: Tensor, instructions: Sequence[str] | None = None) -> Tensor:
        """Pixels (B, C, S, S) in [0, 1], under an instruction each or none, to (B, d), not normalised.

        The model's own processor makes its input of them, so no gradient goes back to the pixels.
        """
        if instructions is not None and len(instructions) != len(pixels):
            raise NotanError(f"{len(instructions)} instructions for {len(pixels)} pictures", "one for each, or none")
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
            seen = {"images": [[Image.fromarray(x)] for x in arrays]}   # row by row: a flat list is one row's to some
        texts = [(self._chat if chat else self._plain)(text, pixels is not None) for text in said]
        rows = self.processor(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=not chat,
                              **seen)
        own = self.readout.vector
        return {name: x.to(own.device, own.dtype if x.is_floating_point() else None) for name, x in rows.items()
                if isinstance(x, Tensor) and x.numel()}

    def _chat(self, text: str, picture: bool) -> str:
        content = [{"type": "image"}] * picture + [{"type": "text", "text": text}] * bool(text or not picture)
        return self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False,
                                                  add_generation_prompt=True)

    def _plain(self, text: str, picture: bool) -> str:
        return f"{self.processor.image_token}\n{text}" if picture else text or "\n"

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """Texts of at most `context` tokens. Signs of the tokenizer's own, for a picture or the end of a turn, become spaces."""
        for sign in sorted({self.processor.image_token, *self.tokenizer.all_special_tokens}, key=lambda sign: (-len(sign), sign)):
            texts = [text.replace(sign, " ") for text in texts]
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
    between the two learns. Raises `NotanError` where the two cannot be told apart.
    """
    seen, read = model.get_encoder(modality="image"), model.get_decoder()
    if any(part in (model, model.base_model) for part in (seen, read)):
        raise NotanError(f"the picture encoder and the language model of a {type(model).__name__} cannot be told apart",
                         "a model of LLaVA's kind", "another --model")
    parts = [p for name, p in seen.named_parameters() if "merger" not in name] if pictures else []
    parts += [*read.parameters()] if words else []
    own, top = model.get_input_embeddings().weight, model.get_output_embeddings()
    for p in [*parts, *(p for p in top.parameters() if p is not own)]:
        p.requires_grad_(False)


def own_side(processor: Any) -> int:
    """The side of the pictures that a model was made for, in pixels; 0 where it takes any."""
    made = processor.image_processor
    for shape in ((made.crop_size if getattr(made, "do_center_crop", False) else None), getattr(made, "size", None)):
        shape = dict(shape or {})
        if shape.get("height") and shape["height"] == shape.get("width"):
            return int(shape["height"])
    return 0


# ---------------------------------------------------------------------------------------------------------- to build one

def llava(tokenizer: Any, *, dim: int, depth: int, heads: int, context: int, patch: int, image_size: int,
          picture_depth: int) -> Seeing:
    """LLaVA's architecture (Liu et al. 2023, arXiv 2304.08485) at any size: CLIP's picture encoder of `picture_depth` blocks, two
    layers between, Llama of `depth` blocks; with weights from torch's generator.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    check_between(1, math.inf, dim=dim, depth=depth, heads=heads, context=context, patch=patch, picture_depth=picture_depth)
    if dim % (2 * heads) or image_size % patch:
        fits = next(p for p in range(max(1, image_size // 8), 0, -1) if image_size % p == 0)
        raise NotanError(f"llava of dim {dim} with {heads} heads, and patches of {patch} in pictures of {image_size}",
                         "an even number of numbers for each head, and whole patches", f"dim=128, heads=4, patch={fits}")
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
    return Seeing(model, _processor(tokenizer, image_size, patch), config, dim=dim, image_size=image_size)


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
        save_file(own, place / OWN, {"format": "pt", "image_size": str(seeing.image_size)})


def load_seeing(source: str | Path, *, dim: int = 0, image_size: int | None = None) -> Seeing:
    """The model and the processor in `source`, a name on the hub or a folder (or a run's), in float32; with the readout and the
    head that lie there, else new ones.

    dim: of the space; where 0 that of the head, or 768. image_size: the data's, for a model that takes any and has
    learned from none yet. Raises `NotanError` for what cannot be loaded or read this way, and a head of another size.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    inner = Path(source) / "model"
    name = str(inner if (inner / "config.json").exists() else source)
    with explained(source, "an image-text-to-text model"), without_bars():
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(name)
    own, kept = kept_readout(name)
    width = len(own["P.weight"]) if own else dim or 768
    if dim and dim != width:
        raise NotanError(f"{source} has a space of {width} numbers, and {dim} were asked for", f"{width}", "leave out dim")
    config = {"name": "hf", "source": str(source), "hash": fingerprint(model), "dim": width}
    seeing = Seeing(model.eval(), processor, config, dim=width, image_size=kept or own_side(processor) or image_size or SIDE)
    if own:
        seeing.readout.load_state_dict(own)
    else:
        _check_reads(seeing, source)
    return seeing.train()


def kept_readout(name: str) -> tuple[dict[str, Tensor], int]:
    """The readout and the head that lie beside a model, in a folder or on the hub, and the side of the pictures that they were
    trained on; ({}, 0) where there are none.
    """
    from safetensors import SafetensorError, safe_open
    from transformers.utils import cached_file

    path = cached_file(name, OWN, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    if path is None:
        return {}, 0
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            return {key: file.get_tensor(key) for key in ("vector", "P.weight")}, int(about.get("image_size", 0))
    except (SafetensorError, OSError) as error:
        raise NotanError(f"{path} cannot be read ({error})", "the readout and the head that a run wrote",
                         "save the run again") from None


def _check_reads(seeing: Seeing, source: str | Path) -> None:
    """Raises `NotanError` for a model that reads no words alone, or in which a row depends on those beside it."""
    side, said = seeing.image_size, ["a", "a, and much more than that"]
    x = torch.linspace(0, 1, 6 * side * side).view(2, 3, side, side)
    try:
        with torch.no_grad():
            apart = [seeing.image(x, said)[0] - seeing.image(x[:1], said[:1])[0], seeing.text(said)[0] - seeing.text(said[:1])[0]]
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise NotanError(f"{source} does not read pictures with words, and words alone: {error}", "a model of LLaVA's kind",
                         "another --model") from None
    if (off := max(float(d.abs().max()) for d in apart)) > 1e-3:
        raise NotanError(f"what {source} makes of a row depends on the rows beside it (by {off:.2g})",
                         "a causal language model that sees", "another --model")
