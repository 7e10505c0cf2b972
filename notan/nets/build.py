"""Encoders by name, and encoders in folders: `config.json` to build one and `model.safetensors` for its weights."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from notan.errors import NotanError, did_you_mean
from notan.nets.convnet import ConvNet
from notan.nets.dual import RELEASED, Dual, head, released
from notan.nets.files import load_weights, moved_into
from notan.nets.headed import Headed
from notan.nets.hub import HubEncoder, described, from_hub, rebuild
from notan.nets.language import fresh, pretrained, save_language
from notan.nets.mlp import MLP
from notan.nets.numbers import Series, Table
from notan.nets.prompted import Prompted
from notan.nets.protocols import DualEncoder, Encoder, LanguageModel, NumberEncoder, SeeingModel, TextEncoder
from notan.nets.resnet import DEPTHS, ResNet
from notan.nets.seeing import OWN, SIZES, Seeing, llava, load_seeing, save_seeing
from notan.nets.spec import parse
from notan.nets.stages import Stages
from notan.nets.text import NAMES, build_text, load_text, save_text
from notan.nets.vit import ViT

if TYPE_CHECKING:
    from notan.data.columns import DataInfo

VIT_SIZES = {                                                           # dim, depth, heads
    "vit-tiny": (192, 12, 3), "vit-small": (384, 12, 6), "vit-base": (768, 12, 12), "vit-large": (1024, 24, 16),
}
CLASSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "vit": (ViT, {}),
    **{name: (ViT, {"dim": d, "depth": n, "heads": h}) for name, (d, n, h) in VIT_SIZES.items()},
    "mlp": (MLP, {}),
    "table": (Table, {}),
    "series": (Series, {}),
    "convnet": (ConvNet, {}),
    **{f"resnet{depth}": (ResNet, {"depth": depth}) for depth in DEPTHS},
}


def build_encoder(spec: str | dict[str, Any], info: DataInfo | None = None) -> Any:
    """An encoder for the data that `info` describes, with fresh weights, or with those found at a name or path.

    spec: "vit:dim=192,depth=6", "resnet18:width=32,stem=cifar", "hf:<name or folder>" (any vision backbone of
    transformers, with its weights), a folder (a run, or an encoder of ours or of transformers), or the same as a dict
    with "name" and options. Sizes, channels and pixel statistics come from `info` unless the spec has them.
    Raises `NotanError` for unknown names and options, naming the nearest.
    """
    if isinstance(spec, str) and spec.startswith("hf:"):
        return _hub(spec[3:], info)
    if isinstance(spec, str) and Path(spec).is_dir():
        return _fitting(load_encoder(spec), info, spec)
    name, options = parse(spec)
    if name == "hf":
        return rebuild(options) if "architecture" in options else _hub(options["source"], info)
    if name == "headed":
        return Headed(build_encoder(options["base"], info), options["dim"])
    if name == "stages":
        return Stages([build_encoder(part, info) for part in options["parts"]])
    if name not in CLASSES:
        raise NotanError(f"there is no encoder {name!r}", f"{', '.join(CLASSES)}, hf:<name>, or a folder",
                         did_you_mean(name, CLASSES))
    make, preset = CLASSES[name]
    known = list(inspect.signature(make).parameters)
    for option in options:
        if option not in known or (make is ResNet and option in preset):
            raise NotanError(f"encoder {name} has no option {option!r}", ", ".join(known), did_you_mean(option, known))
    settings = (_of_numbers(name, info) if make in (Table, Series) else _from_info(info)) | preset | options
    _check_shape(name, settings, info)
    if make is ViT and "patch" not in settings:
        settings["patch"] = fitting_patch(settings["image_size"])
    return make(**settings)


def build_dual(spec: str | dict[str, Any], info: DataInfo | None = None) -> Dual:
    """Two encoders and a joint space: "hf:NAME|FOLDER" (a CLIP or SigLIP of transformers with its weights), a folder (a run of a
    method of pictures and texts, or what `save_encoder` wrote), or, with fresh weights, a dict with the name "dual", specs
    `image_encoder` and `text_encoder`, and `dim` and `tau`.
    """
    if isinstance(spec, str) and spec.startswith("hf:"):
        return _coloured(released(spec[3:]), info, spec[3:])
    if isinstance(spec, str) and Path(spec).is_dir():
        home = next((Path(spec) / name for name in ("dual", "model") if (Path(spec) / name / "config.json").exists()), Path(spec))
        if not is_dual(str(home)):
            raise NotanError(f"{spec} holds no two encoders with a joint space", "a finished run of clip, siglip or the like, "
                             "a folder of one, or hf:NAME", "train one: notan train clip --data DATA")
        return _coloured(released(str(home)) if _model_type(home) in RELEASED else load_encoder(home), info, spec)
    name, options = parse(spec)
    if name == "hf":
        return build_dual("hf:" + options["source"], info)
    if name != "dual" or not {"image_encoder", "text_encoder"} <= options.keys():
        raise NotanError(f"{spec!r} is no dual encoder, and no folder here", "hf:NAME, a run's folder, or the recipe's",
                         "check the path, or leave it out")
    pictures, texts = build_encoder(options["image_encoder"], info), build_text(options["text_encoder"])
    dim = options.get("dim", 128)
    return Dual(pictures, texts, head(pictures.dim, dim), head(texts.dim, dim), tau=options.get("tau", 0.07))


def build_seeing(spec: str | dict[str, Any], info: DataInfo | None = None) -> Seeing:
    """A language model that sees: "llava:dim=128,depth=3,tokenizer=FOLDER" with fresh weights, "hf:NAME|FOLDER" (image-text-to-
    text) with its own, or a folder (a run, or what `save_encoder` wrote); or the same as a dict with "name".

    Raises `NotanError` for unknown names and options, and what cannot be loaded.
    """
    side = None if info is None else info.image_size
    if isinstance(spec, str) and (spec.startswith("hf:") or Path(spec).is_dir()):
        return load_seeing(spec.removeprefix("hf:"), image_size=side)
    name, options = parse(spec)
    if name == "hf":
        return load_seeing(options["source"], dim=options.get("dim", 0), image_size=side)
    if name != "llava":
        raise NotanError(f"there is no language model {name!r} that sees", "llava (fresh weights), hf:<name>, or a folder",
                         did_you_mean(name, ["llava"]) or "--model llava")
    settings = fresh("llava", options, SIZES)
    return llava(**{**settings, "image_size": settings["image_size"] or side or 64})


def is_dual(source: str) -> bool:
    """Whether "hf:NAME", or a folder, is two encoders with a joint space. Raises `NotanError` for a name that is not there."""
    if source.startswith("hf:"):
        return described(source[3:]).model_type in RELEASED
    return _model_type(Path(source)) in ("dual", "prompted", *RELEASED)


def _model_type(folder: Path) -> str:
    """What config.json in a folder says that it is, "" where it says nothing."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return config.get("name") or config.get("model_type") or ""
    except (OSError, ValueError, AttributeError):
        return ""


