"""Training steps per second beside the peers: a masked step (MAE) and a contrastive step (SimCLR).

    make bench-env                      (an environment of its own: the peers need torchvision)

A step is forward, backward and the optimiser, on one batch of random pixels that lies in memory; views are left out on
all sides, because `views.py` times them. Widths, depths, heads, mask ratio, batch and optimiser are equal; what differs
otherwise is in `NOTES`. Each contestant has a process of its own and works while the others wait, in an order that
rotates, so that a busy machine slows them alike; one of them is a plain matrix product, the floor. The table gives the
median and quartiles of samples per second, the median of the ratios within each turn, and how much of the matrix
product's rate the step's own matrix products and convolutions reach. fp32 is plain, bf16 is autocast around the forward
pass. One thread, because two threads that wait for each other on a shared machine measure its neighbours. Written to
benchmarks/results/steps.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from notan.methods._progress import Progress
from notan.methods.mae import MAE
from notan.methods.simclr import SimCLR
from notan.nets.resnet import ResNet
from notan.nets.vit import ViT
from notan.runs.machine import keep_freed_memory

OUT = Path(__file__).parent / "results" / "steps.json"
NOTES = [
    "Our process keeps freed memory for the next step, as `notan train` and `notan compare` do; the peers' run as they are.",
    "vit-pytorch's MAE has no class token (its pool=\"mean\"; pool=\"cls\" fails in 1.26), no qkv bias, two more norms "
    "around the patch embedding, and predicts raw pixels.",
    "transformers' ViTMAE and ours predict normalised patches; both keep the class token in encoder and decoder.",
    "lightly's SimCLR example passes the two views through torchvision's ResNet-18 one after the other, as published.",
    "Our ResNet-18 starts with zero in the last norm of each block; the projector's last layer has a bias and no norm.",
]
Step = Callable[[bool], Tensor]                                         # in bf16 or not -> the loss
FLOOR, SIDE = "matrix product", 1024
Make = Callable[[], tuple[nn.Module, Step]]


class Size(NamedTuple):
    """One masked autoencoder: the picture, the encoder, the decoder and the batch."""

    side: int
    patch: int
    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    batch: int


SIZES = {
    "mae 32 px": Size(32, 4, 192, 6, 3, 96, 2, 3, 64),
    "mae 224 px": Size(224, 16, 192, 12, 3, 128, 2, 4, 16),
}
PICTURES = {"simclr 32 px": (32, 128), "simclr 96 px": (96, 32)}       # side, batch


def make_torchvision_importable() -> None:
    """Beside a CPU build of torch, torchvision's operators do not load, and its import asks for two of them."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return                                                          # the peers that need it are left out
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        make_torchvision_importable.keep = library                      # type: ignore[attr-defined]


def stepper(module: nn.Module, loss: Callable[[], Tensor], optimiser: torch.optim.Optimizer) -> Step:
    module.train()

    def step(bf16: bool) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimiser.step()
        return value.detach()

    return step


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


def mae_ours(s: Size, pixels: Tensor) -> tuple[nn.Module, Step]:
    method: Any = MAE(ViT(s.side, 3, s.patch, s.dim, s.depth, s.heads), decoder_dim=s.decoder_dim,
                      decoder_depth=s.decoder_depth, decoder_heads=s.decoder_heads)
    method.view = lambda batch: batch["image"]                          # the pixels as they are
    batch, progress = {"image": pixels, "key": torch.arange(s.batch)}, Progress(0, 1, 0, 1)
    return method, stepper(method, lambda: method.loss(batch, progress)["loss"], adamw(method))


def mae_vit_pytorch(s: Size, pixels: Tensor) -> tuple[nn.Module, Step]:
    import vit_pytorch

    encoder = vit_pytorch.ViT(image_size=s.side, patch_size=s.patch, num_classes=0, dim=s.dim, depth=s.depth,
                              heads=s.heads, mlp_dim=4 * s.dim, dim_head=s.dim // s.heads, pool="mean")
    mae = vit_pytorch.MAE(encoder=encoder, decoder_dim=s.decoder_dim, masking_ratio=0.75, decoder_depth=s.decoder_depth,
                          decoder_heads=s.decoder_heads, decoder_dim_head=s.decoder_dim // s.decoder_heads)
    return mae, stepper(mae, lambda: mae(pixels), adamw(mae))


def mae_transformers(s: Size, pixels: Tensor) -> tuple[nn.Module, Step]:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    mae = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=s.side, patch_size=s.patch, hidden_size=s.dim, num_hidden_layers=s.depth,
        num_attention_heads=s.heads, intermediate_size=4 * s.dim, decoder_hidden_size=s.decoder_dim,
        decoder_num_hidden_layers=s.decoder_depth, decoder_num_attention_heads=s.decoder_heads,
        decoder_intermediate_size=4 * s.decoder_dim, mask_ratio=0.75, norm_pix_loss=True,
    ))
    return mae, stepper(mae, lambda: mae(pixel_values=pixels).loss, adamw(mae))


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.06)


def simclr_ours(x1: Tensor, x2: Tensor) -> tuple[nn.Module, Step]:
    method: Any = SimCLR(ResNet(x1.shape[2], 3, depth=18, stem="imagenet"), tau=0.5, hidden=512, dim=128)
    method.view = lambda batch, which: (x1, x2)[which - 1]
    return method, stepper(method, lambda: method.loss({}, Progress(0, 1, 0, 1))["loss"], sgd(method))


