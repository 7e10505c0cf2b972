"""What a contrastive loss costs by the number of rows: seconds and memory, beside the matrix products it must do and the peers.

    python benchmarks/losses.py          (peers that are not installed are left out:
                                          pip install pytorch-metric-learning sentence-transformers)

InfoNCE of N queries against N keys, D = 256, fp32, one thread, forward and backward. The floor is the three products of size
N N D that no way around is known for (logits, gradient of the queries, gradient of the keys), made in tiles of the same shape
and thrown away. Each contestant has a process of its own, which keeps freed memory as training does, and where it and the floor
take turns; the table gives the median of the ratios, and the memory at the peak beyond the vectors and their gradients. The
exponents are the slopes of log seconds and log memory over log N, between the two largest N. NT-Xent and CLIP's loss contrast
N rows in all. Written to benchmarks/results/losses.json after each cell; this machine's cells that are there are not measured
again, but with --fresh. Left out is what needs more than 14 GB, or more than five minutes a step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from steps import describe
from torch import Tensor

from notan.losses.info_nce import info_nce, nt_xent, symmetric_info_nce
from notan.losses.tiles import TILE, WIDTH, parts
from notan.runs import machine

OUT = Path(__file__).parent / "results" / "losses.json"
D, TAU = 256, 0.05
SIZES = (256, 1024, 4096, 16384, 65536)
ROOM_GB, SECONDS = 14.0, 300.0                                          # contestants that need more are left out
Loss = Callable[[Tensor, Tensor], Tensor]


def ours(q: Tensor, k: Tensor) -> Tensor:
    return info_nce(q, k, tau=TAU, positive=torch.arange(len(q))).mean()


def dense(q: Tensor, k: Tensor) -> Tensor:
    return F.cross_entropy(F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / TAU, torch.arange(len(q)))


def both_ways(q: Tensor, k: Tensor) -> Tensor:
    return symmetric_info_nce(q, k, tau=TAU).mean()


def dense_both_ways(q: Tensor, k: Tensor) -> Tensor:
    logits, own = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / TAU, torch.arange(len(q))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def own_rows(q: Tensor, k: Tensor) -> Tensor:
    half = len(q) // 2
    return nt_xent(q[:half], q[half:], tau=TAU)


def metric_learning(q: Tensor, k: Tensor) -> Tensor:
    from pytorch_metric_learning.losses import NTXentLoss

    own = torch.arange(len(q))
    return NTXentLoss(temperature=TAU)(q, own, ref_emb=k, ref_labels=own.clone())  # not own: no positives, loss 0


def cached(q: Tensor, k: Tensor) -> Tensor:
    """sentence-transformers' loss for large batches, on embeddings that are there: 32 rows at a time, as by default."""
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    loss = CachedMultipleNegativesRankingLoss(torch.nn.Sequential(torch.nn.Identity()), scale=1 / TAU)
    return loss.calculate_loss([list(q.split(32)), list(k.split(32))], with_backward=True)


SLOW = {"sentence-transformers: cached": 6.5}                           # steps of how many floors, where it matters
# name: (loss, bytes it needs at N, the package it comes from, the loss that it must equal)
CONTESTANTS: dict[str, tuple[Loss, Callable[[int], float], str, Loss]] = {
    "notan: info_nce": (ours, lambda n: 0, "", dense),
    "all logits at once": (dense, lambda n: 16 * n**2, "", dense),
    "pytorch-metric-learning: NTXentLoss": (metric_learning, lambda n: 20 * n**3, "pytorch_metric_learning", dense),
    "sentence-transformers: cached": (cached, lambda n: 0, "sentence_transformers", dense),
    "notan: symmetric_info_nce (CLIP)": (both_ways, lambda n: 0, "", dense_both_ways),
    "all logits at once (CLIP)": (dense_both_ways, lambda n: 28 * n**2, "", dense_both_ways),
    "notan: nt_xent (SimCLR)": (own_rows, lambda n: 0, "", own_rows),
}


