"""DiSa's claim (Talemi et al. 2025): what holds prompts to the frozen model keeps the classes that were not learned from."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.claims._composites import FACTORS, Composites, caption, composites, words
from notan.claims._statistics import Values, mean, paired
from notan.claims._train import built, fit
from notan.data import DataInfo, Rows
from notan.methods._prompting import base_count
from notan.methods.clip import CLIP
from notan.methods.coop import CoOp
from notan.methods.disa import DiSa
from notan.nets.dual import Dual
from notan.nets.language import new_tokenizer
from notan.nets.text import TextTransformer
from notan.nets.vit import ViT
from notan.probes.base_to_novel import base_to_novel
from notan.probes.features import extract
from notan.probes.zero_shot import class_features

PLAIN: dict[str, Any] = {"score": 0.0, "cross": 0.0, "direction": 0.0}
SCORED = {**PLAIN, "score": 1.0}
CROSSED = {**SCORED, "cross": 1.0}
ARMS: dict[str, dict[str, Any] | None] = {
    "zero-shot": None,
    "CoOp": None,
    "IVLP": PLAIN,
    "IVLP + SR": SCORED,
    "+ CIR": {**CROSSED, "hidden": 0.0},
    "+ CIR, salient": CROSSED,
    "+ CIR, random mask": {**CROSSED, "saliency": "random"},
    "+ DiR": {**SCORED, "direction": 1.0},
    "+ DiR, displacement": {**SCORED, "direction": 1.0, "mode": "displacement"},
    "DiSa": {**CROSSED, "direction": 1.0},
}
OBJECTS = FACTORS["object"]
TEMPLATE = "a picture of a {}"
SEEN, TEACHER_STEPS, TEACHER_BATCH, TEACHER_RATE = 8000, 400, 128, 1e-3
SHOTS, STEPS, BATCH, RATE = 8, 150, 16, 3e-3


def teacher_captions(said: dict[str, str]) -> list[str]:
    return [caption(said), TEMPLATE.format(said["object"]), f"{TEMPLATE.format(said['object'])} on {said['colour']} ground"]


def fresh(texts: list[str]) -> CLIP:
    pictures = ViT(64, patch=8, dim=96, depth=4, heads=4, pool="cls")
    said = TextTransformer(new_tokenizer(texts, vocabulary=400, context=32), dim=96, depth=3, heads=4, context=32)
    return CLIP(pictures, said, dim=64, crop=0.8)


@cache
def teacher(quick: bool) -> Dual:
    rows = range(160 if quick else SEEN)
    drawn = composites(0, rows, artist=0)
    said = [teacher_captions(words(f)) for f in drawn.factors]
    method = built(0, lambda: fresh(sorted({text for every in said for text in every})))
    train = Rows({"image": drawn.pictures, "captions": said})
    fit(method, train, steps=2 if quick else TEACHER_STEPS, batch=32 if quick else TEACHER_BATCH, lr=TEACHER_RATE, seed=0)
    return method.dual().eval()
