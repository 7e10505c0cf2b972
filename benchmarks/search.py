"""What a search costs: seconds to build an index, milliseconds of a query, recall and memory, at 100,000 and 1,000,000 rows.

    python benchmarks/search.py          (--sizes 100000 for the smaller one alone; a million takes about six minutes)

Vectors of 128 numbers, kept as float16: Fashion-MNIST's pictures through an untrained convolutional network, centred, and beyond
70,000 rows again with noise of half their spread in each direction, so that they lie in clusters as real ones do. Queries are
rows of the index with such noise, one at a time, one thread. Exact search and its peers take turns on each query: "floor" is
one product of a float32 copy of all vectors with the query and the 10 largest of it, FAISS's flat index the same on its own copy
(left out where it is not installed). The graph (usearch) is asked through the same function as in `notan search`; its recall is
the share of the exact 10 that it finds. Memory is what the process holds beyond its beginning after all queries, without the
vectors' file that the system maps and may take back; the mapped part is given beside it. Written to
benchmarks/results/search.json after each size; this machine's sizes that are there are not measured again, but with --fresh.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from steps import describe
from torch import Tensor

from notan.data import open_data
from notan.nets.build import build_encoder
from notan.probes.features import extract
from notan.runs import nearest
from notan.runs.index import Index, Writer
from notan.runs.indexing import PART
from notan.views.geometry import floats

OUT = Path(__file__).parent / "results" / "search.json"
DIM, TOP, NOISE = 128, 10, 0.5
SIZES = (100_000, 1_000_000)
QUERIES = {100_000: 400, 1_000_000: 120}
ABOUT = {"kind": "picture", "model": {"name": "untrained convnet", "fingerprint": "-", "vector": None}, "dtype": "float16",
         "fit": "crop"}


def pictures() -> Tensor:
    """Centred features float32 (70000, DIM) of real pictures."""
    data = open_data("fashion-mnist")
    torch.manual_seed(0)
    encoder = build_encoder(f"convnet:image_size=28,channels=1,widths=[32,64,{DIM}],strides=[2,2,2]").eval()
    x = torch.cat([extract(lambda batch: encoder.features(floats(batch["image"])), rows) for rows in (data.train, data.test)])
    return x - x.mean(0)


def rows_of(x: Tensor, first: int, last: int) -> Tensor:
    """Unit vectors of rows first to last: the pictures, then the pictures again with noise."""
    at = torch.arange(first, last)
    noise = torch.randn(last - first, DIM, generator=torch.Generator().manual_seed(first)) * x.std(0) * NOISE
    return F.normalize(x[at % len(x)] + noise * (at >= len(x))[:, None], dim=1)


def queries_of(x: Tensor, n: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(len(x), (QUERIES[n],), generator=g)
    return F.normalize(x[rows] + torch.randn(len(rows), DIM, generator=g) * x.std(0) * NOISE, dim=1)


def write(path: Path, x: Tensor, n: int) -> float:
    """Seconds to write an index of n rows in parts."""
    start = time.perf_counter()
    with Writer(path, ABOUT) as writer:
        for first in range(0, n, PART):
            last = min(first + PART, n)
            items = [{"name": f"train row {i}", "stamp": "0123456789abcdef", "source": "made"} for i in range(first, last)]
            writer.append(rows_of(x, first, last).numpy(), range(first, last), items)
    return time.perf_counter() - start


def held() -> dict[str, float]:
    """MB of this process: its own, and of files that are mapped."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def spent(times: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms_median": round(middle * 1e3, 3), "quartiles": [round(low * 1e3, 3), round(high * 1e3, 3)],
            "ms_p99": round(statistics.quantiles(times, n=100)[98] * 1e3, 3), "queries": len(times)}


def in_process(out: multiprocessing.Queue, what: Callable[..., dict], *args: Any) -> None:
    torch.set_num_threads(1)
    out.put(what(*args))


