"""A run on disk: config.yaml, metrics.jsonl, state/, encoder/, report.html."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from notan.data import DataInfo
from notan.errors import NotanError
from notan.nets.build import load_encoder
from notan.runs import checkpoint
from notan.runs import config as configs
from notan.runs.build import build_method, info_from
from notan.runs.config import Config
from notan.runs.log import read


class Run:
    """A run folder, read. Raises `NotanError` when the folder is none, or of another version."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.yaml").exists():
            raise NotanError(f"{self.path} is no run folder", "a folder with a config.yaml that `notan train` wrote",
                             "check the path")
        self.settings, self.facts = configs.load(self.path / "config.yaml")

    @property
    def config(self) -> dict[str, Any]:
        """The settings as a plain dict: method, data, seed, batch, steps, towers, settings, optimiser, ..."""
        return asdict(self.settings)

    @property
    def info(self) -> DataInfo:
        """What the method knew of its data."""
        return info_from(self.facts["info"])

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, in order: losses, probes (`probe_accuracy`), alarms (`alarm`, `message`)."""
        return read(self.path / "metrics.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """The last record of a finished run (`seconds_in_all`, `peak_mb`, `profile`), {} before."""
        last = self.metrics()[-1:]
        return last[0] if last and "seconds_in_all" in last[0] else {}

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    def method(self) -> nn.Module:
        """The whole method with the weights of the newest state, on the CPU, in eval mode."""
        method = build_method(self.settings, self.info, self.path)
        if checkpoint.load(self.path / "state", method, digest=None, moments=False) is None:
            raise NotanError(f"{self.path} holds no state yet", "a run that was saved once", "train it further")
        return method.eval()

    def encoder(self, tower: str | None = None) -> Any:
        """A trained tower (the first, where none is named), in eval mode: from its folder, `encoder/` or `model/`, when the run
        is finished, else from its newest state.
        """
        tower = tower or self.towers[0]
        if (self.path / tower / "config.json").exists():
            return load_encoder(self.path / tower)
        return getattr(self.method(), tower)

    @cached_property
    def towers(self) -> list[str]:
        return list(self.settings.towers)


def found_again(spec: str, facts: dict[str, Any]) -> str:
    """Where a run's data is: as it was named, or from the folder in which the run was started."""
    there = os.path.join(facts.get("started_in", ""), spec)
    return there if not os.path.exists(spec) and os.path.exists(there) else spec


def same_run(folder: Path, asked: Config) -> Config | None:
    """The settled config of the run that `folder` holds, None when it holds none; raises when it is another run."""
    path = folder / "config.yaml"
    return configs.settle(asked, configs.load(path)[0], folder) if path.exists() else None