def _save_dual(dual: Any, folder: Path) -> None:
    """Both encoders in folders of their own, and the heads beside them; prompts beside a folder with what is under them."""
    from safetensors.torch import save_file

    prompted = isinstance(dual, Prompted)
    for name in ["base"] if prompted else ["image_encoder", "text_encoder"]:
        save_encoder(getattr(dual, name), folder / name)
    with moved_into(folder) as place:
        own = ("image_prompts", "text_prompts") if prompted else ("image_head", "text_head")
        beside = {k: v.detach().cpu().contiguous() for k, v in dual.state_dict().items() if k.split(".")[0] in own}
        save_file(beside, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps(dual.config, indent=1) + "\n")


def _load_dual(folder: Path, config: dict[str, Any]) -> Dual:
    pictures, texts = load_encoder(folder / "image_encoder"), load_encoder(folder / "text_encoder")
    heads = [head(encoder.dim, config["dim"]) if linear else nn.Identity()
             for encoder, linear in zip((pictures, texts), config["heads"])]
    dual = Dual(pictures, texts, *heads, tau=config["tau"])
    load_weights(nn.ModuleDict({"image_head": heads[0], "text_head": heads[1]}), folder / "model.safetensors")
    return dual.eval()


def _load_prompted(folder: Path, config: dict[str, Any]) -> Prompted:
    options = {name: config[name] for name in ("images", "texts", "depth", "template")}
    prompted = Prompted(load_encoder(folder / "base"), **options)
    own = nn.ModuleDict({"image_prompts": prompted.image_prompts, "text_prompts": prompted.text_prompts})
    load_weights(own, folder / "model.safetensors")
    return prompted.eval()


