"""The hub of `datasets`: asked once and quickly; where it cannot be reached, what was downloaded before is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from notan.errors import NotanError

PATIENCE = 5  # seconds for the one question whether the hub answers


@contextmanager
def asking(name: str, spec: str, advice: str) -> Iterator[None]:
    """Around calls that look up `name`: no progress bars, no retries for minutes, and one NotanError for what fails.

    `spec` is what the user typed; `advice` is for a name that was meant for something nearer.
    """
    away = "" if os.path.isdir(name) else _unreachable(name)
    try:
        with silence(), _offline(bool(away)):
            yield
    except NotanError:
        raise
    except Exception as error:  # names, networks, configurations
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        here = f"{spec!r} is no built-in source, no file and no folder here"
        wanted = "a source of `notan list data`, a path, or a hub name"
        if away:
            raise NotanError(
                f"{here}, it was not downloaded before, and the `datasets` hub cannot be reached ({away})", wanted,
                f"{advice}; for a hub name connect to the network, or give a folder that save_to_disk wrote elsewhere",
            ) from error  # fmt: skip
        raise NotanError(f"{here}, and the `datasets` hub says: {said}", wanted, advice) from error


@contextmanager
def silence() -> Iterator[None]:
    """No progress bars of `datasets`."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _unreachable(name: str) -> str:
    """Why the hub does not answer at all; "" when it does, be it that it knows no such name."""
    import datasets
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE:
        return "offline mode is on: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE"
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(name, timeout=PATIENCE)
    except Exception as error:
        if getattr(error, "response", None) is None and not isinstance(error, ValueError):  # not a name of the hub's form
            return (str(error).splitlines() or [type(error).__name__])[0][:120]
    return ""


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """`datasets` looks into its cache alone: asking in vain, it would try again for half a minute or more."""
    import datasets
    from huggingface_hub import constants

    places: list[Any] = [datasets.config, constants]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places if on else []:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, was in zip(places, before):
            place.HF_HUB_OFFLINE = was