def simclr_lightly(x1: Tensor, x2: Tensor) -> tuple[nn.Module, Step]:
    import torchvision
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    model = nn.Sequential(backbone, nn.Flatten(), SimCLRProjectionHead(512, 512, 128))
    criterion = NTXentLoss(temperature=0.5)
    return model, stepper(model, lambda: criterion(model(x1), model(x2)), sgd(model))


def matrix_product() -> tuple[nn.Module, Step]:
    a, b = torch.rand(2, SIDE, SIDE)
    low = a.bfloat16(), b.bfloat16()
    return nn.Module(), lambda bf16: (low[0] @ low[1] if bf16 else a @ b)[0, 0]


class Contestant:
    """A training step in a process of its own, which takes steps when it is asked to."""

    def __init__(self, name: str, make: Make, bf16: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, make, bf16, torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()
        self.parameters, self.flops, self.missing = self.pipe.recv()    # missing: why it cannot take part, or nothing

    def take(self, steps: int) -> float:
        """Seconds per step of so many steps."""
        self.pipe.send(steps)
        return self.pipe.recv()

    def leave(self) -> None:
        self.pipe.send(0)
        self.process.join()


def serve(pipe: Connection, name: str, make: Make, bf16: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make_torchvision_importable()
    if name == "notan":
        keep_freed_memory()
    try:
        module, step = make()
    except ImportError as error:
        return pipe.send((0, 0, str(error)))
    with FlopCounterMode(display=False) as counter:
        step(False)                                                     # its matrix products and convolutions
    pipe.send((sum(p.numel() for p in module.parameters()), counter.get_total_flops(), ""))
    while steps := pipe.recv():
        gc.collect()
        start = time.perf_counter()
        for _ in range(steps):
            loss = step(bf16)
        pipe.send((time.perf_counter() - start) / steps)
        assert loss.isfinite(), f"{name} diverged"


def measure(contestants: dict[str, Contestant], turns: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each turn; a turn is as many steps as fill `seconds`, at least one."""
    for contestant in contestants.values():
        contestant.take(1)
    counts = {name: max(1, round(seconds / contestant.take(1))) for name, contestant in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(turns):
        for name in names[turn % len(names):] + names[: turn % len(names)]:
            times[name].append(contestants[name].take(counts[name]))
    return times


def contest(task: str, makers: dict[str, Make], batch: int, turns: int, bf16: bool) -> list[dict]:
    built: dict[str, Contestant] = {}
    for name, make in (makers | {FLOOR: matrix_product}).items():
        contestant = Contestant(name, make, bf16)
        if contestant.missing:
            print(f"{name} is left out: {contestant.missing}")
        else:
            built[name] = contestant
    load = round(os.getloadavg()[0], 1)
    times = measure(built, turns, seconds=1.0)
    rates = [2 * SIDE**3 / t for t in times[FLOOR]]
    setting = {"task": task, "precision": "bf16" if bf16 else "fp32", "threads": torch.get_num_threads(), "batch": batch}
    rows: list[dict] = []
    for name, contestant in built.items():
        contestant.leave()
        if name == FLOOR:
            continue
        low, median, high = statistics.quantiles([batch / t for t in times[name]], n=4)
        ratios = [t / ours for t, ours in zip(times[name], times["notan"])]
        share = statistics.median(contestant.flops / t / rate for t, rate in zip(times[name], rates))
        rows.append(setting | {
            "library": name, "turns": turns, "load_before": load, "parameters": contestant.parameters,
            "samples_per_second": round(median, 1), "quartiles": [round(low, 1), round(high, 1)],
            "notan_is": round(statistics.median(ratios), 2),
            "notan_is_quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)[::2]],
            "of_matrix_product_rate": round(share, 2),
        })
        print(f"{task:12s} {setting['precision']} {setting['threads']} threads  {name:12s} {median:8.1f} samples/s "
              f"({low:.1f} to {high:.1f})  notan is {rows[-1]['notan_is']:.2f} x  {share:.0%} of the matrix product's rate",
              flush=True)
    gflops = statistics.median(rates) / 1e9
    rows.append(setting | {"library": FLOOR, "gflops_per_second": round(gflops)})
    return rows


def describe() -> dict[str, Any]:
    """The machine, without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "torchvision", "transformers", "vit-pytorch", "lightly"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"cpu": model, "cores": os.cpu_count(), "capability": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(), **versions}


def write(rows: list[dict]) -> None:
    """Put one contest's rows in the place of its earlier ones; rows measured on another machine or version go."""
    def contest_of(row: dict) -> tuple:
        return row["task"], row["precision"], row["threads"]

    machine = describe()
    old = json.loads(OUT.read_text()) if OUT.exists() else {"machine": None}
    kept = [r for r in old["rows"] if contest_of(r) != contest_of(rows[0])] if old["machine"] == machine else []
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"machine": machine, "notes": NOTES, "rows": kept + rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="more than 1 only on a quiet machine")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    args = parser.parse_args()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for bf16 in (p == "bf16" for p in args.precisions):
            for task, s in SIZES.items():
                pixels = torch.rand(s.batch, 3, s.side, s.side, generator=torch.Generator().manual_seed(0))
                makers = {"notan": mae_ours, "vit-pytorch": mae_vit_pytorch, "transformers": mae_transformers}
                ready = {name: partial(make, s, pixels) for name, make in makers.items()}
                write(contest(task, ready, s.batch, args.turns, bf16))
            for task, (side, batch) in PICTURES.items():
                x1, x2 = torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(0))
                pair = {"notan": partial(simclr_ours, x1, x2), "lightly": partial(simclr_lightly, x1, x2)}
                write(contest(task, pair, batch, args.turns, bf16))


if __name__ == "__main__":
    main()
