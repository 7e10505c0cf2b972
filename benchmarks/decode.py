"""What decoding by contrast costs: seconds for the same tokens, as ratios to plain greedy `generate` in the same run.

    python benchmarks/decode.py

A Llama of 30 M random weights reads 256 tokens and writes 32, one prompt, one thread, fp32. "two contexts" adds a second
context of the same length: as rows of one pass, or as two passes. Contrastive search tries k = 5 tokens: as tokens of one
row, or with the cache repeated five times and one of five kept, which is what the public implementation for `transformers`
does. All take their turn in an order that rotates; medians and quartiles of the ratios within a turn, and the peak of
memory that each adds to what the process had before it. Written to benchmarks/results/decode.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from steps import describe
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from notan.runs import machine
from notan.runs.generation import Combined, open_stream
from notan.runs.lookahead import Searched
from notan.strategies.contrastive_decoding import ContrastiveDecoding
from notan.strategies.contrastive_search import ContrastiveSearch

OUT = Path(__file__).parent / "results" / "decode.json"
READ, WRITE, K = 256, 32, 5


def contestants(model: LlamaForCausalLM) -> dict[str, Callable[[], Tensor]]:
    ids = torch.randint(3, model.config.vocab_size, (1, READ), generator=torch.Generator().manual_seed(0))
    other = ids.flip(1)
    how = {"max_new_tokens": WRITE, "eos_token_id": None, "do_sample": False}

    def inputs(ids: Tensor) -> dict[str, Tensor]:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def combined(c: float, *groups: tuple[Tensor, list[int]]) -> Tensor:
        streams = [(open_stream(model, inputs(rows), **how), places) for rows, places in groups]
        return model.generate(**inputs(ids), custom_generate=Combined(ContrastiveDecoding(c=c), streams), **how)

    class Alone(ContrastiveDecoding):
        def weights(self, t: int) -> tuple[float, ...]:
            return (1.0,)

    def alone() -> Tensor:
        streams = [(open_stream(model, inputs(ids), **how), [0])]
        return model.generate(**inputs(ids), custom_generate=Combined(Alone(), streams), **how)

    def searched(one_row: bool) -> Tensor:
        return model.generate(**inputs(ids), custom_generate=Searched(ContrastiveSearch(k=K), one_row=one_row), **how)

    return {
        "generate": lambda: model.generate(**inputs(ids), **how),
        "our loop, one context": alone,
        "two contexts, one pass": lambda: combined(0.5, (torch.cat([ids, other]), [0, 1])),
        "two contexts, two passes": lambda: combined(0.5, (ids, [0]), (other, [1])),
        "contrastive search, one row": lambda: searched(True),
        "contrastive search, cache repeated": lambda: searched(False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
                         num_key_value_heads=8, max_position_embeddings=1024)
    model = LlamaForCausalLM(config).eval()
    todo = contestants(model)
    times: dict[str, list[float]] = {name: [] for name in todo}
    peaks: dict[str, float] = {}
    for name, run in todo.items():                                      # once before it counts
        gc.collect()
        machine.reset_peak()
        before = machine.peak_mb()
        run()
        peaks[name] = machine.peak_mb() - before
    names = list(todo)
    for turn in range(turns):
        for name in names[turn % len(names):] + names[: turn % len(names)]:
            start = time.perf_counter()
            todo[name]()
            times[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        low, middle, high = statistics.quantiles([t / g for t, g in zip(times[name], times["generate"])], n=4)
        rows.append({"what": name, "seconds": round(statistics.median(times[name]), 3), "of_generate": round(middle, 2),
                     "quartiles": [round(low, 2), round(high, 2)], "peak_mb_added": round(peaks[name])})
        print(f"{name:36s} {rows[-1]['seconds']:7.3f} s   {middle:5.2f} x generate ({low:.2f} to {high:.2f})   "
              f"+{peaks[name]:.0f} MB", flush=True)
    faster = statistics.median(r / o for r, o in zip(times[names[-1]], times[names[-2]]))
    print(f"contrastive search, one row: {faster:.2f} x as fast as with the cache repeated")
    OUT.write_text(json.dumps({"machine": describe(), "turns": turns, "parameters": sum(p.numel() for p in model.parameters()),
                               "one_row_is_faster_by": round(faster, 2), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
