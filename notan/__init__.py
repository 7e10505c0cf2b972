"""Notan: learn from data without labels, by hiding and by contrast, and believe the number.

Everything the command does is a plain call; each name is imported when it is first used, so that `import notan` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from notan.data import open_data as open_data
    from notan.errors import NotanError as NotanError
    from notan.nets.build import load_encoder as load
    from notan.runs.compare import compare as compare
    from notan.runs.decode import decode as decode
    from notan.runs.embed import embed as embed
    from notan.runs.export import export as export
    from notan.runs.inspect import inspect as inspect
    from notan.runs.probe import probe as probe
    from notan.runs.search import search as search
    from notan.runs.train import train as train
    from notan.runs.view import view as view

_HOMES = {
    "train": "notan.runs.train", "compare": "notan.runs.compare", "probe": "notan.runs.probe",
    "embed": "notan.runs.embed", "decode": "notan.runs.decode", "inspect": "notan.runs.inspect", "export": "notan.runs.export",
    "doctor": "notan.runs.doctor", "search": "notan.runs.search", "view": "notan.runs.view",
    "open_data": "notan.data", "NotanError": "notan.errors",
}
__all__ = [*_HOMES, "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("notan.nets.build").load_encoder
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'notan' has no attribute {name!r}")