def products(q: Tensor, k: Tensor) -> Callable[[], None]:
    """The floor: three products in tiles."""
    rows = min(len(q), max(1, TILE // len(k)))
    room, dq, dk = torch.empty(rows, len(k)), torch.zeros_like(q), torch.zeros_like(k)

    def run() -> None:
        for i in parts(len(q), rows):
            e = room[: i.stop - i.start]
            for j in parts(len(k), WIDTH):
                torch.mm(q[i], k[j].T, out=e[:, j])
            for j in parts(len(k), WIDTH):
                dq[i].addmm_(e[:, j], k[j])
                dk[j].addmm_(e[:, j].T, q[i])
    return run


def step(loss: Loss, q: Tensor, k: Tensor) -> Tensor:
    """Forward and, where it is not done yet, backward: the value."""
    value = loss(q, k)
    if value.requires_grad:
        value.backward()
    return value.detach()


def check(loss: Loss, reference: Loss) -> None:
    """A contestant computes what the others do: value and gradient, on 64 rows."""
    found = []
    for one in (loss, reference):
        g = torch.Generator().manual_seed(1)
        q, k = (torch.randn(64, D, generator=g).requires_grad_() for _ in range(2))
        found.append((step(one, q, k), q.grad, k.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def measure(name: str, n: int, turns: int, out: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(n, D, generator=g).requires_grad_() for _ in range(2))
    loss = CONTESTANTS[name][0]

    check(loss, CONTESTANTS[name][3])                                   # imports and first calls, too
    machine.reset_peak()
    before = machine.peak_mb()
    step(loss, q, k)
    added = machine.peak_mb() - before - (q.grad is not None) * 2 * n * D * 4 / 2**20
    floor = products(q.detach(), k.detach())
    times = []
    for _ in range(turns):
        q.grad = k.grad = None
        start = time.perf_counter()
        step(loss, q, k)
        middle = time.perf_counter()
        floor()
        times.append((middle - start, time.perf_counter() - middle))
    out.put((times, added))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--most", type=float, default=60.0, help="seconds of turns for each cell, one turn at least")
    parser.add_argument("--fresh", action="store_true", help="measure every cell again")
    args = parser.parse_args()
    spawn, found = multiprocessing.get_context("spawn"), {"machine": describe(), "dim": D, "threads": 1, "tile": TILE}
    before = {} if args.fresh or not OUT.exists() else json.loads(OUT.read_text())
    rows = before["rows"] if before.get("machine") == found["machine"] else []
    for n in args.sizes:
        for name, (_, room, package, _) in CONTESTANTS.items():
            guess = 6e-11 * n * n * D                                   # seconds of a floor, about
            absent = package and importlib.util.find_spec(package) is None
            if absent or room(n) > ROOM_GB * 2**30 or guess * SLOW.get(name, 1.5) > SECONDS:
                continue
            if any((r["loss"], r["n"]) == (name, n) for r in rows):
                continue
            turns, box = max(1, min(101, round(args.most / (3 * guess)))), spawn.Queue()
            child = spawn.Process(target=measure, args=(name, n, turns, box))
            child.start()
            times, added = box.get()
            child.join()
            ratios = [t / f for t, f in times]
            low, middle, high = statistics.quantiles(ratios, n=4) if turns > 1 else ratios * 3
            rows.append({"loss": name, "n": n, "seconds": round(statistics.median(t for t, _ in times), 4),
                         "of_products": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)], "turns": turns,
                         "mb_added": round(added, 1)})
            print(f"N {n:6d}  {name:38s} {rows[-1]['seconds']:9.4f} s   {middle:5.2f} x three products "
                  f"({low:.2f} to {high:.2f})   +{added:,.0f} MB", flush=True)
            found |= {"rows": rows, "exponents": exponents(rows)}
            OUT.write_text(json.dumps(found, indent=1) + "\n")
    for name, (time_slope, memory_slope) in exponents(rows).items():
        print(f"{name:38s} seconds ~ N^{time_slope}   memory ~ N^{memory_slope}")


def exponents(rows: list[dict]) -> dict[str, list[float]]:
    """Slopes between the two largest N of each contestant."""
    found = {}
    for name in CONTESTANTS:
        own = [r for r in rows if r["loss"] == name][-2:]
        if len(own) == 2:
            step = math.log(own[1]["n"] / own[0]["n"])
            found[name] = [round(math.log(own[1][key] / max(own[0][key], 0.1)) / step, 2) if own[1][key] > 0 else 0.0
                           for key in ("seconds", "mb_added")]
    return found


if __name__ == "__main__":
    main()
