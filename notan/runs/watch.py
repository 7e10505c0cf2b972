"""What is looked at while a run goes: the health of gradients and features, and an online probe. Rank 0 looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notan import world
from notan.data import Data, keys
from notan.errors import NotanError
from notan.probes.features import extract
from notan.probes.regression import regression
from notan.probes.ridge import ridge
from notan.runs.health import Alarm, Health

ABOUT = ("label", "target")                                             # what is probed for; the first that there is
LOOKED_AT = 128
PROBED = 384                                                            # of each split
SHARE = 0.04                                                            # of the trained rows, for looks and for probes


class Watch:
    """Looks at a method 6 to 20 times a run and probes it 2 to 5 times, less often where that would take a while.

    `rows` is how many rows each of the `steps` trains on; a given `probe_every` is kept.
    """

    def __init__(self, method: nn.Module, data: Data, device: torch.device, *, steps: int, rows: int,
                 probe_every: int | None) -> None:
        self.method, self.data, self.device, self.steps = method, data, device, steps
        affordable = SHARE * steps * rows
        self._look_every = max(1, min(500, steps // _between(6, affordable / LOOKED_AT, 20)))
        self._probe_every = probe_every or max(1, steps // _between(2, affordable / (2 * PROBED), 5))
        self._health = Health(getattr(method, "learner", method))         # of a method in rounds what learns in this one
        self._rows = _some(len(data.train), LOOKED_AT)
        self.alarms: list[Alarm] = []

    def due(self, done: int) -> bool:
        """Whether the features are looked at after `done` steps."""
        return world.is_main() and done % self._look_every == 0

    def gradients(self) -> None:
        """Between backward and the update."""
        self.alarms += self._health.gradients()

    def look(self, done: int) -> dict[str, float]:
        """After the update: measurements for the record; what is wrong goes to `alarms`."""
        measured: dict[str, float] = {}
        if self.due(done):
            measured, found = self._health.features(features(self.method, self.data.train, self._rows, self.device))
            self.alarms += found
        if world.is_main() and (done % self._probe_every == 0 or done == self.steps):
            measured |= online_probe(self.method, self.data, self.device)
        return measured


def features(method: nn.Module, rows: Any, index: np.ndarray, device: torch.device) -> Tensor:
    """`method.encode` of some rows in eval mode, (N, D) on the CPU; several outputs side by side. May be not finite."""
    batch = rows.take(index)
    batch["key"] = torch.from_numpy(keys.row_keys(0, 0, index))
    method.eval()
    try:
        with torch.no_grad():
            return probed(method.encode(to_device(batch, device))).float().cpu()       # type: ignore[operator]
    finally:
        method.train()


def online_probe(method: nn.Module, data: Data, device: torch.device) -> dict[str, float]:
    """Accuracy, or R2 of a target, of a ridge probe fitted on 384 train and scored on 384 test rows; {} where nothing can be
    fitted.
    """
    column = next((c for c in ABOUT if c in data.info.columns), None)
    if column is None:
        return {}
    sides: list[Tensor] = []
    method.eval()
    try:
        for rows in (data.train, data.test):
            index = _some(len(rows), PROBED)
            z = extract(lambda batch: probed(method.encode(batch)), rows, index, device=device)  # type: ignore[operator]
            sides += [z, torch.from_numpy(rows.values(column)[index])]
        if column == "target":
            return {"probe_r2": regression(*sides)["r2"]}
        return {"probe_accuracy": ridge(*sides)["accuracy"]}
    except NotanError:
        return {}                                                       # one class or value, or features that are not finite
    finally:
        method.train()


def probed(z: Tensor | dict[str, Tensor]) -> Tensor:
    """(B, D) of an `encode` that gives one tensor or several by name: its pictures' where it has both pictures' and texts', which
    may name the class; else all side by side.
    """
    if not isinstance(z, dict):
        return z
    return z["image"] if "image" in z and "text" in z else torch.cat(list(z.values()), dim=1)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch where the method is; from pinned memory when that is a GPU."""
    if device.type != "cuda":
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    return {k: v.pin_memory().to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _between(low: int, x: float, high: int) -> int:
    return int(min(max(x, low), high))


def _some(rows: int, most: int) -> np.ndarray:
    """The same rows in every run on this data."""
    return np.sort(keys.shuffle(0, 0, rows)[:most])
