"""Momentum teachers: a frozen copy, an exact average, and the schedule's ends."""

import pytest
import torch
from torch import nn

from notan.nets.teacher import copy_buffers_, cosine_decay, ema_, teacher


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def test_a_teacher_is_a_frozen_copy_of_its_own():
    student = _net()
    t = teacher(student)
    assert all(not p.requires_grad for p in t.parameters()) and all(p.requires_grad for p in student.parameters())
    with torch.no_grad():
        student[0].weight.add_(1)
    assert (t[0].weight - student[0].weight).abs().min() > 0.5


def test_ema_averages_parameters_and_leaves_buffers():
    student, t = _net(), teacher(_net())
    before = [p.clone() for p in t.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    student(torch.randn(5, 3, dtype=torch.float64))
    ema_(t, student, 0.9)
    for p, old, s in zip(t.parameters(), before, student.parameters()):
        torch.testing.assert_close(p, 0.9 * old + 0.1 * s)
    assert t[1].running_mean.abs().max() == 0 and student[1].running_mean.abs().max() > 0
    copy_buffers_(t, student)
    torch.testing.assert_close(dict(t.named_buffers()), dict(student.named_buffers()))


def test_equal_weights_stay_equal_bit_for_bit():
    student = _net().float()
    t = teacher(student)
    for _ in range(100):
        ema_(t, student, 0.996)
    assert all(torch.equal(a, b) for a, b in zip(t.parameters(), student.parameters()))


def test_decay_rises_from_base_to_one():
    assert cosine_decay(0.99, 0) == pytest.approx(0.99)
    assert cosine_decay(0.99, 0.5) == pytest.approx(0.995)
    assert cosine_decay(0.99, 1) == 1
