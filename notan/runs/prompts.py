"""From what the user gave, words and pictures, to the rows of a batch that a model reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.runs.reader import Reader
from notan.strategies._strategy import Context

Picture = Any                                                           # a file's path, or an opened PIL picture


def given_with(prompts: Sequence[str], images: Sequence[Picture | None] | None, seed: int) -> list[Context]:
    """What the user gave, as contexts: words, pictures (opened, RGB), and keys of both and the seed.

    Raises `NotanError` for an empty prompt, pictures that are not one for each prompt, and a file that is no picture.
    """
    if not prompts or any(not text.strip() for text in prompts):
        raise NotanError("a prompt is empty", "some text to go on from", "--prompt TEXT")
    pictures = [None] * len(prompts) if images is None else [None if x is None else _opened(x) for x in images]
    if len(pictures) != len(prompts):
        raise NotanError(f"{len(pictures)} pictures for {len(prompts)} prompts", "one for each prompt, or None")
    return [Context(text, image=picture, key=_key(seed, text, picture)) for text, picture in zip(prompts, pictures)]


def contexts_of(strategy: Any, given: Sequence[Context], amateur: bool) -> list[list[Context]]:
    """The contexts of each given one, the main one first. Raises `NotanError` for a missing amateur or picture."""
    mains = [strategy.main(c) if hasattr(strategy, "main") else c for c in given]
    if not hasattr(strategy, "contexts"):                               # it looks ahead instead
        return [[main] for main in mains]
    found = [[main, *strategy.contexts(c, amateur)] for main, c in zip(mains, given)]
    if not amateur and any(c.model == "amateur" for c in found[0]):
        raise NotanError(f"{type(strategy).__name__} sets the model against an amateur, and none was given",
                         "a smaller or weaker model with the same vocabulary", "--amateur NAME")
    return found


def check_adds(strategy: Any) -> None:
    """Raises `NotanError` for a strategy that looks ahead instead of adding streams: it has no scores to give."""
    if not hasattr(strategy, "combine"):
        raise NotanError(f"{type(strategy).__name__} chooses by looking ahead and gives no scores to tokens",
                         "a strategy that adds streams", "see `notan decode list`")


def check_amateur(strategy: Any, amateur: Any) -> None:
    """Raises `NotanError` when the strategy needs an amateur and there is none."""
    from PIL import Image

    contexts_of(strategy, [Context("a prompt", image=Image.new("RGB", (16, 16)))], amateur is not None)


def rows_of(reader: Reader, contexts: Sequence[Context], chat: bool | None, new: int) -> dict[str, Tensor]:
    """What the model reads of the contexts, on its device: `input_ids` and `attention_mask` (R, L), padded on the left, and
    what its processor makes of the pictures. There is room for `new` tokens more, or `NotanError` is raised.
    """
    model, processor = reader
    pictures = [c.image for c in contexts if c.image is not None]
    if pictures and not hasattr(processor, "image_processor"):
        raise NotanError(f"{type(model).__name__} reads no pictures, and one was given", "an image-text-to-text model",
                         "another --model, or leave the picture out")
    chat = bool(processor.chat_template) if chat is None else chat
    texts = [_said(processor, c) if chat else _plain(processor, c) for c in contexts]
    seen = {"images": pictures} if pictures else {}
    rows = dict(processor(text=texts, return_tensors="pt", padding=True, add_special_tokens=not chat, **seen))
    longest, room = rows["input_ids"].shape[1], getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room and longest + new > room:
        raise NotanError(f"a prompt of {longest} tokens and {new} new ones", f"at most {room} together, the model's context",
                         f"--max-new-tokens {max(1, room - longest)}, or a shorter prompt")
    if any(c.noise for c in contexts):
        _noise(rows, contexts)
    kept = rows if pictures else {name: rows[name] for name in ("input_ids", "attention_mask")}
    return {name: x.to(model.device) for name, x in kept.items() if isinstance(x, Tensor)}


def _said(processor: Any, c: Context) -> str:
    """The context through the chat template."""
    content: Any = c.prompt
    if hasattr(processor, "image_processor"):
        content = [*([{"type": "image"}] if c.image is not None else []), {"type": "text", "text": c.prompt}]
    system: Any = [{"type": "text", "text": c.system}] if isinstance(content, list) else c.system
    said = [*([{"role": "system", "content": system}] if c.system else []), {"role": "user", "content": content}]
    return processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)


def _plain(processor: Any, c: Context) -> str:
    """The context without a template: instruction, picture, prompt."""
    return "\n".join([*([c.system] if c.system else []), *([processor.image_token] if c.image is not None else []), c.prompt])


def _noise(rows: dict[str, Any], contexts: Sequence[Context]) -> None:
    """Each context's noise on the pixels of its own picture. Raises `NotanError` where it cannot be told which they are."""
    pixels, seen = rows["pixel_values"], [c for c in contexts if c.image is not None]
    if (grid := rows.get("image_grid_thw")) is not None and len(grid) == len(seen):
        sizes = grid.prod(1).tolist()                                   # patches of all pictures, one behind the other
    elif len(pixels) == len(seen):
        sizes = [1] * len(seen)
    else:
        raise NotanError(f"pixels of shape {tuple(pixels.shape)} for {len(seen)} pictures", "pixels picture by picture",
                         "a strategy without noise: m3id, ritual")
    parts = [c.noise(part) if c.noise else part for part, c in zip(pixels.split(sizes), seen)]
    rows["pixel_values"] = torch.cat(parts)


def _opened(picture: Picture) -> Any:
    """A file or PIL picture as an RGB picture."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(picture, (str, Path)):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as opened:
            return opened.convert("RGB")
    except FileNotFoundError:
        raise NotanError(f"there is no picture {picture}", "a picture file", "check the path") from None
    except (UnidentifiedImageError, OSError) as error:
        raise NotanError(f"{picture} cannot be read as a picture ({error})", "a picture file", "check the file") from None


def _key(seed: int, prompt: str, picture: Any) -> int:
    """A signed 64-bit key of all three."""
    digest = hashlib.blake2b(f"{seed}\n{prompt}\n".encode(), digest_size=8)
    if picture is not None:
        digest.update(picture.tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)
