"""A model as functions into one space of vectors: the one place that says what it reads, how, and which weights it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.data import keys
from notan.errors import NotanError, did_you_mean
from notan.methods._inputs import whole
from notan.nets.hub import fingerprint
from notan.nets.protocols import DualEncoder, ImageEncoder, LanguageModel, NumberEncoder, SeeingModel, TextEncoder
from notan.nets.text import TextTransformer
from notan.runs.embed import by_method, called, check_heard, check_listens, fitted, reader_of, source_of
from notan.runs.folder import Run
from notan.runs.words import reads_both

Batch = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What a model makes of rows, as vectors of length 1, float32 (B, D) on the CPU.

    pictures: of uint8 (B, `channels`, `side`, `side`); texts: of strings; numbers: of a batch with `features` or `series`. None
    where the model reads no such thing. reader: what has the tokenizer of its texts.
    """

    name: str
    fingerprint: str
    pictures: Callable[[Tensor], Tensor] | None = None
    texts: Callable[[list[str]], Tensor] | None = None
    numbers: Callable[[Batch], Tensor] | None = None
    side: int = 0
    channels: int = 0
    reader: Any = None

    @property
    def reads(self) -> str:
        """In words, for messages."""
        kinds = [name for name in ("pictures", "texts", "numbers") if getattr(self, name) is not None]
        return " and ".join(kinds)


def open_space(source: str | Path | Run | nn.Module, vector: str | None = None, instruction: str | None = None) -> Space:
    """The space of a run (its method's `encode`), an encoder folder, "hf:NAME", or a module with `features`.

    vector: of a method that gives several vectors, which; not needed where they are of a picture and its text. instruction: that
    pictures are encoded under. On a GPU where there is one. Raises `NotanError` where nothing can be loaded, for several vectors
    of which none was named, and for an instruction to a model that reads none.
    """
    device, name, opened = torch.device("cuda" if torch.cuda.is_available() else "cpu"), called(source), source_of(source)
    both = isinstance(opened, Run) and reads_both(opened.path)
    if vector is not None and (both or not isinstance(opened, Run)):
        raise _one(name)
    if instruction is not None:
        check_listens(opened, instruction)
    if isinstance(opened, Run):
        return _of_run(opened, vector, instruction, device)
    return _of_tower(opened.eval().to(device), name, instruction, device)


def model_of(space: Space, vector: str | None, instruction: str | None) -> dict[str, Any]:
    """What an index keeps of the model that made it."""
    return {"name": space.name, "fingerprint": space.fingerprint, "vector": vector, "instruction": instruction}


def _of_run(run: Run, vector: str | None, instruction: str | None, device: torch.device) -> Space:
    method, info = run.method().to(device), run.info
    encode, both = by_method(method, info), reads_both(run.path)
    reader = reader_of(method)
    if instruction is not None:
        check_heard(reader, instruction)

    def one(batch: Batch, wanted: str | None) -> Tensor:
        first = next(iter(batch.values()))
        with torch.inference_mode():
            z = encode({**batch, "key": torch.from_numpy(keys.row_keys(0, 0, torch.arange(len(first)).numpy())),
                        "row": torch.arange(len(first))})
        return _unit(_chosen(z, wanted, called(run)))

    def seen(x: Tensor) -> Tensor:
        asked = {} if instruction is None else {"instruction": [instruction] * len(x)}
        return one({"image": x, **asked}, "image" if both else vector)

    pictures = info.image_size is not None and "image" in info.columns
    return Space(
        called(run), fingerprint(method), side=info.image_size or 0, channels=info.channels or 0, reader=reader,
        pictures=seen if pictures and (both or reader is None) else None,
        texts=(lambda texts: one({"text": texts}, "text" if both else vector)) if reader is not None else None,
        numbers=(lambda batch: one(batch, vector)) if not pictures and reader is None else None)


