"""Any vision backbone of `transformers` as an `ImageEncoder` (no token dropping)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.insert import Extra, inserted, replaced
from notan.nets.norm import globalise
from notan.nets.pixels import Normalise
from notan.nets.vit import take
from notan.views.masks import keep_indices


class HubEncoder(nn.Module):
    """A `transformers` model that takes `pixel_values`, behind the protocol of encoders.

    model: it gives a last hidden state of tokens (B, L, D) or a map (B, D, h, w). Batch norms become global.
    source: the name or folder it came from; `hash` is of its architecture and weights as they were then.
    `features` is the class token where there is one, after the last norm; SigLIP's attention pooling; else the mean over the map.
    """

    def __init__(
        self, model: nn.Module, *, source: str, image_size: int, mean: Sequence[float], std: Sequence[float],
        hash: str = "",
    ) -> None:
        super().__init__()
        settings: Any = model.config
        self.model = globalise(model)
        self.image_size, self.channels = image_size, int(getattr(settings, "num_channels", 3))
        self.normalise = Normalise(image_size, self.channels, mean, std)
        self.config: dict[str, Any] = {
            "name": "hf", "source": source, "hash": hash or fingerprint(model), "architecture": settings.to_dict(),
            "image_size": image_size, "mean": list(mean), "std": list(std),
        }
        self.dim, self.grid, self.prefix = self._shape(getattr(settings, "patch_size", None))

    def _hidden(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=self.normalise(pixels)).last_hidden_state

    @torch.no_grad()
    def _shape(self, patch: Any) -> tuple[int, tuple[int, int], int]:
        """Width, grid and number of special tokens, seen on one blank image."""
        training = self.model.training
        self.model.eval()
        out = self._hidden(torch.zeros(1, self.channels, self.image_size, self.image_size))
        self.model.train(training)
        if out.dim() == 4:
            return out.shape[1], (out.shape[2], out.shape[3]), 0
        length, dim = out.shape[1:]
        side = self.image_size // patch if isinstance(patch, int) else 0
        side = side if 0 < side * side <= length else math.isqrt(length)    # stages that merge patches have fewer
        return dim, (side, side), length - side * side

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w)
        x = self._hidden(pixels)
        return x if x.dim() == 4 else x[:, self.prefix:].transpose(1, 2).unflatten(2, self.grid)

    def states(self, pixels: Tensor, mask: Tensor | None = None, extra: Extra = ()) -> Tensor:
        """Of a model of tokens, after the norm that its summary is taken after: special tokens, visible patches, then E vectors
        of `extra` (`nets/insert.py`), (B, prefix + K + E, D). mask (B, N): True = hidden.
        """
        embeddings, layers = inside(self.model, self.config["source"])
        hidden = 0 if mask is None else int(mask[0].sum())
        at = self.prefix + self.grid[0] * self.grid[1] - hidden

        def changed(_module: nn.Module, _inputs: Any, x: Tensor) -> Tensor:
            if mask is not None:
                x = torch.cat([x[:, : self.prefix], take(x[:, self.prefix:], keep_indices(mask))], dim=1)
            return inserted(x, extra[0], at) if extra else x

        with changed_inside(embeddings, changed, layers, extra, at):
            x = self._hidden(pixels)
        return self._last_norm(x)

    def summary(self, x: Tensor) -> Tensor:
        """What a picture is of its states (B, prefix + K, D), as the model was trained to sum them up: (B, D)."""
        if getattr(self.model, "use_head", False):                      # SigLIP's attention pooling
            return self.model.head(x)                                   # type: ignore[operator]
        return x[:, 0] if self.prefix else x.mean(1)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, D)
        x = self._hidden(pixels)
        return x.mean((2, 3)) if x.dim() == 4 else self.summary(self._last_norm(x))

    def _last_norm(self, x: Tensor) -> Tensor:
        """CLIP gives its states before the norm that its summary is taken after."""
        model: Any = self.model
        return model.post_layernorm(x) if model.config.model_type == "clip_vision_model" else x

    def forward(self, pixels: Tensor) -> Tensor:                        # (B, D, h, w)
        return self.maps(pixels)


def inside(model: Any, source: str) -> tuple[nn.Module, nn.ModuleList]:
    """What makes the tokens of a transformer of `transformers`, and its layers."""
    encoder = getattr(model, "encoder", None)
    layers = getattr(encoder, "layers", getattr(encoder, "layer", None))
    if not isinstance(layers, nn.ModuleList) or not hasattr(model, "embeddings"):
        raise NotanError(f"{source} is a {type(model).__name__}, whose tokens cannot be reached",
                         "a transformer with embeddings and layers, such as CLIP's", "another encoder")
    return model.embeddings, layers


def blocks_of(encoder: Any) -> nn.ModuleList:
    """The blocks of a transformer, ours or one of `transformers` behind a protocol of ours."""
    return encoder.blocks if hasattr(encoder, "blocks") else inside(encoder.model, encoder.config["source"])[1]


@contextmanager
def changed_inside(first: nn.Module, change: Callable[..., Tensor], layers: nn.ModuleList, extra: Extra,
                   at: int) -> Iterator[None]:
    """While it lasts, `change` is made to what `first` gives, and before layer l `extra[l]` takes the places from `at` on."""
    if len(extra) > len(layers):
        raise NotanError(f"vectors for {len(extra)} layers in an encoder of {len(layers)}", "no more than it has layers",
                         f"a depth of at most {len(layers)}")

    def put(vectors: Tensor, _layer: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (replaced(args[0], vectors, at), *args[1:]), named
        return args, {**named, "hidden_states": replaced(named["hidden_states"], vectors, at)}

    hooks = [first.register_forward_hook(change)]
    hooks += [layer.register_forward_pre_hook(partial(put, vectors), with_kwargs=True)
              for layer, vectors in zip(list(layers)[1:], extra[1:])]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def from_hub(source: str, image_size: int | None = None) -> HubEncoder:
    """Load the model `source`, a name on the Hugging Face hub or a folder, with its weights and pixel statistics.

    image_size: the side of the images it will see; the size it was made for when None. Raises `NotanError` when it
    cannot be had, or is not a vision model.
    """
    model = opened(source)
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise NotanError(f"{source!r} is a {type(model).__name__}, which takes no images", "a vision backbone")
    made_for = getattr(model.config, "image_size", None) or image_size or 224
    if made_for != image_size and image_size is not None and not _any_size(model):
        raise NotanError(f"{source!r} takes images of side {made_for}, the data has {image_size}", "the same side",
                         f"pass --cache-side {made_for}")
    mean, std = statistics(source)
    return HubEncoder(model, source=source, image_size=image_size or made_for, mean=mean, std=std)


def opened(source: str, **how: Any) -> Any:
    """The model of `transformers` that a name on the hub or a folder holds, with its weights."""
    from transformers import AutoModel

    with _explained(source):
        return AutoModel.from_pretrained(source, **how)


def described(source: str) -> Any:
    """The config of such a model, for which nothing else is loaded."""
    from transformers import AutoConfig

    with _explained(source):
        return AutoConfig.from_pretrained(source)


def reads_pictures(config: Any) -> bool:
    """Whether a model of this config takes pictures, or has a part that does."""
    from transformers import MODEL_MAPPING

    kinds = MODEL_MAPPING.get(type(config), ())                         # type: ignore[attr-defined]
    kinds = kinds if isinstance(kinds, (tuple, list)) else (kinds,)
    return hasattr(config, "vision_config") or any(getattr(kind, "main_input_name", "") == "pixel_values" for kind in kinds)


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise NotanError(f"transformers cannot load {source!r}: {str(error).strip().splitlines()[0]}",
                         "a model name or a folder with config.json and weights",
                         "check the name; without a network give a folder") from None


def bare(architecture: dict[str, Any]) -> Any:
    """The same architecture without its weights, from its config as a dict; needs no network."""
    from transformers import AutoConfig, AutoModel

    architecture = dict(architecture)
    return AutoModel.from_config(AutoConfig.for_model(architecture.pop("model_type"), **architecture))


def rebuild(config: dict[str, Any]) -> HubEncoder:
    """An encoder without its weights, from a `HubEncoder`'s config."""
    return HubEncoder(bare(config["architecture"]), source=config["source"], image_size=config["image_size"], mean=config["mean"],
                      std=config["std"], hash=config["hash"])


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of the names, shapes and values of all weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _any_size(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in model.modules()) and not any(
        "position_embed" in name or "pos_embed" in name for name, _ in model.named_parameters())


def statistics(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Pixel mean and std from the model's preprocessor_config.json; 0.5 where it has none."""
    from transformers.utils import cached_file

    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    config = json.loads(Path(path).read_text()) if path else {}
    return tuple(config.get("image_mean", (0.5,))), tuple(config.get("image_std", (0.5,)))
