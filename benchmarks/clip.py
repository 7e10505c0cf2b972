"""A training step of CLIP beside open_clip's own modules of the same sizes.

    make bench-env                      (an environment of its own: open_clip needs torchvision)
    .venv-bench/bin/python benchmarks/clip.py

Forward, loss, backward and AdamW on a batch of pixels in memory and its captions; ours reads them as texts, so its step has
the tokenizer in it, open_clip's are token numbers that lie ready. Captions have the lengths of what people write under pictures
(5 to 30 tokens, 12 in the middle), once, and as many tokens as the context of 77 holds, once: open_clip reads 77 places
either way. The contest is that of `steps.py`; memory is the peak of each step in a process of its own beyond what is there
before it. Written to benchmarks/results/clip.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from steps import Make, Step, contest, describe, make_torchvision_importable, stepper
from torch import nn

from notan.methods._progress import Progress
from notan.methods.clip import CLIP
from notan.nets.language import new_tokenizer
from notan.nets.text import TextTransformer
from notan.nets.vit import ViT
from notan.runs import machine

OUT = Path(__file__).parent / "results" / "clip.json"
CONTEXT = 77
WORDS = ("a", "the", "dog", "cat", "red", "old", "two", "on", "in", "by", "sea", "house", "with", "tree", "of", "man", "small")
NOTES = [
    "Both: a ViT with a class token that is read, learned positions and pre-norm blocks with exact GELU, a causal text tower "
    "that is read at its end token, heads without a bias, a learned temperature, fused AdamW. open_clip's ViT has one more norm "
    "before its blocks and no bias in its patch embedding.",
    "Ours reads captions in groups of like length and keeps freed memory for the next step, as `notan train` does.",
    "Both step on the whole batch at once, open_clip's loss with its logits in memory.",
]


class Size(NamedTuple):
    """A picture, its encoder, a text encoder, and a batch."""

    side: int
    patch: int
    dim: int
    depth: int
    heads: int
    text_dim: int
    text_depth: int
    text_heads: int
    batch: int


SIZES = {"clip 64 px": Size(64, 8, 192, 6, 3, 128, 4, 4, 128), "clip 224 px": Size(224, 32, 384, 12, 6, 256, 6, 4, 32)}


@cache
def captions(batch: int, full: bool) -> tuple[Any, list[str]]:
    """A tokenizer and texts, of the lengths of captions or as long as the context allows."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randn(batch, generator=draw).mul(0.45).add(2.4).exp().clamp(4, 28).long().tolist()
    texts = [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (90 if full else n,), generator=draw)) for n in lengths]
    return new_tokenizer(texts, vocabulary=512, context=CONTEXT), texts


def ours(s: Size, full: bool) -> tuple[nn.Module, Step]:
    tokenizer, texts = captions(s.batch, full)
    images = ViT(s.side, 3, s.patch, s.dim, s.depth, s.heads, pool="cls", positions="learned")
    words = TextTransformer(tokenizer, dim=s.text_dim, depth=s.text_depth, heads=s.text_heads, context=CONTEXT)
    method: Any = CLIP(images, words, dim=s.text_dim, crop=1.0)
    batch = {"image": torch.randint(0, 256, (s.batch, 3, s.side, s.side), dtype=torch.uint8), "text": texts,
             "key": torch.arange(s.batch), "row": torch.arange(s.batch)}
    return method, stepper(method, lambda: method.loss(batch, Progress())["loss"], adamw(method))


def theirs(s: Size, full: bool) -> tuple[nn.Module, Step]:
    from open_clip import ClipLoss
    from open_clip.model import CLIP as OpenCLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    tokenizer, texts = captions(s.batch, full)
    last = len(tokenizer)                                               # open_clip reads a text where its number is largest
    read = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=CONTEXT - 2)["input_ids"]
    rows = [[last, *row, last] for row in read]
    ids = torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])
    model = OpenCLIP(s.text_dim, CLIPVisionCfg(s.depth, s.dim, s.dim // s.heads, patch_size=s.patch, image_size=s.side),
                     CLIPTextCfg(CONTEXT, last + 1, width=s.text_dim, heads=s.text_heads, layers=s.text_depth))
    pixels, criterion = torch.rand(s.batch, 3, s.side, s.side), ClipLoss()
    return model, stepper(model, lambda: criterion(*model(pixels, ids)), adamw(model))


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=0.2, fused=True)


def peak(name: str, make: Make, out: Any) -> None:
    """MB at the peak of a step beyond model, gradients and moments."""
    torch.set_num_threads(1)
    make_torchvision_importable()
    if name == "notan":
        machine.keep_freed_memory()
    _, step = make()
    machine.reset_peak()
    before = machine.peak_mb()
    step(False)
    out.put(machine.peak_mb() - before)


def memory(makers: dict[str, Make]) -> dict[str, int]:
    context = multiprocessing.get_context("spawn")
    found = {}
    for name, make in makers.items():
        out = context.Queue()
        process = context.Process(target=peak, args=(name, make, out))
        process.start()
        found[name] = round(out.get())
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for task, s in SIZES.items():
        for full in (False, True):
            makers: dict[str, Make] = {"notan": partial(ours, s, full), "open_clip": partial(theirs, s, full)}
            named = task + (", full context" if full else "")
            peaks = memory(makers)
            for row in contest(named, makers, s.batch, args.turns, bf16=False):
                rows.append(row | ({"step_mb": peaks[row["library"]]} if row["library"] in peaks else {}))
            print(f"{named}: MB a step {peaks}", flush=True)
    from importlib.metadata import version

    OUT.write_text(json.dumps({"machine": describe() | {"open_clip_torch": version("open_clip_torch")}, "notes": NOTES,
                               "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
