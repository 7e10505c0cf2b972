"""Causal language models with their tokenizers: of a small size with fresh weights, or any of `transformers` as it is.

A folder that `save_language` writes is one of `transformers`: AutoModelForCausalLM and AutoTokenizer open it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from notan.errors import NotanError, did_you_mean
from notan.nets.files import moved_into
from notan.nets.hub import fingerprint
from notan.nets.lora import merged
from notan.nets.spec import parse

END = "<|endoftext|>"                                                   # ends and pads: GPT-2's one special token
CHUNK = 32                                                              # texts that `features` reads at a time


class CausalLM(nn.Module):
    """A `LanguageModel` around a model and a tokenizer of `transformers`.

    config: what `build_language` rebuilds it from; of a pretrained model its source, and the hash of its weights.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, config: dict[str, Any]) -> None:
        super().__init__()
        settings: Any = model.config.get_text_config()                  # type: ignore[union-attr, operator]
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.dim: int = settings.hidden_size
        self.context: int = getattr(settings, "max_position_embeddings", None) or 2**20

    def tokens(self, texts: list[str], most: int | None = None) -> tuple[Tensor, Tensor]:
        """At most `most` tokens of each text, what is beyond is cut off: ids int64 and pad bool, (B, T), T at least 2."""
        most = min(most or self.context, self.context)
        return self.padded(self.tokenizer(list(texts), truncation=True, max_length=most)["input_ids"])

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Rows of token numbers as ids int64 and pad bool, (B, T), on the model's device."""
        return padded(rows, next(self.parameters()).device)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) of the next token, and the states (B, T, D) that the head made them of.

        The mask hides nothing: nothing that counts comes after padding, and so the fast causal kernels run.
        """
        states: list[Tensor] = []
        with _at_head(self.model, states.append):
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits, states[0]

    def states(self, ids: Tensor) -> Tensor:
        """The states alone (B, T, D): the pass ends where the head would begin, which for many tokens is most of it."""
        return read_by_head(self.model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    def features(self, texts: list[str]) -> Tensor:
        return torch.cat([self._means(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)])

    def _means(self, texts: list[str]) -> Tensor:
        ids, pad = self.tokens(texts)
        h, real = self.states(ids), ~pad[..., None]                     # (B, T, D), (B, T, 1)
        return (h * real).sum(1) / real.sum(1).clamp(min=1)             # an empty text is at 0


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token numbers as ids int64 and pad bool, (B, T), T at least 2.

    A row's last token stands for its padding: one that is called padding may be a real token as well.
    """
    length = max([2, *map(len, rows)])
    ids = torch.tensor([row + (row or [0])[-1:] * (length - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(length, device=device) >= lengths[:, None]


def read_by_head(model: Any, **inputs: Any) -> Tensor:
    """The states (B, T, D) that the head of a language model would read; the pass ends there."""
    def stop(states: Tensor) -> None:
        raise _Reached(states)

    try:
        with _at_head(model, stop):
            model(**inputs)
    except _Reached as reached:
        return reached.states
    raise NotanError(f"the head of {type(model).__name__} is not part of its forward pass", "a causal language model")


class _Reached(Exception):
    """The head was reached, with these states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@contextmanager
def _at_head(model: Any, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """`seen` gets what the head reads in each forward pass; `hidden_states[-1]` is before the last norm in some models."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: seen(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


# ---------------------------------------------------------------------------------------------------------- to build one

def build_language(spec: str | dict[str, Any]) -> CausalLM:
    """A language model: "gpt2:dim=128,depth=2,heads=4,tokenizer=FOLDER" with fresh weights, or "hf:NAME|FOLDER|FILE.gguf",
    or a folder (a run, or one that `transformers` wrote), with its weights; or the same as a dict with "name".

    Raises `NotanError` for unknown names and options, a missing tokenizer, and what cannot be loaded.
    """
    if isinstance(spec, str) and (spec.startswith("hf:") or Path(spec).is_dir()):
        return pretrained(spec.removeprefix("hf:"))
    name, options = parse(spec)
    if name == "hf":
        return pretrained(options["source"])
    if name != "gpt2":
        raise NotanError(f"there is no language model {name!r}", "gpt2 (fresh weights), hf:<name>, or a folder",
                         did_you_mean(name, ["gpt2"]) or "--encoder gpt2")
    return gpt2(**fresh("gpt2", options, {"dim": 128, "depth": 2, "heads": 4, "context": 256, "dropout": 0.0}))


def fresh(name: str, options: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What a model of a small size is made with: `tokenizer`, and the options laid over the `known` ones.

    Raises `NotanError` for a missing tokenizer and an option that is not known.
    """
    if "tokenizer" not in options:
        raise NotanError(f"{name} was built without a tokenizer", "a run, which makes one from its texts, or one that is there",
                         f"{name}:tokenizer=FOLDER or a hub name")
    options = {k: v for k, v in options.items() if k != "vocabulary"}   # the tokenizer has as many tokens as it has
    tokenizer = open_tokenizer(str(options.pop("tokenizer")))
    for option in options:
        if option not in known:
            raise NotanError(f"{name} has no option {option!r}", ", ".join([*known, "vocabulary", "tokenizer"]),
                             did_you_mean(option, known))
    return {"tokenizer": tokenizer, **known, **options}


def gpt2(tokenizer: Any, *, dim: int, depth: int, heads: int, context: int, dropout: float = 0.0) -> CausalLM:
    """GPT-2's architecture (Radford et al. 2019) at any size, with weights from torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    if dim % heads:
        raise NotanError(f"gpt2 of dim {dim} with {heads} heads", "a dim that the heads divide", f"heads={max(1, dim // 32)}")
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=dim, n_layer=depth, n_head=heads, n_positions=context, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, activation_function="gelu_pytorch_tanh", **ends))      # gelu_new, as one kernel
    config = {"name": "gpt2", "dim": dim, "depth": depth, "heads": heads, "context": context, "dropout": dropout,
              "vocabulary": len(tokenizer)}
    return CausalLM(model, tokenizer, config)


def located(source: str | Path) -> tuple[str, dict[str, str]]:
    """What `transformers` calls a hub name, a folder (its `model/` where it is a run's) or a .gguf file: the path, and the
    keyword that names the file in it."""
    path = str(inner if ((inner := Path(source) / "model") / "config.json").exists() else source)
    return (str(Path(path).parent), {"gguf_file": Path(path).name}) if path.endswith(".gguf") else (path, {})


@contextmanager
def explained(source: str | Path, kinds: str) -> Iterator[None]:
    """What `transformers` raises on opening a language model, as a `NotanError` that says what may stand there: `kinds`."""
    try:
        yield
    except ImportError as error:
        extra = "gguf" if str(source).endswith(".gguf") else "seeing" if "image-text" in kinds else ""
        raise NotanError(f"{source} needs a package that is not installed: {' '.join(str(error).split())}", "what brings it",
                         f"pip install 'notan[{extra}]'" if extra else "install it") from None
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise NotanError(f"{source} is no language model that can be read: {str(error).strip().splitlines()[0]}",
                         f"a folder or hub name with {kinds}", "check the name") from None


def pretrained(source: str) -> CausalLM:
    """The model and the tokenizer of what `located` finds, in float32."""
    from transformers import AutoModelForCausalLM

    model: Any
    path, file = located(source)
    with explained(source, "a causal language model, or a .gguf file"), without_bars():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **file)
    if file:                                                            # read from it, and plain float32 since
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
    config = {"name": "hf", "source": source, "hash": fingerprint(model)}
    return CausalLM(model.train(), open_tokenizer(path, **file), config)


def open_tokenizer(source: str, **file: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, **file)
    except (OSError, ValueError, KeyError) as error:
        raise NotanError(f"there is no tokenizer in {source}: {str(error).strip().splitlines()[0]}",
                         "a folder or hub name with one", "check the name") from None


def new_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) of at most `vocabulary` tokens, made from these texts.

    Any text can be written with it, and the same texts always make the same one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = 1 + 256
    if vocabulary < least:
        raise NotanError(f"a vocabulary of {vocabulary} tokens", f"at least {least}: every byte, and the end",
                         "vocabulary=2000")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END, model_max_length=context)


# ---------------------------------------------------------------------------------------------------- to keep and to open

def save_language(language: Any, folder: Path) -> None:
    """Write model and tokenizer as `transformers` reads them; each file appears whole or not at all, config.json last.

    What was added to the weights (LoRA) is added up: the folder holds a plain model.
    """
    with moved_into(folder) as place:
        with without_bars():
            language.model.save_pretrained(place, state_dict=merged(language.model))
        language.tokenizer.save_pretrained(place)


@contextmanager
def without_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
