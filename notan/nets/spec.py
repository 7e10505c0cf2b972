"""Specs of encoders and models: "vit:dim=192,depth=6", or the same as a dict with "name"."""

from __future__ import annotations

import ast
import re
from typing import Any

from notan.errors import NotanError


def parse(spec: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options. Raises `NotanError` for a spec without a name, or an option without a value."""
    if isinstance(spec, dict):
        if "name" not in spec:
            raise NotanError(f"an encoder without a name: {spec}", '{"name": "vit", ...}')
        return spec["name"], {k: v for k, v in spec.items() if k != "name"}
    name, _, rest = spec.partition(":")
    options = {}
    for part in filter(None, re.split(r",(?![^(\[]*[)\]])", rest)):          # commas outside brackets
        key, equals, value = part.partition("=")
        if not equals:
            raise NotanError(f"encoder {spec!r}: {part!r} has no value", "name:option=value,option=value")
        options[key.strip().replace("-", "_")] = _literal(value.strip())
    return name, options


def _literal(text: str) -> Any:
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