def alone(what: Callable[..., dict], *args: Any) -> dict:
    """The answer of a function that has a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    box = spawn.Queue()
    child = spawn.Process(target=in_process, args=(box, what, *args))
    child.start()
    while True:
        try:
            found = box.get(timeout=5)
            break
        except Exception:
            if not child.is_alive():
                raise SystemExit(f"{what.__name__} died") from None
    child.join()
    return found


def build(path: Path) -> dict:
    start = time.perf_counter()
    nearest.build_graph(path)
    return {"seconds": round(time.perf_counter() - start, 1)}


def ask_exact(path: Path, queries: Tensor) -> dict:
    """Exact search alone, for its memory."""
    before, index = held(), Index(path)
    opened, times, found = held(), [], []
    for q in queries:
        start = time.perf_counter()
        _, rows = nearest.exact(index.vectors, index.alive, q[None], TOP)
        times.append(time.perf_counter() - start)
        found.append(rows[0].tolist())
    after = held()
    return {**spent(times), "mb_held": round(after["RssAnon"] - before["RssAnon"], 1),
            "mb_mapped": round(after["RssFile"] - before["RssFile"], 1),
            "mb_after_opening": round(opened["RssAnon"] - before["RssAnon"], 1), "found": found}


def ask_graph(path: Path, queries: Tensor) -> dict:
    before, start = held(), time.perf_counter()
    index = Index(path)
    graph, covered = nearest.load_graph(index)
    opening, times, found = time.perf_counter() - start, [], []
    for q in queries:
        start = time.perf_counter()
        _, rows = nearest.approximate(index, graph, covered, q[None], TOP)
        times.append(time.perf_counter() - start)
        found.append(rows[0].tolist())
    after = held()
    return {**spent(times), "seconds_to_open": round(opening, 3), "mb_held": round(after["RssAnon"] - before["RssAnon"], 1),
            "mb_mapped": round(after["RssFile"] - before["RssFile"], 1), "found": found}


def in_turns(path: Path, queries: Tensor) -> dict:
    """Exact search beside the floor and FAISS, query by query: medians and quartiles of the ratios."""
    index = Index(path)
    every = torch.from_numpy(np.asarray(index.vectors)).float()
    todo: dict[str, Callable[[Tensor], Any]] = {
        "floor": lambda q: (every @ q).topk(TOP),
        "notan: exact": lambda q: nearest.exact(index.vectors, index.alive, q[None], TOP)}
    if importlib.util.find_spec("faiss") is not None:
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(DIM)
        flat.add(every.numpy())
        todo["faiss: IndexFlatIP"] = lambda q: flat.search(q[None].numpy(), TOP)
    times: dict[str, list[float]] = {name: [] for name in todo}
    for i, q in enumerate(queries):
        for name in [*todo][i % len(todo) :] + [*todo][: i % len(todo)]:
            start = time.perf_counter()
            todo[name](q)
            times[name].append(time.perf_counter() - start)
    rows = []
    for name, own in times.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(own, times["floor"])], n=4)
        rows.append({"what": name, **spent(own), "of_floor": round(middle, 2),
                     "of_floor_quartiles": [round(low, 2), round(high, 2)]})
    return {"rows": rows}


def measure(n: int, x: Tensor, folder: Path) -> dict[str, Any]:
    path, queries = folder / f"index-{n}", queries_of(x, n)
    found: dict[str, Any] = {"n": n, "seconds_to_write": round(write(path, x, n), 1)}
    found["mb_on_disk"] = {p.name: round(p.stat().st_size / 2**20, 1) for p in sorted(path.glob("*.bin"))}
    exact = alone(ask_exact, path, queries)
    found["in_turns"] = alone(in_turns, path, queries)["rows"]
    found["graph_seconds_to_build"] = alone(build, path)["seconds"]
    graph = alone(ask_graph, path, queries)
    right = [len(set(a) & set(b)) / TOP for a, b in zip(exact.pop("found"), graph.pop("found"))]
    graph |= {"recall_at_10": round(statistics.mean(right), 4), "queries_below_9_of_10": sum(r < 0.9 for r in right),
              "mb_on_disk": round(next(path.glob("*.usearch")).stat().st_size / 2**20, 1)}
    return found | {"exact": exact, "approximate": graph}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--fresh", action="store_true", help="measure every size again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = {"machine": {**describe(), "usearch": version("usearch")}, "dim": DIM, "dtype": "float16", "threads": 1, "top": TOP,
             "graph": {"links": nearest.LINKS, "candidates_added": nearest.WIDTH_ADD, "candidates_searched": nearest.WIDTH}}
    before = {} if args.fresh or not OUT.exists() else json.loads(OUT.read_text())
    rows = before.get("rows", []) if {k: before.get(k) for k in about} == about else []
    x = None
    for n in args.sizes:
        if any(row["n"] == n for row in rows):
            continue
        x = pictures() if x is None else x
        with tempfile.TemporaryDirectory() as folder:
            rows = sorted([*rows, measure(n, x, Path(folder))], key=lambda row: row["n"])
        OUT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    for row in rows:
        exact, graph = row["exact"], row["approximate"]
        print(f"{row['n']:9,d} rows: written in {row['seconds_to_write']} s; exact {exact['ms_median']} ms (p99 "
              f"{exact['ms_p99']}), {exact['mb_held']:.0f} MB + {exact['mb_mapped']:.0f} MB mapped; graph built in "
              f"{row['graph_seconds_to_build']} s, {graph['ms_median']} ms (p99 {graph['ms_p99']}), recall@10 "
              f"{graph['recall_at_10']}")
        print("          " + "; ".join(f"{r['what']} {r['ms_median']} ms, {r['of_floor']} x floor" for r in row["in_turns"]))


if __name__ == "__main__":
    main()
