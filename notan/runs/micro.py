"""`--micro-batch`: large batches in small memory.

A loss that sets rows against each other needs the whole batch, but an encoder works on each row by itself. So towers run on
a few rows at a time, keep only what they return, and are run again for those rows in the backward pass, with the same random
numbers. Heads and losses see all rows; the gradient is the direct one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError, check_between
from notan.nets.norm import batch_norms

CALLS = ("forward", "features", "maps", "states", "image", "patches", "text")   # what methods ask of a tower


def in_parts(method: nn.Module, towers: Sequence[str], size: int) -> None:
    """From here on the towers of a method run on at most `size` rows at a time.

    Raises `NotanError` for a size below 1, a method without towers, and a tower whose rows meet in batch norm.
    """
    check_between(1, float("inf"), micro_batch=size)
    if not towers:
        raise NotanError(f"{type(method).__name__} has no encoder to run in parts", "a method with one",
                         "leave out --micro-batch")
    for name in towers:
        tower = getattr(method, name)
        if norms := batch_norms(tower):
            raise NotanError(f"the {name} has batch norm ({norms[0]}): parts of a batch would have other statistics",
                             "an encoder without batch norm", "--encoder vit, or leave out --micro-batch")
    for tower, call in called(method, towers):
        setattr(tower, call, parts_of(getattr(tower, call), size))


def called(method: nn.Module, towers: Sequence[str]) -> list[tuple[Any, str]]:
    """What the method calls of its towers: (module, name); of stages and dual encoders it calls each part by itself."""
    every = [one for name in towers for one in _within(getattr(method, name))]
    return [(one, call) for one in every for call in CALLS if hasattr(one, call)]


def _within(tower: Any) -> list[Any]:
    both = [getattr(tower, name) for name in ("image_encoder", "text_encoder") if hasattr(tower, name)]
    return [*getattr(tower, "parts", [tower]), *both]


def parts_of(call: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`call` on `size` rows at a time. Tensors and lists as long as the first argument are cut with it, in tuples too."""
    @wraps(call)
    def run(x: Any, *rest: Any, **named: Any) -> Any:
        n = len(x)
        if n <= size:
            return call(x, *rest, **named)

        def cut(value: Any, i: int) -> Any:
            if isinstance(value, tuple):
                return tuple(cut(v, i) for v in value)
            rows = isinstance(value, (Tensor, list)) and len(value) == n
            return value[i : i + size] if rows else value

        return _joined([checkpoint(call, cut(x, i), *(cut(v, i) for v in rest), use_reentrant=False,
                                   **{k: cut(v, i) for k, v in named.items()}) for i in range(0, n, size)])
    return run


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {k: _joined([p[k] for p in parts]) for k in first}
    if isinstance(first, tuple):
        joined = [_joined([p[i] for p in parts]) for i in range(len(first))]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    raise TypeError(f"a tower gave {type(first).__name__}: tensors, tuples and dicts of tensors can be joined")


def estimate(method: nn.Module, towers: Sequence[str], batch: dict[str, Any], progress: Any, size: int, rows: int) -> str:
    """A sentence: what towers keep for the backward pass, whole and in parts. Measured on a few rows; changes nothing.

    size: rows of a part; rows: of this rank's whole batch.
    """
    few = min(8, len(batch["row"]))
    some = {k: v[:few] for k, v in batch.items()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    buffers = [(b, b.clone()) for b in method.buffers()]                # batch norms of heads
    with torch.random.fork_rng(devices=devices), _counted(method, towers) as kept:
        method.loss(some, progress)                                     # type: ignore[operator]
    with torch.no_grad():
        for b, was in buffers:
            b.copy_(was)
    whole, seen = sum(kept.bytes.values()), max(1, kept.rows)
    return (f"{' and '.join(towers)}: {seen / few:g} passes of each row keep about {_size(whole / few)} for the backward pass: "
            f"{_size(whole / few * rows)} for {rows:,} rows at once, {_size(whole / seen * size)} in parts of {size:,}")


@dataclass
class Kept:
    """What calls of towers keep: bytes by address, of how many rows."""

    bytes: dict[int, int] = field(default_factory=dict)
    rows: int = 0


@contextmanager
def _counted(method: nn.Module, towers: Sequence[str]) -> Iterator[Kept]:
    """Collects the memory that calls of the towers keep for a backward pass, parameters apart."""
    kept = Kept()
    inside = [False]                                                    # a call of the tower by itself
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept.bytes[storage.data_ptr()] = storage.nbytes()
        return x

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **named: Any) -> Any:
            if inside[0]:
                return call(*args, **named)
            inside[0] = True
            kept.rows += len(args[0])
            try:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                    return call(*args, **named)
            finally:
                inside[0] = False
        return run

    patched = called(method, towers)
    before = [vars(tower).get(c) for tower, c in patched]
    for tower, c in patched:
        setattr(tower, c, counted(getattr(tower, c)))
    try:
        yield kept
    finally:
        for (tower, c), was in zip(patched, before):
            delattr(tower, c) if was is None else setattr(tower, c, was)


def _size(n: float) -> str:
    return f"{n / 2**30:.1f} GB" if n >= 2**30 else f"{n / 2**20:.1f} MB" if n >= 2**20 else f"{n / 2**10:.0f} kB"
