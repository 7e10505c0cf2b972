"""`notan decode`: text from any Hugging Face language model, chosen by a strategy, beside what greedy decoding gives."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from notan import catalogue
from notan.errors import NotanError
from notan.runs.checkpoint import write_text
from notan.runs.generation import Combined, Emit, Stream, open_stream
from notan.runs.lookahead import Searched
from notan.runs.machine import choose_precision
from notan.strategies._strategy import Context


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
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    model, tokenizer = load(model, tokenizer)
    helper = load(amateur, tokenizer if not isinstance(amateur, (str, Path)) else None) if amateur is not None else None
    if helper is not None:
        _check_vocabularies(tokenizer, helper[1])
    if isinstance(strategy, str):
        _check_amateur(strategy, helper)
    how = {"max_new_tokens": max_new_tokens, "do_sample": sample,
           **({"temperature": temperature, "top_p": top_p, "top_k": top_k} if sample else {})}
    contexts = _contexts(chosen, texts, helper is not None)             # of each prompt, the main one first
    main = _rows(tokenizer, [c[0] for c in contexts], chat, model, max_new_tokens)
    if hasattr(chosen, "rerank"):
        method: Any = Searched(chosen, emit)
    else:
        readers = {"main": (model, tokenizer), **({"amateur": helper} if helper else {})}
        streams = _streams(readers, contexts, chat, how)
        for stream, _ in streams:
            stream.layers, stream.normed = layers_of(chosen, stream.model), getattr(chosen, "norm", False)
        method = Combined(chosen, streams, emit)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = model.generate(**main, custom_generate=method, **how)
    return tokenizer.batch_decode(ids[:, main["input_ids"].shape[1]:], skip_special_tokens=True)


def greedy(model: Any, tokenizer: Any, prompts: str | Sequence[str], *, max_new_tokens: int = 128,
           chat: bool | None = None) -> list[str]:
    """`transformers`' own greedy decoding of the same prompts: what every strategy is shown beside."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = _rows(tokenizer, [Context(text) for text in texts], chat, model, max_new_tokens)
    ids = model.generate(**rows, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(ids[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)


def build(slug: str, settings: dict[str, Any] | None = None) -> Any:
    """The strategy of that name with its settings. Raises `NotanError` for a name or setting that does not exist."""
    entry = catalogue.strategy(slug)
    unknown = (settings or {}).keys() - {f.name for f in entry.flags}
    if unknown:
        raise NotanError(f"{slug} has no setting {min(unknown)!r}", ", ".join(f.name for f in entry.flags))
    return getattr(importlib.import_module(f"notan.strategies.{slug}"), entry.cls)(**(settings or {}))


def layers_of(strategy: Any, model: Any) -> tuple[int, ...]:
    """The layers of this model that the strategy asks for, none for most."""
    config = model.config.get_text_config()
    return strategy.layers(config.num_hidden_layers, config.tie_word_embeddings) if hasattr(strategy, "layers") else ()


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
    except (OSError, ValueError) as error:
        raise NotanError(f"{model} is no language model that can be read: {str(error).splitlines()[0]}",
                         "a folder or hub name with a causal language model, or a .gguf file", "check the name") from None
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval(), _padded(tokenizer)


def decode_and_print(strategy: str, model: str, source: str | Path, *, out: Path | None, amateur: str | None,
                     settings: dict[str, Any], chat: bool | None, how: dict[str, Any], console: Any) -> int:
    """`notan decode`: one prompt to the screen, or a file of them to `out`; 1 if a line of it could not be read."""
    chosen = build(strategy, settings)
    main, tokenizer = load(model)
    helper = load(amateur) if amateur else None
    if helper is not None:
        _check_vocabularies(tokenizer, helper[1])
    _check_amateur(strategy, helper)

    def both(prompt: str) -> dict[str, Any]:
        text = decode(chosen, main, prompt, tokenizer=tokenizer, amateur=helper[0] if helper else None, chat=chat, **how)[0]
        return {strategy: text, "greedy": greedy(main, tokenizer, prompt, max_new_tokens=how["max_new_tokens"], chat=chat)[0]}

    if isinstance(source, Path):
        bad = decode_file(source, out or source.with_suffix(".out.jsonl"), both, console)
        console.print(f"answers: {out}" + (f"   {bad} lines could not be read" if bad else ""), soft_wrap=True)
        return int(bad > 0)
    for name, text in both(source).items():
        console.print(f"[bold]{name}[/bold]")
        console.print(text.strip() + "\n", markup=False, highlight=False, soft_wrap=True)
    return 0


def decode_file(path: Path, out: Path, decoded: Callable[[str], dict[str, Any]], console: Any = None) -> int:
    """`decoded(prompt) -> dict` for each line {"prompt": ...} of a jsonl file, appended to `out` as it goes.

    A line that `out` has already is not decoded again; a line that cannot be read is reported by its number and left
    out. Returns how many lines could not be read.
    """
    from rich.progress import track

    out.parent.mkdir(parents=True, exist_ok=True)
    done, bad = _answered(out), 0
    lines = path.read_text().splitlines()
    with out.open("a") as file:
        for number, line in enumerate(track(lines, "decoding", console=console), start=1):
            if number in done or not line.strip():
                continue
            try:
                prompt = json.loads(line)["prompt"]
                found = decoded(prompt)
            except (json.JSONDecodeError, KeyError, TypeError, NotanError) as error:
                bad += 1
                if console is not None:
                    said = f"{path}, line {number}: {type(error).__name__}: {error}"
                    console.print(said, style="yellow", markup=False, soft_wrap=True)
                continue
            file.write(json.dumps({"line": number, "prompt": prompt, **found}) + "\n")
            file.flush()
    return bad


def _answered(out: Path) -> set[int]:
    """The line numbers that `out` has; a last line that was cut off in the writing is taken out of it."""
    lines = out.read_text().splitlines(keepends=True) if out.exists() else []
    if lines and not lines[-1].endswith("\n"):
        write_text(out, "".join(lines[:-1]))
        lines = lines[:-1]
    return {json.loads(line)["line"] for line in lines}


def _contexts(strategy: Any, prompts: list[str], amateur: bool) -> list[list[Context]]:
    if not prompts or any(not text.strip() for text in prompts):
        raise NotanError("a prompt is empty", "some text to go on from", "--prompt TEXT")
    mains = [strategy.main(Context(text)) if hasattr(strategy, "main") else Context(text) for text in prompts]
    if not hasattr(strategy, "contexts"):                               # it looks ahead instead
        return [[main] for main in mains]
    return [[main, *strategy.contexts(main, amateur)] for main in mains]


def _streams(readers: dict[str, tuple[Any, Any]], contexts: list[list[Context]], chat: bool | None,
             how: dict[str, Any]) -> list[tuple[Stream, list[int]]]:
    """One stream for each model, with the places of its contexts: contexts x prompts are rows of one batch."""
    streams = []
    for name, (model, tokenizer) in readers.items():
        places = [i for i, c in enumerate(contexts[0]) if c.model == name]
        rows = [c[i] for i in places for c in contexts]
        if rows:
            streams.append((open_stream(model, _rows(tokenizer, rows, chat, model, how["max_new_tokens"]), **how), places))
    if (missing := {c.model for c in contexts[0]} - readers.keys()):
        raise NotanError(f"this strategy reads with a model {min(missing)!r}, and none was given", "--amateur NAME")
    return streams


def _rows(tokenizer: Any, contexts: list[Context], chat: bool | None, model: Any, new: int) -> dict[str, Tensor]:
    """Left-padded `input_ids` and `attention_mask` (R, L) on the model's device."""
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


def _check_amateur(strategy: str, helper: Any) -> None:
    if "amateur" in catalogue.strategy(strategy).card["needs"] and helper is None:
        raise NotanError(f"{strategy} sets the model against an amateur, and none was given",
                         "a smaller or weaker model with the same vocabulary", "--amateur NAME")


def _check_vocabularies(main: Any, amateur: Any) -> None:
    ours, theirs = main.get_vocab(), amateur.get_vocab()
    if ours != theirs:
        differ = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))
        raise NotanError(f"the amateur's vocabulary of {len(theirs):,} tokens is not the model's of {len(ours):,} "
                         f"(they differ at {differ[0]!r})", "the same tokens with the same numbers", "a model of one family")

