"""Weights and settings in a folder: each file appears whole or not at all, and what does not fit is named."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from notan.errors import NotanError


@contextmanager
def moved_into(folder: Path) -> Iterator[Path]:
    """A place to write files to, which then take their places in `folder`, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as place:
        yield Path(place)
        for path in sorted(Path(place).iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a safetensors file into a module. Raises `NotanError` for a missing file, and one that does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise NotanError(f"{path} is missing", "the weights beside config.json", "save the encoder again") from None
    except (SafetensorError, RuntimeError) as error:
        raise NotanError(f"{path} does not fit its config.json: {str(error).splitlines()[-1].strip()}",
                         "weights and config of one encoder", "save the encoder again") from None
