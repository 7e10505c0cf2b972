"""The machine a run runs on: ranks, precision, threads, determinism, memory, and how fast a step is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from notan import world
from notan.data.keys import word
from notan.errors import NotanError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stopped(KeyboardInterrupt):
    """Training was asked to stop by a signal; its state is saved."""


def join(precision: str) -> Accelerator:
    """`accelerate`'s view of this process: device, precision ("fp32" or "bf16") and ranks.

    Under autocast a weight's cast is cached, and one cached inside a teacher's no_grad pass carries no gradient: the
    student would silently not learn. The cache is off. Raises `NotanError` when the launcher wanted more ranks than
    there are, or something other than one process or DDP.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs, DistributedType

    AcceleratorState._reset_state()                                     # else a second run cannot choose its precision
    accelerator = Accelerator(
        cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        mixed_precision="bf16" if precision == "bf16" else "no",
        kwargs_handlers=[AutocastKwargs(cache_enabled=False),
                         DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True,
                                                       gradient_as_bucket_view=True)])
    asked = asked_ranks()
    if asked > world.size():
        raise NotanError(f"{asked} processes were asked for, but the world has {world.size()}",
                         "a launcher that joins them", f"torchrun --nproc-per-node {asked} -m notan.cli ...")
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise NotanError(f"accelerate was configured for {accelerator.distributed_type.value}", "one process, or DDP",
                         "accelerate config, or torchrun")
    return accelerator


def asked_ranks() -> int:
    """How many processes whoever started this one asked for, by the environment or by the words of its command.

    `accelerate launch --cpu --num_processes 2` starts one process and leaves no trace but its own command line.
    """
    counts = [os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().replace("=", "\0").split("\0")
        if all(any(part in word for word in words[:4]) for part in ("accelerate", "launch")):
            counts += [after for word, after in pairwise(words) if word in ("--num_processes", "--num-processes")]
    return max(int(count) for count in counts if count.isdigit())


def choose_precision(asked: str) -> str:
    """"auto" is bf16 where the hardware multiplies it natively (recent GPUs, CPUs with AMX or AVX512-BF16), else fp32."""
    if asked not in ("auto", "fp32", "bf16"):
        raise NotanError(f"precision {asked!r}", "auto, fp32 or bf16")
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"                                 # products 4x as fast as fp32's on both kinds


@contextlib.contextmanager
def settled(threads: int | None, deterministic: bool) -> Iterator[None]:
    """Threads, determinism and torch's generator for one run; all are as before afterwards."""
    before = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        with torch.random.fork_rng():
            if threads:
                torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic or was_deterministic)
            yield
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_deterministic)


def seed_step(seed: int, step: int) -> int:
    """Seed torch's generator (dropout) as a function of seed, step and rank: no generator state need be kept."""
    value = (word(f"step {seed} {step} {world.rank()}")) & (2**63 - 1)
    torch.manual_seed(value)
    return value


@contextlib.contextmanager
def signals() -> Iterator[Callable[[], str]]:
    """Ctrl-C and SIGTERM become a word to be asked for; a second Ctrl-C interrupts at once."""
    heard: list[str] = []

    def hear(number: int, frame: Any) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    before = {s: signal.signal(s, hear) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: heard[0] if heard else ""
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def thread_choices(steps: int | None) -> list[int]:
    """Thread counts worth timing; one entry when the choice is made already, or not worth the time."""
    now = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    short = steps is not None and steps < 100
    if "OMP_NUM_THREADS" in os.environ or world.size() > 1 or torch.cuda.is_available() or short:
        return [now]
    return sorted({cores, max(1, cores // 2), max(1, cores // 4)}, reverse=True)


def measure(take_step: Callable[[int, Any], Any], batches: Iterator[Any], method: nn.Module, optimiser: Optimizer,
            choices: list[int], enough: float = 2.0) -> tuple[int, float]:
    """(threads, seconds per step): the fastest of `choices`, timed on real steps that are undone afterwards; the caller
    sets the threads.

    The first step of each choice is not counted; `enough` seconds or 24 steps are timed for each, and three of one whose
    best is far behind. Their lower quartile counts: first steps are slow, and so are those that a neighbour disturbs. A
    smaller count wins only by 5%. All ranks get rank 0's answer.
    """
    own = [*method.parameters(), *method.buffers()]
    before = [x.detach().clone() for x in own]
    best, pace = choices[0], float("inf")
    for threads in choices:
        torch.set_num_threads(threads)
        take_step(0, next(batches))
        times: list[float] = []
        while len(times) < 3 or (len(times) < 24 and sum(times) < enough and min(times) < 1.1 * pace):
            start = time.perf_counter()
            take_step(len(times), next(batches))
            times.append(time.perf_counter() - start)
        if (low := statistics.quantiles(times, n=4)[0]) < 0.95 * pace:
            best, pace = threads, low
    with torch.no_grad():
        for x, old in zip(own, before, strict=True):
            x.copy_(old)
    optimiser.state.clear()
    return world.broadcast_object((best, pace))                         # type: ignore[return-value]


def keep_freed_memory() -> None:
    """Have the C library keep up to 1 GiB that a step has freed for the next step, instead of giving it back.

    glibc returns the end of its heap after every backward pass, and the system then zeroes each page again: up to a
    fifth of a step on CPU. Other C libraries are left as they are. Holds for the process from here on.
    """
    if platform.libc_ver()[0] == "glibc" and not {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        trim, mmap = -1, -3                                             # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim, 2**30)
        libc.mallopt(mmap, 2**30)


def reset_peak() -> None:
    """Forget the peak memory so far, where the system lets a process do so."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Peak resident memory of this process since `reset_peak`, in MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def facts(device: torch.device) -> dict[str, Any]:
    """What `config.yaml` says of the machine: results are equal bit for bit only where these are."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device.type} {name}", "ranks": world.size(), "torch": torch.__version__,
            "python": platform.python_version(), "system": platform.system()}
