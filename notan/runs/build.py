"""From a config to a method with fresh weights: a function of the seed and of nothing else."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from notan import catalogue, world
from notan.data import COLUMNS, Data, DataInfo, keys
from notan.errors import NotanError
from notan.nets import protocols
from notan.nets.build import build_dual, build_encoder, build_seeing
from notan.nets.hub import described
from notan.nets.language import build_language, new_tokenizer
from notan.nets.spec import parse
from notan.nets.text import build_text
from notan.runs import config as configs
from notan.runs.config import Config

TEXTS = 4096                                                            # that a tokenizer is made from


def build_method(config: Config, info: DataInfo, home: Path | None = None) -> nn.Module:
    """The method of `config` for data like `info`, on the CPU, in training mode.

    Towers are drawn before the rest, so arms that share a seed and an encoder start from the same encoder. A language
    model with fresh weights finds in `home`, the run's folder, the tokenizer that `make_tokenizers` put there. Raises
    `NotanError` when the data lacks a column the method needs, or a tower is not of the kind it needs.
    """
    entry = catalogue.method(config.method)
    check_columns(entry, info)
    cls = getattr(import_module(f"notan.methods.{config.method}"), entry.cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        towers = [_tower(config, asked, info, home) for asked in entry.towers]
        for tower, asked in zip(towers, entry.towers):
            _check_kind(config, tower, asked)
        known = {"data": info} if "data" in inspect.signature(cls.__init__).parameters else {}
        return cls(*towers, **config.settings, **known).train()


def make_tokenizers(config: Config, data: Data, home: Path) -> None:
    """Put a tokenizer, made from the texts that the method needs, into `home` for each language model
    and text encoder that has none.

    It is made once, by rank 0, from at most TEXTS rows of the training split, where a method needs no texts from the names of
    classes, and only while the run has not begun.
    """
    entry = catalogue.method(config.method)
    check_columns(entry, data.info)
    words = [c for c in entry.columns if c in data.info.columns and COLUMNS[c].dtype == "str"]
    wanting = [t.name for t in entry.towers if _wants_tokenizer(config.towers[t.name], t)]
    if wanting and world.is_main() and not (home / "config.yaml").exists():
        index = keys.shuffle(0, 0, len(data.train))[:TEXTS]
        batch = data.train.only(*words).take(index) if words else {}
        for name in wanting:
            options = _of_texts(config.towers[name])[1]
            texts = [text for c in words for cell in batch[c] for text in ([cell] if isinstance(cell, str) else cell)]
            made = new_tokenizer(texts or list(data.info.classes), options.get("vocabulary", 2000), options.get("context", 256))
            made.save_pretrained(home / name)
    world.barrier()


def check_columns(entry: catalogue.Entry, info: DataInfo) -> None:
    """Raises `NotanError` that names the first column the method needs and the data lacks."""
    if missing := entry.lacking(info.columns):
        raise NotanError(f"{entry.slug} needs the column {missing[0]!r}; {info.name} has {', '.join(info.columns)}",
                         ", ".join(entry.card["needs"]),
                         "rename a column (--column theirs=ours), or choose a method for what there is (`notan list`)")


def info_from(record: dict[str, Any]) -> DataInfo:
    """The DataInfo that a run's facts describe."""
    names = {f.name for f in fields(DataInfo)}
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in names}
    return DataInfo(**known)


def sided(data: str | Data, options: dict[str, Any] | None, encoder: Any) -> dict[str, Any]:
    """Options of data with the side of pictures that a trained tower was made for, where none was asked for.

    encoder: a tower's spec, or a dict of tower to spec.
    """
    options = dict(options or {})
    if isinstance(data, Data) or options.get("cache_side") is not None:
        return options
    specs = encoder.values() if isinstance(encoder, dict) and "name" not in encoder else [encoder]
    side = next(filter(None, map(_made_for, specs)), None)
    return options | {"cache_side": side} if side else options


def _made_for(spec: Any) -> int | None:
    """The side that a run or "hf:NAME" was made for, without its weights; None where it is no such thing, or does not say."""
    if not isinstance(spec, str):
        return None
    name = spec.removeprefix("hf:")
    if (run := Path(name) / "config.yaml").exists():
        return configs.load(run)[1]["info"].get("image_size")
    if not spec.startswith("hf:") or (Path(name).exists() and not (Path(name) / "config.json").exists()):
        return None                                                     # a .gguf file, or what whoever opens it will name
    config = described(name)
    side = getattr(getattr(config, "vision_config", config), "image_size", None)
    return side if isinstance(side, int) else None


