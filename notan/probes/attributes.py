"""Attribute probes: what each space of an encoder knows of each attribute of a row, with the lines it must be held against.

For methods with several spaces (common and salient), and for features that hide one attribute behind another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.probes.ridge import ridge


def attribute_pairs(train: Mapping[str, Tensor], train_y: Tensor, test: Mapping[str, Tensor], test_y: Tensor,
                    names: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """A ridge probe of every attribute from every space: "attribute from space" -> its result.

    train, test: spaces by name, features (N, D). train_y, test_y: attributes int (N, A), a negative one unknown in that row;
    names: of the attributes, by default their numbers. A result has `accuracy`, `balanced`, `chance` (one over the classes that
    occur), `majority` (the accuracy of the training rows' most frequent class) and `protocol`. An attribute with one known class
    is left out. Raises `NotanError` when none is left.
    """
    found: dict[str, dict[str, Any]] = {}
    for a in range(train_y.shape[1]):
        know, know_test = train_y[:, a] >= 0, test_y[:, a] >= 0
        y, y_test = train_y[know, a], test_y[know_test, a]
        if not len(y_test) or len(y.unique()) < 2:
            continue
        most = float((y_test == y.mode().values).double().mean())
        lines = {"chance": 1 / len(torch.cat([y, y_test]).unique()), "majority": most}
        name = names[a] if a < len(names) else f"attribute {a}"
        for space in train:
            found[f"{name} from {space}"] = ridge(train[space][know], y, test[space][know_test], y_test) | lines
    if not found:
        raise NotanError(f"none of {train_y.shape[1]} attributes has two known classes", "attributes that vary",
                         "a column `attributes`, or --column THEIRS=attributes")
    return found
