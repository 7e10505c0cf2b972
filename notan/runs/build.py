"""From a config to a method with fresh weights: a function of the seed and of nothing else."""

from __future__ import annotations

import inspect
from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from torch import nn

from notan import catalogue
from notan.data import DataInfo
from notan.errors import NotanError
from notan.nets import protocols
from notan.nets.build import build_encoder
from notan.runs.config import Config


def build_method(config: Config, info: DataInfo) -> nn.Module:
    """The method of `config` for data like `info`, on the CPU, in training mode.

    Towers are drawn before the rest, so arms that share a seed and an encoder start from the same encoder. Raises
    `NotanError` when the data lacks a column the method needs, or a tower is not of the kind it needs.
    """
    entry = catalogue.method(config.method)
    check_columns(entry, info)
    cls = getattr(import_module(f"notan.methods.{config.method}"), entry.cls)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        towers = [build_encoder(config.towers[t.name], info) for t in entry.towers]
        for tower, asked in zip(towers, entry.towers):
            _check_kind(config, tower, asked)
        known = {"data": info} if "data" in inspect.signature(cls.__init__).parameters else {}
        return cls(*towers, **config.settings, **known).train()


def check_columns(entry: catalogue.Entry, info: DataInfo) -> None:
    """Raises `NotanError` that names the first column the method needs and the data lacks."""
    missing = [c for c in entry.card["needs"] if c not in info.columns]
    if missing:
        raise NotanError(f"{entry.slug} needs the column {missing[0]!r}; {info.name} has {', '.join(info.columns)}",
                         ", ".join(entry.card["needs"]),
                         "rename a column (--column theirs=ours), or choose a method for what there is (`notan list`)")


def info_from(record: dict[str, Any]) -> DataInfo:
    """The DataInfo that a run's facts describe."""
    names = {f.name for f in fields(DataInfo)}
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in names}
    return DataInfo(**known)


def _check_kind(config: Config, tower: nn.Module, asked: catalogue.Parameter) -> None:
    kind = getattr(protocols, asked.annotation.rsplit(".", 1)[-1], None)
    if kind is not None and getattr(kind, "_is_runtime_protocol", False) and not isinstance(tower, kind):
        raise NotanError(f"{config.method} was given {config.towers[asked.name]} as its {asked.name}",
                         f"a {asked.annotation} ({(kind.__doc__ or '').splitlines()[0].strip().rstrip('.')})",
                         f"--{asked.name} " + ("vit" if "Token" in asked.annotation else "resnet18"))
