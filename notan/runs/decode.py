"""`notan decode`: text from any Hugging Face model of words, or of words and pictures, chosen by a strategy, beside greedy's."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from notan import catalogue
from notan.errors import NotanError, check_between
from notan.runs.checkpoint import whole_lines
from notan.runs.generation import Combined, Emit, Stream, open_stream
from notan.runs.lookahead import Searched
from notan.runs.prompts import Picture, check_adds, check_amateur, contexts_of, given_with, rows_of
from notan.runs.reader import Readers, layers_of, read_with, words_of
from notan.strategies._strategy import Context


def decode(strategy: str | Any, model: str | Path | Any, prompts: str | Sequence[str], *,
           images: Sequence[Picture | None] | None = None, tokenizer: Any = None, amateur: str | Path | Any = None,
           settings: dict[str, Any] | None = None, max_new_tokens: int = 128, sample: bool = False, temperature: float = 1.0,
           top_p: float = 1.0, top_k: int = 0, seed: int = 0, chat: bool | None = None, compile: bool = False,
           emit: Emit | None = None) -> list[str]:
    """What `model` says after each of `prompts` (one batch), by `strategy`: a name with its `settings`, or an object.

    model, amateur: a folder, a hub name, a .gguf file, or a loaded model (then with its `tokenizer`, or the processor of a
    model that sees). The amateur must have the model's vocabulary. images: a picture (a file, or PIL) for each prompt. The
    best token is taken, or with `sample` one is drawn: at `temperature`, among the `top_k` likeliest (0: all) within
    `top_p`; what is drawn, strategies' own choices too, follows from `seed`. chat: through the chat template; None: if there
    is one. compile: a static cache and compiled steps, on a GPU; worth it from some hundred tokens. emit: called with the
    tokens (B,) of every step.

    Raises `NotanError` for an unknown strategy or setting, an empty prompt, a prompt that does not fit, a missing picture
    or one that the model cannot see, a missing amateur, or one with another vocabulary.
    """
    chosen = build(strategy, settings) if isinstance(strategy, str) else strategy
    how = _how(max_new_tokens, sample, temperature, top_p, top_k, compile)
    given = given_with([prompts] if isinstance(prompts, str) else list(prompts), images, seed)
    contexts = contexts_of(chosen, given, amateur is not None)          # what is missing is said before anything is loaded
    return _decoded(chosen, read_with(model, tokenizer, amateur), contexts, chat=chat, emit=emit, seed=seed, how=how)


def _decoded(strategy: Any, readers: Readers, contexts: list[list[Context]], *, chat: bool | None, emit: Emit | None, seed: int,
             how: dict[str, Any]) -> list[str]:
    model, processor = readers["main"]
    main = rows_of(readers["main"], [c[0] for c in contexts], chat, how["max_new_tokens"])
    if hasattr(strategy, "rerank"):
        if "cache_implementation" in how:
            raise NotanError(f"{type(strategy).__name__} with a static cache", "a cache that candidates can be taken out of",
                             "leave --compile out")
        method: Any = Searched(strategy, emit)
    else:
        method = Combined(strategy, _streams(strategy, readers, contexts, chat, how), emit)
        main = {name: main[name] for name in ("input_ids", "attention_mask")}               # the streams read the pictures
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(**main, custom_generate=method, **how)
    return processor.batch_decode(ids[:, main["input_ids"].shape[1]:], skip_special_tokens=True)


def first_scores(strategy: Any, readers: Readers, given: Sequence[Context], chat: bool | None = None) -> torch.Tensor:
    """The strategy's scores (B, V) of the first token after each given context: the whole distribution, nothing drawn.

    Raises `NotanError` as `decode`, and for a strategy that looks ahead.
    """
    check_adds(strategy)
    contexts, how = contexts_of(strategy, given, "amateur" in readers), {"max_new_tokens": 1, "do_sample": False}
    return Combined(strategy, _streams(strategy, readers, contexts, chat, how)).scores(0, readers["main"][0].device)


def _how(max_new_tokens: int, sample: bool, temperature: float, top_p: float, top_k: int, compile: bool) -> dict[str, Any]:
    """`generate`'s settings. Raises `NotanError` for a number out of its range, and compiling without a GPU."""
    if compile and not torch.cuda.is_available():
        raise NotanError("compiled steps were asked for on a machine without a GPU", "CUDA: only there do they pay",
                         "leave --compile out")
    check_between(1, math.inf, max_new_tokens=max_new_tokens)
    check_between(0, math.inf, top_k=top_k)
    check_between(1e-6, math.inf, temperature=temperature)
    check_between(1e-6, 1, top_p=top_p)
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if sample else {}
    static = {"cache_implementation": "static"} if compile else {}      # which `generate` compiles for
    return {"max_new_tokens": max_new_tokens, "do_sample": sample, **drawn, **static}


