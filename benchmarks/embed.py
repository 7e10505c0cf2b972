"""Embedding texts and pictures beside sentence-transformers, with the same weights.

    make bench-env
    .venv-bench/bin/python benchmarks/embed.py

Texts: 2,000 of 3 to 90 words, in no order, through a BERT of MiniLM's shape (6 layers of 384) with a mean over tokens. Pictures:
192 JPEG files of 500 x 375 pixels through a CLIP with a ViT-S/32 at 224 px. Weights are drawn once and read by both. Timed is the
call that a user makes, after the model is loaded: sentence-transformers' `encode` of a list of strings, or of opened files, with
its default batch; ours is what `notan embed --out FOLDER` does, which decodes in threads beside the model, makes thumbnails and
writes the index; as it is (bf16 where the machine multiplies it natively) and in fp32. They take turns; given are medians,
quartiles, and the median of the ratios of each turn. Each has one thread for the model. Written to benchmarks/results/embed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip import WORDS
from steps import describe, make_torchvision_importable
from torch import nn

from notan.nets.language import new_tokenizer
from notan.runs.embed import load_tower
from notan.runs.index import Index
from notan.runs.indexing import index
from notan.runs.machine import choose_precision

OUT = Path(__file__).parent / "results" / "embed.json"
TEXTS, PICTURES = 2000, 192


def write_texts(folder: Path) -> list[str]:
    """A sentence encoder as sentence-transformers keeps one, and texts."""
    from transformers import BertConfig, BertModel

    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, int(n))) for n in np.exp(draw.normal(2.6, 0.8, TEXTS)).clip(3, 90)]
    tokenizer = new_tokenizer(texts, vocabulary=1000, context=128)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                         intermediate_size=1536, max_position_embeddings=128)).save_pretrained(folder / "bert")
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder / "bert")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text, "id": str(i)}) + "\n" for i, text in enumerate(texts)))
    return texts


def write_pictures(folder: Path) -> list[Path]:
    """A CLIP and picture files."""
    from PIL import Image
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = new_tokenizer(list(WORDS), vocabulary=300, context=77)
    wide = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
            "vocab_size": len(tokenizer), **{f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**wide, "image_size": 224, "patch_size": 32}, projection_dim=256)
    CLIPModel(config).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessor().save_pretrained(folder / "clip")
    draw, paths = np.random.default_rng(0), []
    (folder / "photos").mkdir()
    for i in range(PICTURES):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        paths.append(folder / "photos" / f"{i:04d}.jpg")
        small.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def ours(encoder: nn.Module, data: Path, folder: Path, precision: str = "auto") -> np.ndarray:
    """Vectors of an index that is written anew, in the order of its names."""
    out = Path(tempfile.mkdtemp(dir=folder))
    index(encoder, str(data), out, dtype="float32", precision=precision)
    made = Index(out)
    return np.asarray(made.vectors)


def contest(task: str, rows: int, contestants: dict[str, Callable[[], Any]], turns: int) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(turns + 1):                                       # the first is to warm up
        for name in names[turn % 2:] + names[: turn % 2]:
            start = time.perf_counter()
            contestants[name]()
            if turn:
                times[name].append(time.perf_counter() - start)
    found = []
    for name, seconds in times.items():
        low, median, high = statistics.quantiles([rows / s for s in seconds], n=4)
        ratios = [theirs / own for theirs, own in zip(seconds, times["notan"])]
        found.append({"task": task, "library": name, "turns": turns, "rows_per_second": round(median, 1),
                      "quartiles": [round(low, 1), round(high, 1)], "notan_is": round(statistics.median(ratios), 2),
                      "notan_is_quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)[::2]]})
        print(f"{task:9s} {name:22s} {median:8.1f} rows/s ({low:.1f} to {high:.1f})  notan is {found[-1]['notan_is']:.2f} x",
              flush=True)
    return found


def check(mine: np.ndarray, theirs: np.ndarray, least: float) -> float:
    """The least cosine of any row's two vectors."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (mine, theirs)]
    cosine = float((unit[0] * unit[1]).sum(1).min())
    assert cosine > least, f"the same weights give other vectors: {cosine}"
    return round(cosine, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    make_torchvision_importable()
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = Path(tempfile.mkdtemp())
    texts, paths = write_texts(folder), write_pictures(folder)
    body = Transformer(str(folder / "bert"), max_seq_length=128)
    sentences = SentenceTransformer(modules=[body, Pooling(384)], device="cpu")
    seeing = SentenceTransformer(str(folder / "clip"), device="cpu")
    theirs: dict[str, tuple[int, str, Path, Callable[[], Any]]] = {
        "texts": (TEXTS, "bert", folder / "texts.jsonl", lambda: sentences.encode(texts)),
        "pictures": (PICTURES, "clip", folder / "photos", lambda: seeing.encode([Image.open(p) for p in paths])),
    }
    rows: list[dict[str, Any]] = []
    alike: dict[str, float] = {}
    for task, (count, name, data, encode) in theirs.items():
        encoder = load_tower(f"hf:{folder / name}")
        other = np.asarray(encode())
        for precision, least in (("fp32", 0.9999 if task == "texts" else 0.9), ("auto", 0.9)):
            alike[f"{task}, {precision}"] = check(ours(encoder, data, folder, precision), other, least)
        rows += contest(task, count, {"notan": partial(ours, encoder, data, folder), "sentence-transformers": encode,
                                      "notan, fp32": partial(ours, encoder, data, folder, "fp32")}, turns)
    machine = describe() | {"sentence-transformers": version("sentence-transformers")}
    OUT.write_text(json.dumps({"machine": machine, "threads": 1, "precision": choose_precision("auto"), "least_cosine": alike,
                               "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