def save_encoder(encoder: Encoder | LanguageModel | SeeingModel | TextEncoder | DualEncoder, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`; each file appears whole or not at all.

    A language model is written with its tokenizer, as `transformers` reads both; a text encoder with its tokenizer; of a dual
    encoder each of the two in a folder within, of a prompted one what is under its prompts.
    """
    from safetensors.torch import save

    assert isinstance(encoder, nn.Module)
    folder = Path(folder)
    if isinstance(encoder, LanguageModel):
        save_language(encoder, folder)
        return
    if isinstance(encoder, TextEncoder):
        save_text(encoder, folder)
        return
    if isinstance(encoder, SeeingModel):
        save_seeing(encoder, folder)
        return
    if isinstance(encoder, DualEncoder):
        _save_dual(encoder, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    _replace(folder / "model.safetensors", save(weights, {"format": "pt"}))
    _replace(folder / "config.json", (json.dumps(encoder.config, indent=1) + "\n").encode())


def load_encoder(folder: str | Path) -> Any:
    """The encoder, text encoder, dual encoder or language model, which may see, saved in `folder`, in a run's `encoder/`,
    `model/` or `dual/`, or in a folder that `transformers` wrote; in eval mode.
    """
    folder = Path(folder)
    places = ("encoder", "model", "dual")
    folder = next((folder / name for name in places if (folder / name / "config.json").exists()), folder)
    if not (folder / "config.json").exists():
        raise NotanError(f"{folder} holds no encoder", "a run, or a folder with config.json and model.safetensors",
                         "check the path, or wait for the run's first checkpoint")
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise NotanError(f"{folder / 'config.json'} is not JSON: {error}", fix="save the encoder again") from None
    if config.get("name") in NAMES:
        return load_text(folder)
    if config.get("name") == "dual":
        return _load_dual(folder, config)
    if config.get("name") == "prompted":
        return _load_prompted(folder, config)
    if "model_type" in config and (folder / OWN).exists():
        return load_seeing(folder).eval()
    if "model_type" in config and (folder / "tokenizer_config.json").exists():
        return pretrained(str(folder)).eval()
    if "model_type" in config and "name" not in config:
        return from_hub(str(folder))
    encoder = build_encoder(config)
    load_weights(encoder, folder / "model.safetensors")
    return encoder.eval()


def fitting_patch(image_size: int) -> int:
    """The patch of a ViT when none is named: the largest up to 16 that divides the side and leaves four or more to it."""
    divisors = [p for p in range(2, image_size // 2 + 1) if image_size % p == 0]
    if not divisors:
        raise NotanError(f"images of side {image_size}: no patch of 2 or more pixels divides it", "a side that has divisors",
                         f"pass --cache-side {image_size + 1}, or name vit:patch=1")
    return max((p for p in divisors if p <= 16 and image_size // p >= 4), default=divisors[0])


def _check_shape(name: str, settings: dict[str, Any], info: DataInfo | None) -> None:
    """Raises `NotanError` where neither the data nor the spec says how large a row is."""
    if name in ("table", "series"):
        if "width" not in settings:
            raise NotanError(f"encoder {name} was built without a width", "data with numbers, or width", f"write {name}:width=10")
    elif "image_size" not in settings and info is not None and info.width:
        raise NotanError(f"encoder {name} reads pictures, and {info.name} has {', '.join(info.columns)}", "an encoder of numbers",
                         "--recipe table or --recipe series, where the method has it")
    elif "image_size" not in settings:
        raise NotanError(f"encoder {name} was built without an image size",
                         "data with an `image` column, or image_size", f"write {name}:image_size=32")


def _from_info(info: DataInfo | None) -> dict[str, Any]:
    if info is None or info.image_size is None or info.channels is None:
        return {}
    settings: dict[str, Any] = {"image_size": info.image_size, "channels": info.channels}
    if info.mean and info.std:
        settings |= {"mean": tuple(info.mean), "std": tuple(s if s > 0 else 1.0 for s in info.std)}
    return settings


def _of_numbers(name: str, info: DataInfo | None) -> dict[str, Any]:
    """What data says of its `features` or, where there are none, of its `series`."""
    if info is None:
        return {}
    column = next((c for c in ("features", "series") if c in info.columns), "")
    if column != ("features" if name == "table" else "series"):
        raise NotanError(f"encoder {name} was named for {info.name}, which has {', '.join(info.columns)}",
                         "features for table, series for series", "--column THEIRS=features, or another --encoder")
    return {"width": info.width, "centre": info.centre, "spread": info.spread}


def _hub(source: str, info: DataInfo | None) -> HubEncoder:
    size = None if info is None else info.image_size
    return _fitting(from_hub(source, image_size=size), info, source)


def _fitting(encoder: Any, info: DataInfo | None, source: str) -> Any:
    """Refuse saved weights that were made for rows of another shape."""
    if info is not None and isinstance(encoder, NumberEncoder) and encoder.width != info.width:
        raise NotanError(f"the encoder in {source} takes {encoder.width} numbers", f"{info.width}, as the data has",
                         "use another encoder, or other data")
    if info is None or info.image_size is None or info.channels is None:
        return encoder
    have, want = (encoder.channels, encoder.image_size), (info.channels, info.image_size)
    if have != want:
        raise NotanError(
            f"the encoder in {source} takes {have[0]} channels of side {have[1]}",
            f"{want[0]} channels of side {want[1]}, as the data has",
            f"pass --cache-side {have[1]}" if have[0] == want[0] else "use another encoder, or other data",
        )
    return encoder


def _coloured(dual: Any, info: DataInfo | None, source: str) -> Any:
    """Refuse two encoders whose pictures have other channels; the side does not matter: methods of both bring pictures to it."""
    if info is not None and info.channels is not None and dual.channels != info.channels:
        raise NotanError(f"the picture encoder in {source} takes {dual.channels} channels",
                         f"{info.channels}, as the data has", "use another model, or other data")
    return dual


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