def too_fast(config: Config) -> str:
    """A sentence where a released model begins by a recipe for fresh weights though another recipe is made for it; else ""."""
    recipes, recipe = catalogue.method(config.method).recipes, config.recipe
    released = [name for name, spec in config.towers.items() if _released(spec) and not _released(recipes[recipe].get(name))]
    other = next((other for other, r in recipes.items() if any(_released(r.get(name)) for name in released)), "")
    if not other:
        return ""
    how = f"{config.optimiser['name']} at {config.optimiser['lr']:g}"
    return (f"The {released[0]} of {config.method} has learned already, and the recipe {recipe} ({how}) is for fresh weights: "
            f"--recipe {other} is made for it; or give --lr.")


def _released(spec: Any) -> bool:
    """Whether a tower's spec names a model of the hub."""
    return spec.startswith("hf:") if isinstance(spec, str) else isinstance(spec, dict) and spec.get("name") == "hf"


def _tower(config: Config, asked: catalogue.Parameter, info: DataInfo, home: Path | None) -> nn.Module:
    spec = config.towers[asked.name]
    build: Any = (build_language if is_language(asked) else build_text if reads_texts(asked) else
                  build_seeing if sees(asked) else None)
    if is_both(asked):
        return _both(spec, info, asked, home)
    if build is None:
        return build_encoder(spec, info)
    if home is not None and (home / "config.yaml").exists() and (home / asked.name / "config.json").exists():
        return build(str(home / asked.name))                            # a finished run has all it needs
    if home is not None and _wants_tokenizer(spec, asked):
        name, options = parse(spec)
        spec = {"name": name, **options, "tokenizer": str(home / asked.name)}
    return build(spec, info) if sees(asked) else build(spec)


def _both(spec: Any, info: DataInfo, asked: catalogue.Parameter, home: Path | None) -> nn.Module:
    """A dual encoder; the tokenizer of a fresh one is in the run's folder."""
    if home is not None and (home / "config.yaml").exists() and (home / asked.name / "config.json").exists():
        return build_dual(str(home / asked.name))
    if home is not None and _wants_tokenizer(spec, asked):
        name, options = _of_texts(spec)
        spec = {**spec, "text_encoder": {"name": name, **options, "tokenizer": str(home / asked.name)}}
    return build_dual(spec, info)


def is_both(asked: catalogue.Parameter) -> bool:
    """Whether a tower is two encoders with a joint space."""
    return asked.annotation.rsplit(".", 1)[-1] == "DualEncoder"


def is_language(asked: catalogue.Parameter) -> bool:
    """Whether a tower is a language model."""
    return asked.annotation.rsplit(".", 1)[-1] == "LanguageModel"


def sees(asked: catalogue.Parameter) -> bool:
    """Whether a tower is a language model that sees."""
    return asked.annotation.rsplit(".", 1)[-1] == "SeeingModel"


def has_texts(asked: catalogue.Parameter) -> bool:
    """Whether a tower brings texts to a space of vectors, alone or with pictures."""
    return reads_texts(asked) or is_both(asked) or sees(asked)


def reads_texts(asked: catalogue.Parameter) -> bool:
    """Whether a tower is a text encoder."""
    return asked.annotation.rsplit(".", 1)[-1] == "TextEncoder"


def _wants_tokenizer(spec: Any, asked: catalogue.Parameter) -> bool:
    """Whether `spec` is a language model, which may see, or a text encoder with fresh weights and no tokenizer of its own."""
    ready = isinstance(spec, str) and (spec.startswith("hf:") or Path(spec).is_dir())
    if ready or not (is_language(asked) or has_texts(asked)):
        return False
    name, options = _of_texts(spec)
    return name in ("gpt2", "llava", "text") and "tokenizer" not in options


def _of_texts(spec: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of what reads texts: a tower itself, or of a dual encoder its text encoder."""
    name, options = parse(spec)
    return parse(options["text_encoder"]) if name == "dual" and "text_encoder" in options else (name, options)


def _check_kind(config: Config, tower: nn.Module, asked: catalogue.Parameter) -> None:
    kind = getattr(protocols, asked.annotation.rsplit(".", 1)[-1], None)
    if kind is not None and getattr(kind, "_is_runtime_protocol", False) and not isinstance(tower, kind):
        raise NotanError(f"{config.method} was given {config.towers[asked.name]} as its {asked.name}",
                         f"a {asked.annotation} ({(kind.__doc__ or '').splitlines()[0].strip().rstrip('.')})",
                         f"--{asked.name} " + ("vit" if "Token" in asked.annotation else "resnet18"))
