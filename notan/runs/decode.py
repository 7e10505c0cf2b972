"""`notan decode`: text from any Hugging Face language model, chosen by a strategy, beside what greedy decoding gives."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from notan import catalogue
from notan.errors import NotanError
from notan.runs.checkpoint import write_text
from notan.runs.generation import Combined, Emit, Stream, open_stream
from notan.runs.lookahead import Searched
from notan.runs.machine import choose_precision
from notan.strategies._strategy import Context, check_between

Readers = dict[str, tuple[Any, Any]]                                    # "main" and perhaps "amateur": model, tokenizer


def decode(strategy: str | Any, model: str | Path | Any, prompts: str | Sequence[str], *, tokenizer: Any = None,
           amateur: str | Path | Any = None, settings: dict[str, Any] | None = None, max_new_tokens: int = 128,
           sample: bool = False, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
           chat: bool | None = None, emit: Emit | None = None) -> list[str]:
    """What `model` says after each of `prompts` (one batch), by `strategy`: a name with its `settings`, or an object.

    model, amateur: a folder, a hub name, a .gguf file, or a loaded model (then with its `tokenizer`). The amateur must
    have the model's vocabulary. The best token is taken, or with `sample` one is drawn: at `temperature`, among the
    `top_k` likeliest (0: all) within `top_p`, from a generator seeded with `seed`. chat: through the tokenizer's chat
    template; None: if it has one. emit: called with the tokens (B,) of every step.

    Raises `NotanError` for an unknown strategy or setting, an empty prompt, a prompt that does not fit, a missing
    amateur, or one with another vocabulary.
    """
    chosen = build(strategy, settings) if isinstance(strategy, str) else strategy
    readers = read_with(chosen, model, tokenizer, amateur)
    return _decoded(chosen, readers, [prompts] if isinstance(prompts, str) else list(prompts), chat=chat, emit=emit, seed=seed,
                    how=_how(max_new_tokens, sample, temperature, top_p, top_k))


def _decoded(strategy: Any, readers: Readers, texts: list[str], *, chat: bool | None, emit: Emit | None, seed: int,
             how: dict[str, Any]) -> list[str]:
    model, tokenizer = readers["main"]
    contexts = contexts_of(strategy, texts, "amateur" in readers)
    main = rows_of(readers["main"], [c[0] for c in contexts], chat, how["max_new_tokens"])
    if hasattr(strategy, "rerank"):
        method: Any = Searched(strategy, emit)
    else:
        method = Combined(strategy, _streams(strategy, readers, contexts, chat, how), emit)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(**main, custom_generate=method, **how)
    return tokenizer.batch_decode(ids[:, main["input_ids"].shape[1]:], skip_special_tokens=True)


def _how(max_new_tokens: int, sample: bool, temperature: float, top_p: float, top_k: int) -> dict[str, Any]:
    """`generate`'s settings. Raises `NotanError` for a number out of its range."""
    check_between(1, math.inf, max_new_tokens=max_new_tokens)
    check_between(0, math.inf, top_k=top_k)
    check_between(1e-6, math.inf, temperature=temperature)
    check_between(1e-6, 1, top_p=top_p)
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if sample else {}
    return {"max_new_tokens": max_new_tokens, "do_sample": sample, **drawn}


def greedy(model: Any, tokenizer: Any, prompts: str | Sequence[str], *, max_new_tokens: int = 128,
           chat: bool | None = None) -> list[str]:
    """`transformers`' own greedy decoding of the same prompts: what every strategy is shown beside."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = rows_of((model, tokenizer), [Context(text) for text in texts], chat, max_new_tokens)
    ids = model.generate(**rows, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(ids[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)


def build(slug: str, settings: dict[str, Any] | None = None) -> Any:
    """The strategy of that name with its settings. Raises `NotanError` for a name or setting that does not exist."""
    entry = catalogue.strategy(slug)
    unknown = (settings or {}).keys() - {f.name for f in entry.flags}
    if unknown:
        raise NotanError(f"{slug} has no setting {min(unknown)!r}", ", ".join(f.name for f in entry.flags))
    return getattr(importlib.import_module(f"notan.strategies.{slug}"), entry.cls)(**(settings or {}))


def layers_of(strategy: Any, model: Any) -> tuple[tuple[int, ...], bool]:
    """The layers of this model that the strategy asks for, none for most, and whether it wants them normed."""
    config = model.config.get_text_config()
    layers = strategy.layers(config.num_hidden_layers, config.tie_word_embeddings) if hasattr(strategy, "layers") else ()
    return layers, getattr(strategy, "norm", False)


def read_with(strategy: Any, model: str | Path | Any, tokenizer: Any, amateur: str | Path | Any) -> Readers:
    """The models that the strategy reads with, each with its tokenizer, by the name its contexts give them.

    Raises `NotanError` for a missing amateur, before anything is loaded, and for one with another vocabulary.
    """
    check_amateur(strategy, amateur)
    readers = {"main": load(model, tokenizer)}
    if amateur is not None:
        readers["amateur"] = load(amateur, None if isinstance(amateur, (str, Path)) else readers["main"][1])
        _check_vocabularies(readers["main"][1], readers["amateur"][1])
    return readers


def check_amateur(strategy: Any, amateur: Any) -> None:
    """Raises `NotanError` when a context of the strategy is an amateur's and there is none."""
    if amateur is None and any(c.model == "amateur" for c in contexts_of(strategy, ["a prompt"], False)[0]):
        raise NotanError(f"{type(strategy).__name__} sets the model against an amateur, and none was given",
                         "a smaller or weaker model with the same vocabulary", "--amateur NAME")


