"""`notan probe`: how good is this encoder on this data, by the protocols that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.data import Data, keys
from notan.errors import NotanError, did_you_mean
from notan.probes.attributes import attribute_pairs
from notan.probes.features import extract
from notan.probes.fewshot import few_shot, label_curve
from notan.probes.finetune import finetune
from notan.probes.knn import knn_cosine, knn_euclidean
from notan.probes.logistic import logistic
from notan.probes.regression import fragmentation, ordering, regression
from notan.probes.ridge import ridge
from notan.probes.segmentation import segmentation
from notan.runs import study
from notan.runs.conditional import conditional
from notan.runs.embed import data_of, encoding, features_by_name, fitted, listens, load_tower, opened_for, source_of
from notan.runs.words import by_words, reads_both, written

PROTOCOLS = ("ridge", "knn", "logistic", "fewshot", "regression", "attributes", "retrieval", "zeroshot", "basetonovel",
             "conditional", "captions", "finetune", "segmentation")
WORDS = {"retrieval", "zeroshot", "basetonovel"}                        # those that read
FROZEN = {"label": ("ridge", "knn", "logistic", "fewshot"), "target": ("regression",)}           # by what they need
FORMS = {"harmonic": "base {base:.3f}, novel {novel:.3f}, harmonic mean {harmonic:.3f}",
         "miou": "mIoU {miou:.3f}", "accuracy": "accuracy {accuracy:.3f}",
         "rmse": "MAE {mae:.4g}, RMSE {rmse:.4g}, R² {r2:.3f}, Spearman {spearman:.3f}, geometric mean of errors {gm:.4g}; order "
                 "of features {ordering:.3f} (1: by target), neighbours' gap {fragmentation:.3f} (1: any two rows')",
         "mae": "MAE {mae:.4g}",
         "scaled": "mAP {map:.3f} (chance {chance:.3f}), scaled {scaled:.3f}; scaled under another instruction {wrong:.3f}, "
                   "under none {without:.3f}",
         "r1": "R@1 {r1:.3f}, R@5 {r5:.3f}, R@10 {r10:.3f}, mAP {map:.3f}, mINP {minp:.3f}, median rank {median:.0f}   (R@1 by "
               "chance {chance:.4f})",
         "cider": "CIDEr-D {cider:.3f}, BLEU-4 {bleu4:.3f}, ROUGE-L {rouge_l:.3f}, exact {exact:.3f}; true captions {ce:.3f} "
                  "nats a token, perplexity {perplexity:.4g}"}


def probe(run: str | Path, data: str | Data | None = None, *, protocols: list[str] | None = None, rows: int = 10_000,
          seed: int = 0, prompts: Sequence[str] | None = None, instructions: Sequence[str] = (),
          data_options: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Measure a run, an encoder folder or "hf:NAME" on `data` (default: what the run was trained on).

    prompts: for zero-shot classes, with {} where a class's name goes; names alone where a run has learned what stands
    before them (`disa`, `coop`), else a few plain sentences. instructions: for `conditional` on data with attributes, one
    for each. Without `protocols` a method of pictures and texts is measured by retrieval where there are captions and by
    zeroshot where there are classes, one that reads instructions by `conditional` where there are some, others by ridge and
    k-NN. Returns protocol -> its result (`accuracy`, `mae` or `miou`, `n`, `protocol` as a sentence, ...). At most `rows`
    rows of each split are used, chosen by key. Raises `NotanError` for an unknown protocol, or data without what a protocol
    needs.
    """
    for name in protocols or []:
        if name not in PROTOCOLS:
            raise NotanError(f"there is no protocol {name!r}", ", ".join(PROTOCOLS), did_you_mean(name, PROTOCOLS))
    opened = opened_for(run, *data_of(run, data, data_options))
    asked = protocols or _fitting(run, opened)
    results: dict[str, dict[str, Any]] = {}
    if "segmentation" in asked:
        results["segmentation"] = _segment(run, opened, rows)
    if "finetune" in asked:
        results["finetune"] = _finetune(run, opened, rows, seed)
    if "attributes" in asked:
        results |= _attributes(run, opened, rows)
    if "conditional" in asked:
        results |= conditional(encoding(run), opened, rows, instructions)
    if not WORDS.isdisjoint(asked):
        results |= by_words(run, opened, rows, asked, prompts)
    if "captions" in asked:
        results["captions"] = written(run, opened, rows)
    features = None
    for column, names in FROZEN.items():
        if rest := [name for name in asked if name in names]:
            chosen = study.rowset(opened, rows, column)                 # the same rows for labels and targets
            features = features or study.embed(encoding(run), opened, chosen)
            for name in rest:
                results |= _frozen(name, (features[0], chosen.train_y, features[1], chosen.test_y), seed)
    return {name: {k: v for k, v in r.items() if k != "losses"} | {"protocol": str(r["protocol"])}
            for name, r in results.items()}


