"""The two reference rows: trained on the labels, and not trained at all."""

from __future__ import annotations

import pytest
import torch

from notan import catalogue
from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods import random, supervised
from notan.methods._progress import Progress

START = Progress()


def test_supervised_is_cross_entropy_over_the_labelled_rows():
    method, batch = supervised.example(6, torch.float64)
    logits = method.head(method.encoder.features(*method.view(batch)))
    batch["label"] = torch.tensor([0, -1, 2, 1, -1, 0])
    rows = [0, 2, 3, 5]
    expected = torch.nn.functional.cross_entropy(logits[rows], batch["label"][rows])
    out = method.loss(batch, START)
    torch.testing.assert_close(out["loss"], expected)
    right = (logits[rows].argmax(1) == batch["label"][rows]).double().mean()
    torch.testing.assert_close(out["accuracy"], right)


def test_supervised_without_any_label_learns_nothing_and_does_not_fail():
    method, batch = supervised.example(4, torch.float64)
    loss = method.loss({**batch, "label": torch.full((4,), -1)}, START)["loss"]
    loss.backward()
    assert loss.item() == 0 and all((p.grad == 0).all() for p in method.parameters())


def test_supervised_needs_two_classes():
    encoder = supervised.example(2, torch.float32)[0].encoder
    with pytest.raises(NotanError, match="1 classes"):
        supervised.Supervised(encoder, data=DataInfo("one", 4, ("image", "label"), 16, 3, classes=("only",)))


def test_random_has_nothing_to_train():
    method, batch = random.example(4, torch.float32)
    assert not catalogue.method("random").card["trains"]
    assert not any(p.requires_grad for p in method.parameters())
    loss = method.loss(batch, START)["loss"]
    assert loss.item() == 0 and not loss.requires_grad


def test_random_is_where_the_others_start():
    from notan.methods import mae

    a, batch = random.example(4, torch.float32)
    b, _ = mae.example(4, torch.float32)
    assert torch.equal(a.encode(batch), b.encode(batch))