def _of_tower(encoder: Any, name: str, instruction: str | None, device: torch.device) -> Space:
    reader = reader_of(encoder)
    if instruction is not None:
        check_heard(reader, instruction)

    def pixels(x: Tensor) -> Tensor:
        x = fitted(x.to(device), encoder.channels, encoder.image_size)
        with torch.inference_mode():
            return _unit(encoder.features(x) if instruction is None else encoder.image(x, [instruction] * len(x)))

    def words(texts: list[str]) -> Tensor:
        with torch.inference_mode():
            return _unit(encoder.text(texts) if hasattr(encoder, "text") else encoder.features(texts))

    def numbers(batch: Batch) -> Tensor:
        with torch.inference_mode():
            return _unit(encoder.features(*(x.to(device) for x in whole(batch, encoder))))

    weights = fingerprint(encoder)
    if isinstance(encoder, (DualEncoder, SeeingModel)):
        return Space(name, weights, pictures=pixels, texts=words, side=encoder.image_size, channels=encoder.channels,
                     reader=reader)
    if isinstance(encoder, (TextEncoder, LanguageModel)):
        return Space(name, weights, texts=words, reader=reader)
    if isinstance(encoder, NumberEncoder):
        return Space(name, weights, numbers=numbers)
    if not isinstance(encoder, ImageEncoder):
        raise NotanError(f"{name} is a {type(encoder).__name__}", "an encoder of pictures, texts or numbers",
                         "a module with features, dim and config: see notan/nets/protocols.py")
    return Space(name, weights, pictures=pixels, side=encoder.image_size, channels=encoder.channels)


def _chosen(z: Tensor | dict[str, Tensor], wanted: str | None, name: str) -> Tensor:
    if isinstance(z, Tensor):
        if wanted is not None:
            raise _one(name)
        return z
    if wanted is None and len(z) > 1:
        raise NotanError(f"{name} gives several vectors of a row: {', '.join(z)}", "one of them", f"--vector {next(iter(z))}")
    if wanted is not None and wanted not in z:
        raise NotanError(f"{name} gives no vector {wanted!r}", ", ".join(z), did_you_mean(wanted, z))
    return z[wanted] if wanted is not None else next(iter(z.values()))


def _one(name: str) -> NotanError:
    return NotanError(f"{name} gives one vector of a row, and --vector was given", "no choice", "leave it out")


def _unit(z: Tensor) -> Tensor:
    return F.normalize(z.float(), dim=1).cpu().clone()


# ----------------------------------------------------------------------------------------------------------- reading words

def heard(space: Space, text: str) -> list[str]:
    """What to know of how a query is read: whether it is cut, and words that the tokenizer has no pieces for.

    Raises `NotanError` for an empty query, and for one of which every token is unknown: all such queries are one.
    """
    if not text.strip():
        raise NotanError("the query is empty", "words", 'notan search INDEX "a red bicycle"')
    tokenizer, name = space.reader.tokenizer, Path(space.name).name
    ids = _ids(tokenizer, text)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if ids and unknown is not None and all(i == unknown for i in ids):
        raise NotanError(f"{text!r} has no token that the tokenizer of {name} knows",
                         "words of a language that the model has learned", "ask in the language of its texts")
    said, room = [], _room(space.reader)
    if len(ids) > room:
        kept = tokenizer.decode(ids[:room]).strip()
        said.append(f"the query has {len(ids)} tokens and {name} reads {room}: it was cut after {kept[-40:]!r}")
    strange = [word for word in dict.fromkeys(text.split()) if _is_strange(tokenizer, word, unknown)]
    if strange:
        every = len(strange) == len(set(text.split()))
        said.append(f"the tokenizer of {name} has no pieces for {', '.join(strange[:5])}{', ...' if len(strange) > 5 else ''}: "
                    + ("nothing of the query is known, and the order is by chance" if every else
                       "these words may mean nothing to the model"))
    return said


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _is_strange(tokenizer: Any, word: str, unknown: int | None) -> bool:
    """Whether a word has unknown tokens alone, or is in another script and read byte by byte."""
    ids, size = _ids(tokenizer, word), len(word.encode("utf-8", "replace"))
    if unknown is not None and ids and all(i == unknown for i in ids):
        return True
    return not word.isascii() and size > 2 and len(ids) >= size


def _room(reader: Any) -> int:
    """Tokens of a text that are read, without those that mark its ends."""
    marks = reader.tokenizer.num_special_tokens_to_add()
    return int(reader.context) - (2 if isinstance(reader, TextTransformer) else int(marks))
