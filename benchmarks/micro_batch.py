"""`--micro-batch`: what a large batch costs when the encoder runs in parts.

    python benchmarks/micro_batch.py [--batch 32] [--part 8] [--turns 9]

A step of SimCLR (two views, forward and backward, no optimiser) with a ViT-S at 224 px, one thread, fp32: seconds of the step in
parts over those of the direct one, which take turns in one process at an equal batch; and the memory at the peak beyond model
and gradients for three sizes of batch, each in a process of its own. The largest batch in 2 GB is where the line through two
of them meets what model and gradients leave of it: it is not run. Written to benchmarks/results/micro_batch.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from steps import describe

from notan.methods._progress import Progress
from notan.methods.simclr import SimCLR
from notan.nets.build import build_encoder
from notan.runs import machine
from notan.runs.micro import in_parts

OUT = Path(__file__).parent / "results" / "micro_batch.json"
LIMIT = 2048                                                            # MB


def made() -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(build_encoder("vit-small:image_size=224,patch=16,channels=3"), hidden=512, dim=128).train()


def batch_of(rows: int) -> dict:
    image = torch.randint(0, 256, (rows, 3, 224, 224), dtype=torch.uint8)
    return {"image": image, "key": torch.arange(rows), "row": torch.arange(rows)}


def step(method: SimCLR, batch: dict) -> None:
    method.loss(batch, Progress())["loss"].backward()
    for p in method.parameters():
        assert p.grad is not None
        p.grad.zero_()


def peak(rows: int, part: int, out: multiprocessing.Queue) -> None:
    """MB at the peak of a step beyond what is there before it, with gradients in place."""
    torch.set_num_threads(1)
    method = made()
    if part:
        in_parts(method, ["encoder"], part)
    step(method, batch_of(2))
    batch = batch_of(rows)
    machine.reset_peak()
    before = machine.peak_mb()
    step(method, batch)
    out.put(machine.peak_mb() - before)


def overhead(rows: int, part: int, turns: int, out: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    direct, parts, batch = made(), made(), batch_of(rows)
    in_parts(parts, ["encoder"], part)
    for method in (direct, parts):
        step(method, batch)
    pairs = []
    for _ in range(turns):
        seconds = []
        for method in (direct, parts):
            start = time.perf_counter()
            step(method, batch)
            seconds.append(time.perf_counter() - start)
        pairs.append(seconds)
    out.put(pairs)


def alone(target, *args):
    """What a function puts out, run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=target, args=(*args, out))
    process.start()
    found = out.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--part", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    pairs = alone(overhead, args.batch, args.part, args.turns)
    ratios = [b / a for a, b in pairs]
    model = sum(p.numel() for p in made().parameters()) * 2 * 4 / 2**20  # weights and gradients
    found = {"machine": describe(), "encoder": "vit-small, patch 16, 224 px", "batch": args.batch, "part": args.part,
             "seconds": {"direct": statistics.median(a for a, _ in pairs), "in parts": statistics.median(b for _, b in pairs)},
             "ratio": statistics.median(ratios), "ratios": sorted(round(r, 3) for r in ratios), "model_mb": model, "memory": {}}
    for name, part in (("direct", 0), ("in parts", args.part)):
        sizes = [2 * args.part, 4 * args.part, 8 * args.part] if part else [args.part // 2, args.part, 2 * args.part]
        mb = [alone(peak, n, part) for n in sizes]
        slope = (mb[2] - mb[1]) / (sizes[2] - sizes[1])
        found["memory"][name] = {"rows": sizes, "mb": mb, "mb_per_row": slope,
                                 "largest_batch_in_2_gb": int(sizes[2] + (LIMIT - model - mb[2]) / slope)}
        print(name, found["memory"][name], flush=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(f"in parts {found['ratio']:.2f}x of the direct step ({found['ratios']})")


if __name__ == "__main__":
    main()