def load(model: str | Path | Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """(causal language model in eval mode, tokenizer that pads on the left), from a folder, a hub name or a .gguf file.

    No remote code is run. Raises `NotanError` for what is not there or is no causal language model.
    """
    if not isinstance(model, (str, Path)):
        if tokenizer is None:
            raise NotanError("a loaded model was given without its tokenizer", "both", "decode(..., tokenizer=tokenizer)")
        return model.eval(), _padded(tokenizer)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, file = str(model), {}
    if path.endswith(".gguf"):
        path, file = str(Path(path).parent), {"gguf_file": Path(path).name}
    dtype: Any = "auto" if choose_precision("auto") == "bf16" else torch.float32    # half precision crawls on other CPUs
    try:
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **file)
        tokenizer = AutoTokenizer.from_pretrained(path, **file)
    except ImportError as error:
        raise NotanError(f"{model} needs a package that is not installed: {error}", "the extra that brings it",
                         "pip install 'notan[gguf]'") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise NotanError(f"{model} is no language model that can be read: {str(error).splitlines()[0]}",
                         "a folder or hub name with a causal language model, or a .gguf file", "check the name") from None
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval(), _padded(tokenizer)


def decode_and_print(strategy: str, model: str, source: str | Path, *, out: Path, amateur: str | None,
                     settings: dict[str, Any], chat: bool | None, how: dict[str, Any], console: Any) -> int:
    """`notan decode`: one prompt to the screen, or a file of them to `out`; 1 if a line of it could not be read."""
    chosen, seed = build(strategy, settings), how.pop("seed")
    settled = _how(**how)
    readers = read_with(chosen, model, None, amateur)

    def both(prompt: str) -> dict[str, Any]:
        text = _decoded(chosen, readers, [prompt], chat=chat, emit=None, seed=seed, how=settled)[0]
        return {strategy: text, "greedy": greedy(*readers["main"], prompt, max_new_tokens=how["max_new_tokens"], chat=chat)[0]}

    if isinstance(source, Path):
        bad = decode_file(source, out, strategy, both, console)
        console.print(f"answers: {out}" + (f"   {bad} lines could not be read" if bad else ""), soft_wrap=True)
        return int(bad > 0)
    for name, text in both(source).items():
        console.print(f"[bold]{name}[/bold]")
        console.print(text.strip() + "\n", markup=False, highlight=False, soft_wrap=True)
    return 0


def decode_file(path: Path, out: Path, name: str, decoded: Callable[[str], dict[str, Any]], console: Any = None) -> int:
    """`decoded(prompt) -> {name: text, ...}` for each line {"prompt": ...} of a jsonl file, appended to `out` as it goes.

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
                prompt = _prompt(line)
                found = decoded(prompt)
            except NotanError as error:
                bad += 1
                if console is not None:
                    console.print(f"{path}, line {number}: {error}", style="yellow", markup=False, soft_wrap=True)
                continue
            file.write(json.dumps({"line": number, "prompt": prompt, **found}) + "\n")
            file.flush()
    return bad


def _prompt(line: str) -> str:
    """The prompt of one line of a jsonl file."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise NotanError(f"no JSON ({error})", '{"prompt": "..."}') from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        seen = f"the keys {', '.join(map(repr, row))}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise NotanError(f"{seen}, and no text as 'prompt'", '{"prompt": "..."}')
    return row["prompt"]


def _answered(out: Path, name: str) -> set[int]:
    """The line numbers that `out` has; a last line that was cut off in the writing is taken out of it."""
    lines = out.read_text().splitlines(keepends=True) if out.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
        write_text(out, "".join(lines))
    try:
        rows = [json.loads(line) for line in lines]
        if all(name in row for row in rows):
            return {row["line"] for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError):
        pass
    raise NotanError(f"{out} holds other lines than answers of {name}", "an --out of its own for each strategy",
                     "choose another --out, or remove the file")


def contexts_of(strategy: Any, prompts: list[str], amateur: bool) -> list[list[Context]]:
    """The contexts of each prompt, the main one first. Raises `NotanError` for an empty prompt."""
    if not prompts or any(not text.strip() for text in prompts):
        raise NotanError("a prompt is empty", "some text to go on from", "--prompt TEXT")
    mains = [strategy.main(Context(text)) if hasattr(strategy, "main") else Context(text) for text in prompts]
    if not hasattr(strategy, "contexts"):                               # it looks ahead instead
        return [[main] for main in mains]
    return [[main, *strategy.contexts(main, amateur)] for main in mains]


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


def rows_of(reader: tuple[Any, Any], contexts: list[Context], chat: bool | None, new: int) -> dict[str, Tensor]:
    """Left-padded `input_ids` and `attention_mask` (R, L) on the model's device, with room for `new` tokens more."""
    model, tokenizer = reader
    chat = bool(tokenizer.chat_template) if chat is None else chat
    if chat:
        said = [[*([{"role": "system", "content": c.system}] if c.system else []), {"role": "user", "content": c.prompt}]
                for c in contexts]
        texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in said]
    else:
        texts = [f"{c.system}\n{c.prompt}" if c.system else c.prompt for c in contexts]
    rows = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not chat)
    longest, room = rows["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
    if room and longest + new > room:
        raise NotanError(f"a prompt of {longest} tokens and {new} new ones", f"at most {room} together, the model's context",
                         f"--max-new-tokens {max(1, room - longest)}, or a shorter prompt")
    return {name: rows[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _padded(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_vocabularies(main: Any, amateur: Any) -> None:
    ours, theirs = main.get_vocab(), amateur.get_vocab()
    if ours != theirs:
        differ = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))
        raise NotanError(f"the amateur's vocabulary of {len(theirs):,} tokens is not the model's of {len(ours):,} "
                         f"(they differ at {differ[0]!r})", "the same tokens with the same numbers", "a model of one family")

