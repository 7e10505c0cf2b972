"""`notan search`: what in an index is nearest to words, to a picture, or to one of its own rows."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from notan.data.cache import quiet
from notan.data.pictures import Form, decode, thumbnail, why
from notan.errors import NotanError
from notan.runs.index import Index, same_model
from notan.runs.indexing import THUMB
from notan.runs.nearest import approximate, exact, load_graph
from notan.runs.space import Space, heard, model_of, open_space

EXACT_UP_TO = 500_000                                                   # rows: beyond, a graph is used where there is one
How = Literal["exact", "approximate"]


class Hit(NamedTuple):
    """One result: `score` is the cosine, `row` its number in the index; `path`, `text` and `label` "" where it has none."""

    rank: int
    score: float
    row: int
    name: str
    path: str
    text: str
    label: str
    source: str


class Found(NamedTuple):
    """Results, the best first; notes say what a user should know; how: "exact" or "approximate", among `rows` rows."""

    hits: list[Hit]
    notes: list[str]
    how: str
    rows: int
    seconds: float


def search(index: str | Path, query: str | None = None, *, picture: Any = None, like: int | None = None, top: int = 10,
           how: How | None = None, model: str | Path | nn.Module | None = None) -> Found:
    """The `top` rows of an index nearest to a query in words, a picture (a file, bytes, or uint8 (C, H, W)), or the row `like`.

    how: "exact" or "approximate"; where None exact, but above 500,000 rows approximate if the index has a graph. model: where the
    index's model is, if it has moved. Raises `NotanError` for none or several of the three, a query that the index's model cannot
    read, a model that is not the index's, and a damaged index. To ask often, keep a `Searcher`.
    """
    _check_asked(query, picture, like)
    return Searcher(index, model).ask(query, picture, like, top, how)


class Searcher:
    """An index and the model that made it, ready for queries from any thread. The model is loaded when it is first needed."""

    def __init__(self, index: str | Path | Index, model: str | Path | nn.Module | None = None) -> None:
        self.index = index if isinstance(index, Index) else Index(index)
        self._model, self._lock = model, threading.Lock()

    @cached_property
    def space(self) -> Space:
        """The model. Raises `NotanError` where it is not there any more, or is another."""
        own = self.index.header["model"]
        source = self._model if self._model is not None else own["name"]
        if isinstance(source, str) and not source.startswith("hf:") and not Path(source).exists():
            raise NotanError(f"the model of {self.index.path} is not at {source}", "its weights, "
                             f"{own['fingerprint']}", "say where it is: --model RUN")
        vector, instruction = own["vector"], own.get("instruction")     # an index of before there were any has none
        found = open_space(source, vector, instruction)
        same_model(self.index.path, own, model_of(found, vector, instruction))
        return found

    @cached_property
    def graph(self) -> tuple[Any, int]:
        return load_graph(self.index)

    def ask(self, query: str | None, picture: Any, like: int | None, top: int, how: How | None) -> Found:
        """Rows nearest to the one of the three that is not None."""
        if query is not None:
            return self.words(query, top, how)
        return self.picture(picture, top, how) if picture is not None else self.like(int(like or 0), top, how)

    def words(self, text: str, top: int = 10, how: How | None = None) -> Found:
        """Rows nearest to a text."""
        _check_top(top)
        if not text.strip():
            raise NotanError("the query is empty", "words", 'notan search INDEX "a red bicycle"')
        with self._lock:
            space = self.space
            if space.texts is None:
                raise NotanError(f"{space.name} reads {space.reads}, and was asked for words",
                                 "a model with one space for pictures and texts",
                                 "--picture FILE, or embed with a run of clip or siglip, or of another method of both")
            notes = heard(space, text)
            query = space.texts([text])
        return self._found(query, top, how, notes)

    def picture(self, source: Any, top: int = 10, how: How | None = None) -> Found:
        """Rows nearest to a picture: a file, bytes, or uint8 (C, H, W)."""
        _check_top(top)
        with self._lock:
            space = self.space
            if space.pictures is None:
                raise NotanError(f"{space.name} reads {space.reads}, and was asked for a picture", "a model that reads pictures",
                                 'notan search INDEX "words", or embed with another model')
            try:
                with quiet():
                    pixels = decode(source, Form(space.side, space.channels, self.index.header["fit"]))
            except NotanError:
                raise
            except Exception as error:
                name = source if isinstance(source, (str, Path)) else "the picture"
                raise NotanError(f"{name} cannot be read ({why(error)})", "a picture", "check the path") from None
            query = space.pictures(torch.from_numpy(pixels)[None])
        return self._found(query, top, how, [])

    def like(self, row: int, top: int = 10, how: How | None = None) -> Found:
        """Rows nearest to a row of the index, without itself."""
        if not 0 <= row < self.index.count or not self.index.alive[row]:
            raise NotanError(f"{self.index.path} has no row {row}", f"a row that is there, 0 to {self.index.count - 1}",
                             "take one that a search has shown")
        _check_top(top)
        query = torch.from_numpy(self.index.vectors[row : row + 1].astype("float32"))
        found = self._found(query, top + 1, how, [])
        others = [hit for hit in found.hits if hit.row != row][:top]
        return found._replace(hits=[hit._replace(rank=i) for i, hit in enumerate(others, start=1)])

    def _found(self, query: Tensor, top: int, how: How | None, notes: list[str]) -> Found:
        _check_top(top)
        start, index = time.perf_counter(), self.index
        if index.count and query.shape[1] != index.dim:
            raise NotanError(f"the model gives {query.shape[1]} numbers and {index.path} has {index.dim}", "vectors of one model")
        if how is None:
            how = "approximate" if len(index) > EXACT_UP_TO and index.header.get("graph") else "exact"
        if how == "approximate":
            graph, covered = self.graph
            if graph is None:
                raise NotanError(f"{index.path} has no graph for approximate search", "one that was built beforehand",
                                 f"notan search {index.path} ... --exact, or build it: notan embed ... --approximate")
            scores, rows = approximate(index, graph, covered, query, top)
        else:
            scores, rows = exact(index.vectors, index.alive, query, top)
        seconds = time.perf_counter() - start
        if instruction := index.header["model"].get("instruction"):
            notes = [*notes, f"pictures are seen under the instruction {instruction!r}"]
        pairs = zip(scores[0].tolist(), rows[0].tolist())
        hits = [self.hit(row, score, rank) for rank, (score, row) in enumerate(pairs, start=1)]
        return Found(hits, notes, how, len(index), seconds)

    def hit(self, row: int, score: float = 0.0, rank: int = 0) -> Hit:
        item = self.index.item(row)
        return Hit(rank, score, row, item["name"], item.get("path", ""), item.get("text", ""), item.get("class", ""),
                   item["source"])


def _check_asked(query: str | None, picture: Any, like: int | None) -> None:
    if sum(x is not None for x in (query, picture, like)) != 1:
        raise NotanError("a search needs one thing to look for", "words, a picture, or a row of the index",
                         'notan search INDEX "a red bicycle" | --picture FILE | --like ROW')


def _check_top(top: int) -> None:
    if top < 1:
        raise NotanError(f"--top {top}", "at least 1", "--top 10")


def search_and_print(index: Path, query: str | None, *, picture: Path | None, like: int | None, top: int, how: How | None,
                     model: str | None, as_json: bool, page: Path | None, console: Any) -> None:
    """Results as a table, with thumbnails where the terminal has colours, as JSON, and as a page."""
    from notan.runs import results

    _check_asked(query, picture, like)
    searcher = Searcher(index, model)
    found = searcher.ask(query, picture, like, top, how)
    asked = query if query is not None else picture.name if picture is not None else f"row {like}"
    if as_json:
        print(results.as_json(asked, found))
    else:
        results.print_table(searcher.index, asked, found, console)
    if page is not None:
        jpeg = thumbnail(picture, THUMB) if picture is not None else searcher.index.thumb(like) if like is not None else b""
        results.write_results(page, searcher.index, asked, found, jpeg)
        if not as_json:
            console.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)