def greedy(model: Any, tokenizer: Any, prompts: str | Sequence[str], *, images: Sequence[Picture | None] | None = None,
           max_new_tokens: int = 128, chat: bool | None = None, streamer: Any = None) -> list[str]:
    """`transformers`' own greedy decoding of the same prompts: what every strategy is shown beside."""
    given = given_with([prompts] if isinstance(prompts, str) else list(prompts), images, 0)
    rows = rows_of((model, tokenizer), given, chat, max_new_tokens)
    ids = model.generate(**rows, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    return tokenizer.batch_decode(ids[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)


def build(slug: str, settings: dict[str, Any] | None = None) -> Any:
    """The strategy of that name with its settings. Raises `NotanError` for a name or setting that does not exist."""
    entry = catalogue.strategy(slug)
    unknown = (settings or {}).keys() - {f.name for f in entry.flags}
    if unknown:
        raise NotanError(f"{slug} has no setting {min(unknown)!r}", ", ".join(f.name for f in entry.flags))
    return getattr(importlib.import_module(f"notan.strategies.{slug}"), entry.cls)(**(settings or {}))


def decode_and_print(strategy: str, model: str, source: str | Path, *, image: str | None, out: Path, amateur: str | None,
                     settings: dict[str, Any], chat: bool | None, how: dict[str, Any], console: Any) -> int:
    """`notan decode`: one prompt to the screen, token by token, or a file of them to `out`; 1 if a line of it could not be
    read."""
    chosen, seed = build(strategy, settings), how.pop("seed")
    settled = _how(**how)
    if not isinstance(source, Path):
        given = given_with([source], [image], seed)
        contexts = contexts_of(chosen, given, amateur is not None)
        _print_both(chosen, strategy, read_with(model, None, amateur), given[0], contexts, chat, seed, settled, console)
        return 0
    check_amateur(chosen, amateur)
    readers = read_with(model, None, amateur)

    def both(prompt: str, image: Picture | None) -> dict[str, str]:
        contexts = contexts_of(chosen, given_with([prompt], [image], seed), amateur is not None)
        text = _decoded(chosen, readers, contexts, chat=chat, emit=None, seed=seed, how=settled)[0]
        return {strategy: text, "greedy": greedy(*readers["main"], prompt, images=[image], chat=chat,
                                                 max_new_tokens=settled["max_new_tokens"])[0]}

    bad = decode_file(source, out, strategy, both, console)
    console.print(f"answers: {out}" + (f"   {bad} lines could not be read" if bad else ""), soft_wrap=True)
    return int(bad > 0)


def _print_both(chosen: Any, name: str, readers: Readers, given: Context, contexts: list[list[Context]], chat: bool | None,
                seed: int, how: dict[str, Any], console: Any) -> None:
    """The strategy's text and greedy's, on the screen as they come."""
    from transformers import TextStreamer

    model, processor = readers["main"]
    read = contexts[0][0].prompt
    if read != given.prompt:
        console.print(f"read as: {read}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"[bold]{name}[/bold]")
    stream = TextStreamer(words_of(processor), skip_special_tokens=True)
    _decoded(chosen, readers, contexts, chat=chat, emit=lambda tokens: stream.put(tokens.cpu()), seed=seed, how=how)
    stream.end()
    console.print("\n[bold]greedy[/bold]")
    stream = TextStreamer(words_of(processor), skip_prompt=True, skip_special_tokens=True)
    greedy(model, processor, given.prompt, images=[given.image], max_new_tokens=how["max_new_tokens"], chat=chat, streamer=stream)
    console.print()


def decode_file(path: Path, out: Path, name: str, decoded: Callable[[str, Picture | None], dict[str, Any]],
                console: Any = None) -> int:
    """`decoded(prompt, picture) -> {name: text, ...}` for each line {"prompt": ..., "image": file} of a jsonl file,
    appended to `out` as it goes; a picture's path is relative to the jsonl's folder.

    A line that `out` has already is not decoded again; a line that cannot be read is reported by its number and left
    out. Returns how many lines could not be read. Raises `NotanError` for an `out` that holds something else.
    """
    from rich.progress import track

    out.parent.mkdir(parents=True, exist_ok=True)
    done, bad = _answered(out, name), 0
    with out.open("a") as file:
        for number, line in enumerate(track(path.read_text().splitlines(), "decoding", console=console), start=1):
            if number in done or not line.strip():
                continue
            try:
                row = _row(line)
                image = None if row.get("image") is None else path.parent / row["image"]
                found = decoded(row["prompt"], image)
            except NotanError as error:
                bad += 1
                if console is not None:
                    console.print(f"{path}, line {number}: {error}", style="yellow", markup=False, soft_wrap=True)
                continue
            file.write(json.dumps({"line": number, **row, **found}) + "\n")
            file.flush()
    return bad


def _row(line: str) -> dict[str, Any]:
    """Prompt and perhaps picture of one line of a jsonl file."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise NotanError(f"no JSON ({error})", '{"prompt": "..."}') from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        seen = f"the keys {', '.join(map(repr, row))}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise NotanError(f"{seen}, and no text as 'prompt'", '{"prompt": "..."}')
    if not isinstance(row.get("image", ""), (str, type(None))):
        raise NotanError(f"{row['image']!r} as 'image'", "the path of a picture")
    return {name: row[name] for name in ("prompt", "image") if name in row}


def _answered(out: Path, name: str) -> set[int]:
    """The line numbers that `out` has; a last line that was cut off in the writing is taken out of it."""
    try:
        rows = [json.loads(line) for line in whole_lines(out)]
        if all(name in row for row in rows):
            return {row["line"] for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise NotanError(f"{out} holds other lines than answers of {name}", "an --out of its own for each strategy",
                     "choose another --out, or remove the file")


def _streams(strategy: Any, readers: Readers, contexts: list[list[Context]], chat: bool | None,
             how: dict[str, Any]) -> list[tuple[Stream, list[int]]]:
    """One stream for each model, with the places of its contexts: contexts x prompts are rows of one batch."""
    streams = []
    for name, reader in readers.items():
        places = [i for i, c in enumerate(contexts[0]) if c.model == name]
        if places:
            rows = rows_of(reader, [c[i] for i in places for c in contexts], chat, how["max_new_tokens"])
            streams.append((open_stream(reader[0], rows, *layers_of(strategy, reader[0]), **how), places))
    return streams
