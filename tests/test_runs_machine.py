"""The machine: which thread count a run takes and what it costs to find out, and memory kept between steps."""

import itertools
import platform
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from notan.runs import machine


def _timed(pace):
    """`measure` of steps that take `pace[threads]` seconds: its answer, and the steps taken with each thread count."""
    taken = dict.fromkeys(pace, 0)

    def step(n, batch):
        taken[torch.get_num_threads()] += 1
        time.sleep(pace[torch.get_num_threads()])

    module = nn.Linear(2, 2)
    before = torch.get_num_threads()
    try:
        answer = machine.measure(step, itertools.count(), module, torch.optim.SGD(module.parameters()), list(pace), enough=0.5)
    finally:
        torch.set_num_threads(before)
    return answer, taken


def test_the_fastest_thread_count_wins_and_one_far_behind_is_given_up_after_three_steps():
    (threads, pace), taken = _timed({2: 0.02, 1: 0.1})
    assert threads == 2 and pace == pytest.approx(0.02, rel=0.3)
    assert taken[2] > 20 and taken[1] == 4                              # one of each is not counted


def test_a_smaller_count_that_is_faster_is_timed_in_full():
    (threads, pace), taken = _timed({2: 0.04, 1: 0.02})
    assert threads == 1 and pace == pytest.approx(0.02, rel=0.3)
    assert taken[1] > 20


def test_steps_that_a_neighbour_slows_down_do_not_count():
    paces = itertools.cycle([0.01, 0.05, 0.05])
    module = nn.Linear(2, 2)
    pace = machine.measure(lambda n, batch: time.sleep(next(paces)), itertools.count(), module,
                           torch.optim.SGD(module.parameters()), [torch.get_num_threads()], enough=0.5)[1]
    assert pace < 0.02


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives freed memory back; others are left alone")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_serves_the_next_step(kept):
    code = f"""
import resource, torch
from notan.runs import machine
if {kept}: machine.keep_freed_memory()
def step(): return [torch.ones(12 * 2**20) for _ in range(3)]           # 48 MB each: by default mapped anew each time
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3): step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert faults < 1000 if kept else faults > 10_000
