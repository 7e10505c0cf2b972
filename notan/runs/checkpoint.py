"""The state of a run on disk: whole or not at all, the last two kept, safetensors and JSON only.

A state is a folder `state/step-N`, written beside its place, synced, and moved into it with one rename. Randomness
needs no state: views come from keys and dropout from a seed per step, both functions of the step.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from notan.errors import NotanError

KEPT = 2


def save(folder: Path, method: nn.Module, optimiser: Optimizer | None, *, step: int, seconds: float,
         digest: str) -> None:
    """Write `folder/step-N` and drop all but the last two. A full disk raises `NotanError`; the others stay whole."""
    place = folder / f"step-{step:08d}"
    if place.exists():
        return
    part = folder / f".part-{os.getpid()}"
    with full_disk_explained(folder):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            write_tensors(part / "model.safetensors", method.state_dict())
            write_tensors(part / "optimiser.safetensors", _optimiser_tensors(optimiser))
            _write(part / "meta.json", json.dumps({"step": step, "seconds": seconds, "digest": digest}).encode())
            _sync(part)
            os.replace(part, place)
            _sync(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in _states(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, method: nn.Module, *, digest: str | None, moments: bool = True) -> dict[str, Any] | None:
    """Put the newest readable state into `method`; its {"step", "seconds", "moments"}, or None without one.

    The moments, {} without `moments`, are for `fill_optimiser`.
    """
    states = _states(folder)
    for place in reversed(states):
        try:
            meta = json.loads((place / "meta.json").read_text())
            weights = load_file(place / "model.safetensors")
            kept = load_file(place / "optimiser.safetensors") if moments else {}
        except (OSError, ValueError, SafetensorError):
            continue                                                    # damaged after it was written: the one before
        if digest is not None and meta["digest"] != digest:
            raise NotanError(f"{place} was written under other settings than config.yaml has", "one run in one folder",
                             "undo the change to config.yaml, or start over with --fresh")
        _fill(method, weights, place)
        return {**meta, "moments": kept}
    if states:
        raise NotanError(f"no state under {folder} can be read", "at least one whole state", "start over with --fresh")
    return None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A synced safetensors file; tensors that share memory (tied weights) are written once each."""
    seen: set[int] = set()
    plain = {}
    for name, x in tensors.items():
        x = x.detach().cpu().contiguous()
        shared = x.untyped_storage().data_ptr() in seen
        seen.add(x.untyped_storage().data_ptr())
        plain[name] = x.clone() if shared or x.untyped_storage().nbytes() != x.numel() * x.element_size() else x
    save_file(plain, path, {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one step, synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_explained(path.parent):
        try:
            _write(part, text.encode())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A file of the user's as text. Raises `NotanError` when there is none, or it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotanError(f"{path} cannot be read ({error})", "a text file in UTF-8", "check the path") from None


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to, none where there is no file; a last one that was cut off in the writing is
    taken out of it."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
        write_text(path, "".join(lines))
    return lines


def make_folder(path: Path) -> None:
    """A folder, and those that it is in. Raises `NotanError` where it cannot be made."""
    with full_disk_explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise NotanError(f"the folder {path} cannot be made ({error.strerror})", "a place that can be written to",
                             "choose another --out") from error


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn "no space left", from Python or from safetensors, into a `NotanError` that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if not full:
            raise
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0.0
        raise NotanError(f"the disk is full: {folder} could not be written ({free:.0f} MB free)",
                         "room for the run's state; its last good state is untouched",
                         "free some space and give the same command: it goes on from there") from error


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(method: nn.Module, weights: dict[str, Tensor], place: Path) -> None:
    own = method.state_dict()
    odd = own.keys() ^ weights.keys() or {k for k in own if own[k].shape != weights[k].shape}
    if odd:
        raise NotanError(f"{place} does not fit the method: {min(odd)} differs", "a state of this method and encoder",
                         "the code has changed since: use the version that wrote it, or start over with --fresh")
    method.load_state_dict(weights)


def _named(optimiser: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    for group in optimiser.param_groups:
        yield from zip(group["names"], group["params"])


def _optimiser_tensors(optimiser: Optimizer | None) -> dict[str, Tensor]:
    if optimiser is None:
        return {}
    return {f"{name}/{key}": x for name, p in _named(optimiser) for key, x in optimiser.state.get(p, {}).items()}


def fill_optimiser(optimiser: Optimizer, moments: dict[str, Tensor]) -> None:
    """Moments take the layout of their parameter, so that the same kernels run on them as before."""
    optimiser.state.clear()
    parameters = dict(_named(optimiser))
    for full, x in moments.items():
        name, key = full.rsplit("/", 1)
        p = parameters[name]
        like = torch.empty_like(p) if x.shape == p.shape else torch.empty_like(x, device=p.device)
        optimiser.state[p][key] = like.to(x.dtype).copy_(x)

