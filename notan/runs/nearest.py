"""The rows of an index nearest to a query: exactly, by a pass over the vectors, or nearly, through a graph (usearch)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.errors import NotanError
from notan.runs.index import Index, Writer, read_header, size_of

FLOATS = 1 << 18                                                        # of vectors that are in float32 at a time: 1 MB
WINDOW = 1 << 18                                                        # rows whose scores are held at a time
LINKS, WIDTH_ADD, WIDTH = 16, 64, 256                                   # of a node; candidates when it is added, and in a search
AT_ONCE = 4096                                                          # rows that join the graph between looks at the bar


def exact(vectors: np.ndarray, alive: np.ndarray, queries: Tensor, top: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Scores float32 and rows int64, (Q, k), the best first, of `vectors` (N, D) from row `first`; k is `top`, or what is alive.

    The score is the dot product in float32 with the vectors as they are kept. Equal scores are in the order of rows. Holds
    Q x 2^18 scores and 1 MB of vectors.
    """
    top = min(top, int(alive[first:].sum()))
    best, rows = queries.new_full((len(queries), 0), 0.0), torch.zeros(len(queries), 0, dtype=torch.int64)
    step = max(1, FLOATS // max(vectors.shape[1], 1))
    kept, there = torch.from_numpy(np.asarray(vectors)), torch.from_numpy(alive)
    room = torch.empty(step, vectors.shape[1])                          # one place for all blocks: it stays in the cache
    for start in range(first, len(vectors) if top else first, WINDOW):
        stop = min(start + WINDOW, len(vectors))
        scores = torch.empty(len(queries), stop - start)
        for at in range(start, stop, step):
            block = kept[at : min(at + step, stop)]
            torch.mm(queries, room[: len(block)].copy_(block).T, out=scores[:, at - start : at - start + len(block)])
        found, place = _best(scores.masked_fill_(~there[start:stop], -torch.inf), min(top, stop - start))
        best, rows = _ordered(torch.cat([best, found], dim=1), torch.cat([rows, place + start], dim=1), top)
    return best, rows


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of (Q, n) and their places; of equal ones at the end the first."""
    found, place = scores.topk(k, dim=1)
    for q, least in enumerate(found[:, -1]) if k else ():
        if int((scores[q] == least).sum()) > int((found[q] == least).sum()):
            at = (scores[q] >= least).nonzero()[:, 0]
            place[q] = at[scores[q, at].argsort(descending=True, stable=True)[:k]]
            found[q] = scores[q, place[q]]
    return found, place


def approximate(index: Index, graph: Any, covered: int, queries: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """As `exact`, with candidates from the graph of the first `covered` rows and a pass over the rows after them.

    Candidates are scored by the vectors as they are kept. Dropped rows are left out; more candidates are asked for until there
    are enough.
    """
    wanted = min(top, int(index.alive[:covered].sum()))
    scores, rows = exact(index.vectors, index.alive, queries, top, first=covered)
    if not wanted:
        return scores, rows
    found = []
    for q, query in enumerate(queries):
        more, at = _candidates(index, graph, covered, query, wanted)
        found.append(_ordered(torch.cat([scores[q], more])[None], torch.cat([rows[q], at])[None], top))
    least = min(best.shape[1] for best, _ in found)
    return torch.cat([best[:, :least] for best, _ in found]), torch.cat([at[:, :least] for _, at in found])


def _candidates(index: Index, graph: Any, covered: int, query: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Scores and rows of at least `wanted` rows that are alive, of as many as the graph finds."""
    asked = 2 * wanted
    while True:
        asked = min(asked, covered)
        keys = np.asarray(graph.search(query.numpy(), asked).keys, dtype=np.int64)
        keys = np.sort(keys[index.alive[keys]])
        if len(keys) >= wanted or asked == covered:
            return torch.from_numpy(np.asarray(index.vectors[keys])).float() @ query, torch.from_numpy(keys)
        asked *= 4


def _ordered(scores: Tensor, rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The best `top` of each row, equal scores by row number."""
    by_row = rows.argsort(dim=1)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
    return scores.gather(1, order), rows.gather(1, order)


# ---------------------------------------------------------------------------------------------------------------- the graph

def load_graph(index: Index) -> tuple[Any, int]:
    """The graph that an index has, mapped from its file, and how many rows it covers: (None, 0) where it has none."""
    about = index.header.get("graph")
    if not about:
        return None, 0
    path = index.path / about["file"]
    if not path.exists() or path.stat().st_size != about["bytes"]:
        raise NotanError(f"{path} is missing or cut off", "the graph that `notan embed --approximate` wrote",
                         f"notan search {index.path} ... --exact, or delete {path.name} and write it again")
    graph = _usearch().restore(str(path), view=True)
    graph.expansion_search = WIDTH
    return graph, int(about["rows"])


def build_graph(path: str | Path, advance: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Bring an index's graph up to date with its rows, and return how many joined it. `advance(done, total)` as it goes on.

    The new file is written beside the old one and takes its place in one step. Raises `NotanError` without usearch, and where
    another process writes to the index.
    """
    make = _usearch()
    header = read_header(Path(path))
    with Writer(path, {key: header[key] for key in ("kind", "model", "dtype", "fit")}) as writer:
        index, about = writer.index, writer.header.get("graph")
        covered = 0 if about is None else int(about["rows"])
        if covered == index.count:
            return 0
        graph = make(ndim=index.dim, metric="cos", dtype="f16", connectivity=LINKS, expansion_add=WIDTH_ADD,
                     expansion_search=WIDTH)
        if about is not None and size_of(index.path / about["file"]) == about["bytes"]:
            graph.load(str(index.path / about["file"]))
        else:
            covered = 0
        for start in range(covered, index.count, AT_ONCE):
            stop = min(start + AT_ONCE, index.count)
            graph.add(np.arange(start, stop), np.asarray(index.vectors[start:stop], dtype=np.float32))
            advance(stop - covered, index.count - covered)
        name = f"graph-{index.count}.usearch"
        part = index.path / f".{name}"
        graph.save(str(part))
        os.replace(part, index.path / name)
        writer.note(graph={"file": name, "rows": index.count, "bytes": (index.path / name).stat().st_size})
        if about is not None and about["file"] != name:
            (index.path / about["file"]).unlink(missing_ok=True)
        return index.count - covered


def _usearch() -> Any:
    try:
        from usearch.index import Index as Graph
    except ImportError:
        raise NotanError("approximate search needs the package usearch, which is not installed", "the extra `search`",
                         "pip install 'notan[search]', or search exactly: --exact") from None
    return Graph
