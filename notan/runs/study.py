"""The measurements of a comparison: the same rows, the same probes and the same few labels for every arm."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from notan.data import Data, keys
from notan.errors import NotanError
from notan.probes.features import extract
from notan.probes.fewshot import few_shot, label_curve
from notan.probes.knn import knn_cosine, nearest_cosine
from notan.probes.regression import regression
from notan.probes.ridge import ridge
from notan.runs.statistics import paired as paired
from notan.runs.statistics import verdict as verdict
from notan.runs.table import render_table as render_table
from notan.runs.watch import ABOUT, probed

SIZES = (100, 300, 1_000, 3_000)  # numbers of labels, before all of them
MAP_ROWS = 600  # points of an embedding map
QUERIES, HITS = 6, 8  # rows and columns of the neighbour strips


class Rowset(NamedTuple):
    """The rows that probes see: indices into the two splits, in keyed order, and their labels (int64) or targets (float32)."""

    train: np.ndarray
    test: np.ndarray
    train_y: Tensor
    test_y: Tensor


def column_of(data: Any) -> str:
    """What data is probed for: `label`, or `target` where there is none. Raises `NotanError` for data without either."""
    both = {*data.train.columns} & {*data.test.columns}
    if both.isdisjoint(ABOUT):
        raise NotanError(
            f"the data has no labels to measure with; it has {', '.join(data.train.columns)}",
            "a column `label` or `target` in both splits",
            "name it with --column theirs=label, or theirs=target for a number; `notan train` needs none",
        )
    return next(c for c in ABOUT if c in both)


def check_pictures(data: Data) -> None:
    """Raises `NotanError` for data without pictures."""
    if "image" not in data.info.columns:
        raise NotanError(f"{data.info.name} has no pictures, only {', '.join(data.info.columns)}", "pictures",
                         "--column THEIRS=image")


def rowset(data: Any, most: int = 10_000, column: str = "") -> Rowset:
    """At most `most` rows of each split, a keyed choice that is the same for every arm and seed.

    column: `label` or `target`; by default the one of `column_of`. Raises `NotanError` for data without it.
    """
    column = column or column_of(data)
    if column not in data.train.columns or column not in data.test.columns:
        raise NotanError(f"the data has no {column}s to measure with; it has {', '.join(data.train.columns)}",
                         f"a column `{column}` in both splits", f"name it with --column theirs={column}")
    train, test = (keys.shuffle(0, 0, len(rows))[:most] for rows in (data.train, data.test))
    labels = (torch.from_numpy(rows.values(column)[i]) for rows, i in ((data.train, train), (data.test, test)))
    return Rowset(train, test, *labels)


def classed(rows: Rowset) -> Rowset:
    """The same rows with a class each, for maps and neighbours: of targets, which fifth of the training ones they are in."""
    if not rows.train_y.is_floating_point():
        return rows
    edges = _fifths(rows)
    return rows._replace(train_y=torch.bucketize(rows.train_y, edges), test_y=torch.bucketize(rows.test_y, edges))


def class_names(data: Any, rows: Rowset) -> list[str]:
    """What the classes of `classed` are called."""
    if not rows.train_y.is_floating_point():
        return list(data.info.classes)
    ends = [f"{float(x):.4g}" for x in _fifths(rows)]
    return [f"up to {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"above {ends[-1]}"]


def _fifths(rows: Rowset) -> Tensor:
    return torch.quantile(rows.train_y, torch.tensor([0.2, 0.4, 0.6, 0.8]))


def embed(encode: Callable[[dict[str, Any]], Any], data: Any, rows: Rowset) -> tuple[Tensor, Tensor]:
    """Features of the probes' rows, (N, D) of the training and of the test split; several outputs stand side by side.

    A module whose method `encode` is must be in eval mode already, as `Run.method()` gives it.
    """
    def one(batch: dict[str, Any]) -> Tensor:
        return probed(encode(batch))

    return extract(one, data.train, rows.train), extract(one, data.test, rows.test)


def probe(train_x: Tensor, test_x: Tensor, rows: Rowset, seed: int, full: dict[str, Any] | None = None,
          draws: int = 3) -> dict[str, Any]:
    """Ridge with all labels, with 1,000 and with 10 per class (as many as the smallest class has), and k-NN.

    Which rows have one of few labels is drawn by (`seed`, draw), so arms are paired. `full` is what `probe_all` found
    for these features, where several seeds share them. Of targets R2 and rank correlation instead. Returns `values` (metric ->
    number, the more the better), `protocols` (metric -> sentence) and `fractions` (number of labels -> accuracy or R2).
    """
    x = train_x.double(), rows.train_y, test_x.double(), rows.test_y    # converted once for all fits
    if rows.train_y.is_floating_point():
        return _probe_targets(x, seed, full or probe_all(*x[::2], rows), draws)
    n, counts = len(rows.train_y), torch.bincount(rows.train_y)
    few = min(10, int(counts[counts > 0].min()))
    full = full or probe_all(*x[::2], rows)
    curve = label_curve(*x, sizes=[size for size in SIZES if size < n], draws=draws, seed=seed) | {n: full["ridge"]}
    found = {f"ridge, {n:,} labels": full["ridge"]}
    found |= {"ridge, 1,000 labels": curve[1000]} if 1000 in curve and n > 1000 else {}
    found |= {f"ridge, {few} per class": few_shot(*x, n=few, draws=draws, seed=seed)}
    found |= {f"k-NN, {n:,} labels": full["k-NN"]}
    return {
        "values": {metric: r["accuracy"] for metric, r in found.items()},
        "protocols": {metric: str(r["protocol"]) for metric, r in found.items()},
        "fractions": {size: r["accuracy"] for size, r in curve.items()},
    }


def _probe_targets(x: tuple[Tensor, Tensor, Tensor, Tensor], seed: int, full: dict[str, Any], draws: int) -> dict[str, Any]:
    """`probe` of a number: ridge regression with all targets, with 1,000 and with 100."""
    n = len(x[1])
    curve = label_curve(*x, sizes=[size for size in SIZES if size < n], draws=draws, seed=seed, probe=regression, metric="r2")
    found = {f"R², {size:,} targets": curve[size] for size in (1000, 100) if size in curve}
    found = {f"R², {n:,} targets": full["ridge"], **found}
    ranks, how = f"Spearman, {n:,} targets", str(full["ridge"]["protocol"])
    return {
        "values": {m: r["r2"] for m, r in found.items()} | {ranks: full["ridge"]["spearman"]},
        "protocols": {m: str(r["protocol"]) for m, r in found.items()} | {ranks: how},
        "fractions": {size: r["r2"] for size, r in (curve | {n: full["ridge"]}).items()},
    }


def probe_all(train_x: Tensor, test_x: Tensor, rows: Rowset) -> dict[str, Any]:
    """The two probes that use every label, and no seed: `ridge` and `k-NN`; of targets ridge regression alone."""
    x = train_x, rows.train_y, test_x, rows.test_y
    if rows.train_y.is_floating_point():
        return {"ridge": regression(*x)}
    return {"ridge": ridge(*x), "k-NN": knn_cosine(*x, k=min(20, len(train_x)))}


def flat_map(test_x: Tensor, rows: Rowset, seed: int = 0) -> dict[str, Any]:
    """The first test features (N, D) as a t-SNE map (van der Maaten and Hinton 2008): `xy` (N, 2) and `label` (N,).

    About a second. Fewer than 20 rows are shown along their principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    x = test_x[:MAP_ROWS]
    z = ((x - x.mean(0)) / x.std(0).clamp(min=1e-6)).numpy()
    z = np.pad(PCA(min(50, *z.shape), random_state=seed).fit_transform(z), ((0, 0), (0, 1)))
    if len(z) >= 20:
        tsne = TSNE(2, init="random", perplexity=min(30, len(z) / 4), max_iter=500, random_state=seed)
        z = tsne.fit_transform(z)
    return {"xy": z[:, :2], "label": rows.test_y[:MAP_ROWS].numpy()}


def thumbs(data: Any, rows: Rowset) -> Tensor:
    """The pictures of a map's points, uint8 (N, C, H, W)."""
    return data.test.take(rows.test[:MAP_ROWS])["image"]


def neighbours(train_x: Tensor, test_x: Tensor, data: Any, rows: Rowset) -> dict[str, Any]:
    """A test row of each of a few classes and the training rows nearest to it by cosine, as pictures.

    `query` (Q, C, H, W), `hits` (Q, K, C, H, W), `right` bool (Q, K), and the labels `query_label`, `hit_label`.
    """
    query = torch.stack([(rows.test_y == c).nonzero()[0, 0] for c in rows.test_y.unique()[:QUERIES]])
    hits = nearest_cosine(train_x, test_x[query], min(HITS, len(train_x)))[1]  # (Q, K)
    found = data.train.take(rows.train[hits.flatten().numpy()])["image"].unflatten(0, tuple(hits.shape))
    asked, got = rows.test_y[query], rows.train_y[hits]
    return {
        "query": data.test.take(rows.test[query.numpy()])["image"],
        "hits": found,
        "right": got == asked.unsqueeze(1),
        "query_label": asked,
        "hit_label": got,
    }
