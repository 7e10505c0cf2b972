"""Views per second beside kornia (and torchvision, where it can be imported): SimCLR's view of a batch of uint8 images.

    python benchmarks/views.py

Random resized crop (area 0.08 to 1) and flip, colour jitter (0.4, 0.4, 0.4, 0.1) with p = 0.8, grey with p = 0.2 and
Gaussian blur with p = 0.5, from 36 to 32 pixels (kernel 3) and from 110 to 96 (kernel 9), batch 256. All libraries run
in one process, in turn, so that a busy machine slows them alike; the table gives medians, quartiles and the median of
the ratios within each turn. Written to benchmarks/results/views.json.

kornia crops without antialiasing by default; its row runs so (fewer operations than ours). torchvision draws one set of
parameters per call, so its row goes through the batch image by image.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from notan.views.colour import blur, grayscale, jitter
from notan.views.geometry import crop, crop_boxes
from notan.views.random import bernoulli, fold

BATCH = 256
CASES = ((36, 32, 3), (110, 96, 9))  # side of the stored image, of the view, kernel of the blur
OUT = Path(__file__).parent / "results" / "views.json"
Make = Callable[[Tensor, int], Tensor]  # (uint8 images, turn) -> pixels


def ours(size: int, kernel: int) -> Make:
    rows = torch.arange(BATCH)

    def view(images: Tensor, turn: int) -> Tensor:
        key = fold(rows, turn)
        boxes = crop_boxes(key, height=images.shape[2], width=images.shape[3])
        pixels = crop(images, boxes, bernoulli(key, "flip", 0.5), size).pixels
        pixels = jitter(pixels, key, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8)
        return blur(grayscale(pixels, key, 0.2), key, p=0.5, radius=kernel // 2)

    return view


def kornia(size: int, kernel: int) -> Make:
    import kornia.augmentation as K

    steps = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
    )

    @torch.no_grad()
    def view(images: Tensor, turn: int) -> Tensor:
        return steps(images.float() / 255)

    return view


def torchvision(size: int, kernel: int) -> Make:
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda images, turn: torch.stack([steps(image) for image in images])


def makers(size: int, kernel: int) -> dict[str, Make]:
    """Every library that can be imported here."""
    found: dict[str, Make] = {}
    for make in (ours, kornia, torchvision):
        try:
            found["notan" if make is ours else make.__name__] = make(size, kernel)
        except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
            print(f"{make.__name__} is left out: {error}")
    return found


def measure(views: dict[str, Make], images: Tensor, turns: int) -> dict[str, list[float]]:
    """Seconds of each turn, the libraries one after another in each."""
    seconds: dict[str, list[float]] = {name: [] for name in views}
    for turn in range(-2, turns):  # two turns to warm up
        for name, view in views.items():
            start = time.perf_counter()
            view(images, turn)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def describe() -> dict[str, str | int | float]:
    """The machine, without its name."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    about: dict[str, str | int | float] = {"cpu": model, "cores": torch.get_num_threads()}
    about |= {"capability": torch.backends.cpu.get_cpu_capability(), "python": platform.python_version()}
    about["torch"] = torch.__version__
    for name in ("kornia", "torchvision"):
        try:
            about[name] = __import__(name).__version__
        except (ImportError, RuntimeError):
            continue
    return about


def busy(seconds: float = 2.0) -> float:
    """Cores that other work keeps busy, over this time (Linux; elsewhere -1)."""
    try:
        before = _ticks()
        time.sleep(seconds)
        return round((_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds, 2)
    except (OSError, ValueError):
        return -1.0


def _ticks() -> int:
    """Clock ticks spent outside idle and waiting, by all processes."""
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return int(user) + int(nice) + int(system)


def main() -> None:
    machine = describe() | {"busy_cores_before": busy()}
    print(f"{machine['busy_cores_before']} of {machine['cores']} cores busy with other work: run this on a quiet machine")
    table = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for stored, size, kernel in CASES:
            torch.manual_seed(0)
            images = torch.randint(0, 256, (BATCH, 3, stored, stored), dtype=torch.uint8)
            seconds = measure(makers(size, kernel), images, turns=40 if size < 64 else 15)
            for name, runs in seconds.items():
                rates = [BATCH / s for s in runs]
                low, median, high = statistics.quantiles(rates, n=4)
                ratio = statistics.median(s / r for s, r in zip(runs, seconds["notan"]))
                row: dict[str, object] = {"threads": threads, "pixels": size, "library": name, "turns": len(runs)}
                row |= {"views_per_second": round(median), "quartiles": [round(low), round(high)]}
                row["notan_is"] = round(ratio, 2)
                table.append(row)
                spread = f"({low:.0f} to {high:.0f})"
                rate = f"{median:9.0f} views/s {spread:18s}"
                print(f"{threads} threads {size:3d} px {name:12s} {rate} notan is {ratio:.2f} x", flush=True)
    machine["busy_cores_after"] = busy()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"batch": BATCH, "machine": machine, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
