"""`notan probe`: how good is this encoder on this data, by the protocols that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan import catalogue
from notan.data import Data, keys
from notan.errors import NotanError, did_you_mean
from notan.nets.build import is_dual
from notan.nets.prompted import Prompted
from notan.probes.attributes import attribute_pairs
from notan.probes.base_to_novel import base_to_novel
from notan.probes.captions import caption_scores
from notan.probes.features import extract
from notan.probes.fewshot import few_shot, label_curve
from notan.probes.finetune import finetune
from notan.probes.knn import knn_cosine, knn_euclidean
from notan.probes.logistic import logistic
from notan.probes.regression import fragmentation, ordering, regression
from notan.probes.retrieval import retrieval
from notan.probes.ridge import ridge
from notan.probes.segmentation import segmentation
from notan.probes.zero_shot import PROMPTS, class_features, zero_shot
from notan.runs import study
from notan.runs.build import is_both, reads_texts
from notan.runs.captions import cut_by
from notan.runs.conditional import conditional
from notan.runs.embed import encoding, features_by_name, fitted, load_tower, opened_for
from notan.runs.folder import Run
from notan.runs.watch import probed

PROTOCOLS = ("ridge", "knn", "logistic", "fewshot", "regression", "attributes", "retrieval", "zeroshot", "basetonovel",
             "conditional", "captions", "finetune", "segmentation")
WORDS = {"retrieval", "zeroshot", "basetonovel"}                        # those that read
WRITTEN = 128                                                           # captions at a time
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

    prompts: for zero-shot classes, with {} where a class's name goes; names alone where a run has learned what stands before them
    (`disa`, `coop`), else a few plain sentences. instructions: for `conditional` on data with attributes, one for each. Without
    `protocols` a method of pictures and texts is
    measured by retrieval where there are captions and by zeroshot where there are classes, others by ridge and k-NN.
    Returns protocol -> its result (`accuracy`, `mae` or `miou`, `n`, `protocol` as a sentence, ...). At most `rows` rows of each
    split are used, chosen by key. Raises `NotanError` for an unknown protocol, or data without what a protocol needs.
    """
    for name in protocols or []:
        if name not in PROTOCOLS:
            raise NotanError(f"there is no protocol {name!r}", ", ".join(PROTOCOLS), did_you_mean(name, PROTOCOLS))
    opened = opened_for(run, _data(run, data), data_options)
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
        results |= _by_words(run, opened, rows, asked, prompts)
    if "captions" in asked:
        results["captions"] = _captions(run, opened, rows)
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
    words = {"text", "captions"} & {*data.info.columns}
    if words and "image" in data.info.columns and reads_both(run):
        return ["retrieval", *(["zeroshot", "ridge"] if data.info.classes else [])]
    return ["regression"] if study.column_of(data) == "target" else ["ridge", "knn"]


def reads_both(run: str | Path) -> bool:
    """Whether a run's method, or a released model, brings pictures and texts to one space."""
    if not (Path(run) / "config.yaml").exists():
        return is_dual(str(run))
    return any(reads_texts(tower) or is_both(tower) for tower in catalogue.method(Run(run).settings.method).towers)


