"""Zero-shot classification: a picture is of the class whose name, put into sentences, is nearest (CLIP, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.nets.dual import class_directions
from notan.probes.features import check_labelled
from notan.probes.protocol import Protocol
from notan.probes.ridge import accuracies

PROMPTS = ("{}", "a picture of {}", "a drawing of {}", "this is {}")


def class_features(read: Callable[[list[str]], Tensor], classes: Sequence[str], prompts: Sequence[str] = PROMPTS) -> Tensor:
    """A direction for each class, (C, D): the mean over prompts of the directions of its name in them, brought to length 1.

    read: texts to features (B, D). Raises `NotanError` for a prompt without a place for the name.
    """
    for prompt in prompts:
        if "{}" not in prompt:
            raise NotanError(f"prompt {prompt!r}", "{} where the name of the class goes", "--prompt 'a picture of {}'")
    return class_directions(lambda texts: read(texts).double(), classes, prompts)


def zero_shot(images: Tensor, labels: Tensor, classes: Tensor, *, split: str = "the test split",
              notes: str = "") -> dict[str, Any]:
    """Accuracy of the nearest class of `classes` (C, D) by cosine, for pictures (N, D) with labels int64 (N,).

    Returns `accuracy`, `balanced`, `n`, `protocol`, ... as the other probes do.
    """
    check_labelled(images, labels, "test")
    guess = (F.normalize(images.double(), dim=1) @ classes.T).argmax(1)
    return {**accuracies(guess, labels), "n": len(labels),
            "protocol": Protocol("nearest class by its names in prompts", split, 0, len(labels), notes=notes)}
