"""Any vision backbone of `transformers` as an `ImageEncoder` (no token dropping)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.norm import globalise
from notan.nets.pixels import Normalise


class HubEncoder(nn.Module):
    """A `transformers` model that takes `pixel_values`, behind the protocol of encoders.

    model: it gives a last hidden state of tokens (B, L, D) or a map (B, D, h, w). Batch norms become global.
    source: the name or folder it came from; `hash` is of its architecture and weights as they were then.
    `features` is the class token where there is one, else the mean over the map.
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

    def features(self, pixels: Tensor) -> Tensor:                       # (B, D)
        x = self._hidden(pixels)
        if x.dim() == 4:
            return x.mean((2, 3))
        return x[:, 0] if self.prefix else x.mean(1)

    def forward(self, pixels: Tensor) -> Tensor:                        # (B, D, h, w)
        return self.maps(pixels)


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
    mean, std = _statistics(source)
    return HubEncoder(model, source=source, image_size=image_size or made_for, mean=mean, std=std)


def opened(source: str, **how: Any) -> Any:
    """The model of `transformers` that a name on the hub or a folder holds, with its weights."""
    from transformers import AutoModel

    try:
        return AutoModel.from_pretrained(source, **how)
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
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _any_size(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) for m in model.modules()) and not any(
        "position_embed" in name or "pos_embed" in name for name, _ in model.named_parameters())


def _statistics(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Pixel mean and std from the model's preprocessor_config.json; 0.5 where it has none."""
    from transformers.utils import cached_file

    path = cached_file(source, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    config = json.loads(Path(path).read_text()) if path else {}
    return tuple(config.get("image_mean", (0.5,))), tuple(config.get("image_std", (0.5,)))