def _by_words(run: str | Path, data: Data, rows: int, asked: list[str],
              prompts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Pictures and captions of the test split that find each other, and classes by their names."""
    if not reads_both(run):
        raise NotanError(f"{run} has no space that pictures and texts share", "a run of a method of both, such as clip",
                         "--protocol ridge, knn, ...")
    index, own = keys.shuffle(0, 0, len(data.test))[:rows], learned(run)
    space = Space(encoding(run), data, index, tuple(prompts or (PROMPTS if own is None else ("{}",))))
    found: dict[str, dict[str, Any]] = {}
    if "retrieval" in asked:
        said = captions(data, index)
        texts = list(dict.fromkeys(text for every in said for text in every))
        number = {text: i for i, text in enumerate(texts)}
        pairs = torch.tensor([(i, number[text]) for i, every in enumerate(said) for text in dict.fromkeys(every)])
        z, notes = space.read(texts), "equal captions are one, and belong to each of their pictures"
        notes += f"; {lost.rstrip('.')}" if (lost := cut_by(run, texts)) else ""
        found = {"picture to text": retrieval(space.images, z, pairs, notes=notes),
                 "text to picture": retrieval(z, space.images, pairs.flip(1), notes=notes)}
    if "zeroshot" in asked:
        found["zero-shot"] = zero_shot(space.images, *space.classes(), notes=space.notes)
    if "basetonovel" in asked:
        found["base to novel"] = base_to_novel(space.images, *space.classes(), notes=space.notes)
        if own is not None:
            plain = Space(encoding(own.base), data, index, (own.config["template"],))
            found["base to novel, frozen"] = base_to_novel(plain.images, *plain.classes(), notes=plain.notes)
    return found


def _captions(run: str | Path, data: Data, rows: int) -> dict[str, Any]:
    """What a run writes of test pictures, and how likely it finds what was said of them."""
    if not (Path(run) / "config.yaml").exists() or "caption" not in catalogue.method(Run(run).settings.method).has:
        raise NotanError(f"{run} writes no captions", "a run of a method that does, such as coca", "--protocol retrieval")
    if "image" not in data.info.columns:
        raise NotanError(f"{data.info.name} has no pictures, only {', '.join(data.info.columns)}", "pictures with captions",
                         "--column THEIRS=image")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method: Any = Run(run).method().to(device)
    info, index = Run(run).info, keys.shuffle(0, 0, len(data.test))[:rows]
    truth, pictures = captions(data, index), data.test.only("image")
    said, nats, tokens = [], 0.0, 0
    for start in range(0, len(index), WRITTEN):
        here, every = slice(start, start + WRITTEN), truth[start : start + WRITTEN]
        x = fitted(pictures.take(index[here])["image"].to(device), info.channels or 0, info.image_size or 0)
        said += method.caption(x)
        own, said_of = zip(*[(i, text) for i, texts in enumerate(every) for text in texts])
        nll, count = method.caption_nll(x[list(own)], list(said_of))
        nats, tokens = nats + float(nll.double().sum()), tokens + int(count.sum())
    return caption_scores(said, nats, tokens, truth, how="the likeliest token at each step",
                          notes=f"{len(method.text_encoder.tokenizer):,} tokens in the vocabulary")


class Space:
    """Test rows of data in a space of pictures and texts, and what reads texts into it."""

    def __init__(self, encode: Any, data: Data, index: np.ndarray, prompts: tuple[str, ...]) -> None:
        self.encode, self.data, self.index, self.prompts = encode, data, index, prompts
        self.images = extract(lambda batch: probed(encode(without_words(batch))), data.test, index)
        self.notes = "prompts " + "; ".join(map(repr, prompts))

    def read(self, texts: list[str]) -> Tensor:
        with torch.inference_mode():
            parts: list[Any] = [self.encode({"text": texts[i : i + 512]}) for i in range(0, len(texts), 512)]
            return torch.cat([part["text"].float().cpu() for part in parts])

    def classes(self) -> tuple[Tensor, Tensor]:
        """Labels of the rows (N,), and a direction for each class (C, D)."""
        labels = torch.from_numpy(self.data.test.values("label")[self.index])
        return labels, class_features(self.read, self.data.info.classes, self.prompts)


def learned(run: str | Path) -> Prompted | None:
    """The encoder of a run, or in a folder, that has learned what stands before a name; None of any other."""
    if str(run).startswith("hf:"):
        return None
    if (Path(run) / "config.yaml").exists() and not any(map(is_both, catalogue.method(Run(run).settings.method).towers)):
        return None
    found = load_tower(run)
    return found if isinstance(found, Prompted) else None


def captions(data: Data, index: np.ndarray) -> list[list[str]]:
    """All captions of some test rows. Raises `NotanError` for data without."""
    column = next((name for name in ("captions", "text") if name in data.test.columns), "")
    if not column:
        raise NotanError(f"{data.info.name} has the columns {', '.join(data.info.columns)}", "captions: text or captions",
                         "--column THEIRS=text")
    said = data.test.only(column).take(index)[column]
    return said if column == "captions" else [[text] for text in said]


def without_words(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("text", "captions")}


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


def _data(run: str | Path, data: str | Data | None) -> str | Data:
    if data is not None:
        return data
    if (Path(run) / "config.yaml").exists():
        return Run(run).settings.data
    raise NotanError(f"{run} does not say what data it was trained on", "--data DATA", "name the data to probe on")