def print_results(results: dict[str, dict[str, Any]], console: Any) -> None:
    """One line a protocol, and below it what was done."""
    for name, r in results.items():
        value = next(form.format(**r) for key, form in FORMS.items() if key in r)
        value += f"   (chance {r['chance']:.3f}, most frequent class {r['majority']:.3f})" if "majority" in r else ""
        console.print(f"{name}: {value}", style="bold")
        for shot, group in r.get("groups", {}).items():
            console.print(f"  {shot}-shot: MAE {group['mae']:.4g}, geometric mean {group['gm']:.4g}, {group['n']:,} rows",
                          highlight=False)
        console.print(f"  {r['protocol']}", highlight=False)


def _frozen(name: str, x: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> dict[str, dict[str, Any]]:
    """The probes of frozen features (train x, y, test x, y)."""
    if name == "ridge":
        return {"ridge": ridge(*x)}
    if name == "logistic":
        return {"logistic": logistic(*x)}
    if name == "knn":
        return {"knn": knn_cosine(*x), "knn, euclidean": knn_euclidean(*x)}
    if name == "regression":
        some = label_curve(*x, sizes=[n for n in study.SIZES if n < len(x[1])], seed=seed, probe=regression, metric="mae")
        shape = {"ordering": ordering(x[2], x[3]), "fragmentation": fragmentation(x[2], x[3], k=min(5, len(x[2]) - 1))}
        return {"regression": regression(*x) | shape} | {f"{n:,} targets": r for n, r in some.items()}
    curve = label_curve(*x, sizes=(*study.SIZES, len(x[1])), seed=seed)
    return {"10 per class": few_shot(*x, n=10, seed=seed)} | {f"{n:,} labels": r for n, r in curve.items()}


def _attributes(run: str | Path, data: Data, rows: int) -> dict[str, dict[str, Any]]:
    """A ridge probe of each attribute from each space; where the data has groups, of target rows."""
    if "attributes" not in data.info.columns:
        raise NotanError(f"{data.info.name} has the columns {', '.join(data.info.columns)}",
                         "a column `attributes` in both splits", "--column THEIRS=attributes, as often as there are some")
    spaces, known, encode = [], [], encoding(run)
    for split in (data.train, data.test):
        index = np.arange(len(split))
        index = index[split.values("group") == 1] if "group" in split.columns else index
        index = index[keys.shuffle(0, 0, len(index))[:rows]]
        found = features_by_name(encode, split, index, 512)
        spaces.append({name.removeprefix("feature_"): z for name, z in found.items()})
        known.append(torch.from_numpy(split.values("attributes")[index]))
    return attribute_pairs(spaces[0], known[0], spaces[1], known[1])


def _fitting(run: str | Path, data: Data) -> list[str]:
    """The protocols that suit a run and its data."""
    if {"instruction", "answer"} <= {*data.info.columns} and listens(source_of(run)):
        return ["conditional"]
    words = {"text", "captions"} & {*data.info.columns}
    if words and "image" in data.info.columns and reads_both(run):
        return ["retrieval", *(["zeroshot", "ridge"] if data.info.classes else [])]
    return ["regression"] if study.column_of(data) == "target" else ["ridge", "knn"]


def _finetune(run: str | Path, data: Data, rows: int, seed: int) -> dict[str, Any]:
    """All weights of the run's encoder, 5 epochs of the labelled rows, AdamW 1e-3 with layer decay 0.75."""
    if "image" not in data.info.columns:
        raise NotanError(f"{data.info.name} has no pictures, only {', '.join(data.info.columns)}", "pictures, to fine-tune on",
                         "frozen features: --protocol ridge, knn, logistic or fewshot")
    chosen = study.rowset(data, rows)
    classes = int(chosen.train_y.max()) + 1
    steps = max(50, 5 * len(chosen.train) // 128)
    return finetune(load_tower(run), data.train, chosen.train, data.test.select(chosen.test), classes=classes, steps=steps,
                    lr=1e-3, seed=seed, batch=128, layer_decay=0.75)


def _segment(run: str | Path, data: Data, rows: int) -> dict[str, Any]:
    """A linear probe of every cell of the dense features, upsampled to the pixels of `segmentation`."""
    if "segmentation" not in data.info.columns:
        raise NotanError(f"{data.info.name} has no column 'segmentation', only {', '.join(data.info.columns)}",
                         "class numbers for pixels", "use data with masks, e.g. --data earth")
    encoder = load_tower(run)
    sides: list[Tensor] = []
    for split in (data.train, data.test):
        index = np.arange(min(rows, len(split)))
        sides.append(extract(lambda b: encoder.maps(fitted(b["image"], encoder.channels, encoder.image_size)), split, index))
        sides.append(split.take(index)["segmentation"])
    counted = torch.cat([sides[1].flatten(), sides[3].flatten()])
    return segmentation(*sides, classes=int(counted[counted != 255].max()) + 1)
