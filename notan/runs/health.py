"""Alarms: a run that does not learn says so, with the likely cause.

What is watched: features that collapse (Jing et al. 2022; effective rank: Roy and Vetterli 2007, RankMe: Garrido et al.
2023), parameters that get no gradient, a teacher that is its student or stands still, a learned temperature at its
clamp, and a loss or gradient that is not finite (see `dump.py` for what is kept of that one).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from notan.losses.geometry import effective_rank, spread

PATIENCE = 3                                                            # looks in a row before an alarm
LOW_SPREAD = 0.005                                                      # of 1; masked ViTs on tiny patches learn at 0.012
LOW_RANK = 1.5


class Alarm(NamedTuple):
    """One finding: its kind, and a sentence with what was measured and the likely cause."""

    kind: str
    message: str


class Health:
    """Watches one method through a run: `gradients` between backward and the update, `features` after it."""

    def __init__(self, method: nn.Module) -> None:
        self.method = method
        self.counts: Counter[str] = Counter()
        self.raised: set[str] = set()
        self.teachers = list(teacher_pairs(method))
        self.starts = [[p.detach().clone() for p in (_largest(t), _largest(s))] for t, s in self.teachers]
        self.born_equal = [_equal(t, s) for t, s in self.teachers]
        self.temperatures = {n: p.detach().clone() for n, p in method.named_parameters() if _is_temperature(n, p)}

    def gradients(self) -> list[Alarm]:
        """Parameters whose gradient is missing or exactly zero, and a temperature that does not move."""
        learning = [(n, p) for n, p in self.method.named_parameters() if p.requires_grad and n not in self.temperatures]
        present = [(n, p.grad) for n, p in learning if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([g for _, g in present], float("inf"))).tolist() if present else []
        dead = {n for n, p in learning if p.grad is None} | {n for (n, _), size in zip(present, norms) if size == 0}
        stuck = {n for n, p in learning if n in dead and self._again(f"dead {n}", True)}
        for n, _ in learning:
            if n not in dead:
                self.counts[f"dead {n}"] = 0
        alarms = []
        if fresh := stuck - self.raised:
            alarms.append(Alarm("dead parameters", _dead_message(fresh, len(learning))))
            self.raised |= fresh
        return alarms + self._temperatures()

    def features(self, z: Tensor) -> tuple[dict[str, float], list[Alarm]]:
        """Effective rank and spread of `encode` on fixed rows (N, D), and what is wrong with them or the teachers."""
        if not torch.isfinite(z).all():
            return {}, self._alarm("not finite", "the features of the watched rows are not finite; likely a learning "
                                   "rate that is too high, or missing warm-up")
        rank, wide = effective_rank(z), spread(z)
        alarms = []
        if self._again("collapse", rank < LOW_RANK or wide < LOW_SPREAD):
            alarms += self._alarm("collapse", (
                f"all rows get nearly the same feature (effective rank {rank:.1f} of {min(len(z) - 1, z.shape[1])}, "
                f"spread {wide:.3f} of 1); likely no term holds features apart: a missing stop-gradient, predictor or "
                "teacher momentum, a learning rate too high, or a temperature far off"))
        return {"effective_rank": rank, "feature_spread": wide}, [*alarms, *self._teachers()]

    def _teachers(self) -> Iterator[Alarm]:
        for i, (teacher, student) in enumerate(self.teachers):
            learned = not torch.equal(_largest(student), self.starts[i][1])
            still = self.born_equal[i] and torch.equal(_largest(teacher), self.starts[i][0])
            if self._again(f"same {i}", learned and _equal(teacher, student)):
                yield from self._alarm("teacher = student", "the teacher's weights equal the student's exactly; likely "
                                       "a momentum of 0, or both share their parameters")
            if self._again(f"still {i}", still and learned and hasattr(self.method, "after_step")):
                yield from self._alarm("teacher stands still", "the student learns but its teacher has not moved since "
                                       "the start; likely a momentum of 1, or after_step does not update it")

    def _temperatures(self) -> list[Alarm]:
        alarms = []
        for name, p in self.method.named_parameters():
            if name in self.temperatures:
                pinned = torch.equal(p.detach(), self.temperatures[name])
                flat = p.grad is None or bool((p.grad == 0).all())
                self.temperatures[name] = p.detach().clone()
                if self._again(f"pinned {name}", pinned or flat):
                    alarms += self._alarm("saturated temperature", (
                        f"{name} = {float(p.detach()):.4g} does not move; likely it sits at its clamp: lower the learning rate, "
                        "start elsewhere, or widen the clamp"), key=f"pinned {name}")
        return alarms

    def _again(self, key: str, wrong: bool) -> bool:
        """Whether `wrong` has now held for PATIENCE looks in a row."""
        self.counts[key] = self.counts[key] + 1 if wrong else 0
        return self.counts[key] >= PATIENCE

    def _alarm(self, kind: str, message: str, key: str = "") -> list[Alarm]:
        """An alarm, the first time only."""
        key = key or kind
        if key in self.raised:
            return []
        self.raised.add(key)
        return [Alarm(kind, message)]


def teacher_pairs(method: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(frozen module, trainable module with the same parameter names and shapes), for the largest frozen modules."""
    students: dict[Any, nn.Module] = {}
    for module in method.modules():
        if any(p.requires_grad for p in module.parameters()):
            students.setdefault(_signature(module), module)

    def walk(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters) and _signature(module) in students:
            yield module, students[_signature(module)]
        else:
            for child in module.children():
                yield from walk(child)

    yield from walk(method)


def first_bad(method: nn.Module) -> str:
    """The first parameter whose gradient is not finite, in the method's order; "" when all are finite."""
    for name, p in method.named_parameters():
        if p.grad is not None and not torch.isfinite(p.grad).all():
            return name
    return ""


def _signature(module: nn.Module) -> Any:
    return tuple((n, tuple(p.shape)) for n, p in module.named_parameters())


def _largest(module: nn.Module) -> Tensor:
    return max(module.parameters(), key=lambda p: p.numel()).detach()


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def _is_temperature(name: str, p: nn.Parameter) -> bool:
    last = name.rsplit(".", 1)[-1]
    return p.requires_grad and p.numel() == 1 and re.search(r"tau|temp|logit_scale|log_scale", last) is not None


def _dead_message(names: set[str], total: int) -> str:
    shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (f"{len(names)} of {total} parameters get no gradient or exactly zero: {shown}; likely cut off by a "
            "detach or no_grad, replaced in the forward pass, or not used by the loss")
