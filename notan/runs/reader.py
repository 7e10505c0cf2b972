"""What a strategy reads with: models by name, folder or file, each with its tokenizer or processor."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from notan.errors import NotanError
from notan.nets.language import explained, located
from notan.runs.machine import choose_precision

Reader = tuple[Any, Any]                                                # a model, and its tokenizer or processor
Readers = dict[str, Reader]                                             # "main" and perhaps "amateur"


def read_with(model: str | Path | Any, tokenizer: Any, amateur: str | Path | Any) -> Readers:
    """The models with their processors, by the name that contexts give them. An amateur that is a loaded model takes the
    main one's processor. Raises `NotanError` for one with another vocabulary.
    """
    readers = {"main": load(model, tokenizer)}
    if amateur is not None:
        readers["amateur"] = load(amateur, None if isinstance(amateur, (str, Path)) else readers["main"][1])
        _check_vocabularies(words_of(readers["main"][1]), words_of(readers["amateur"][1]))
    return readers


def load(model: str | Path | Any, tokenizer: Any = None) -> Reader:
    """(model in eval mode, tokenizer or processor that pads on the left), from a folder or a run, a hub name or a .gguf file.

    A causal language model comes with its tokenizer, an image-text-to-text model with its processor, a LoRA adapter (of
    `peft`) on its base and with the base's. No remote code is run. Raises `NotanError` for what is not there or is none of
    these.
    """
    if not isinstance(model, (str, Path)):
        if tokenizer is None:
            raise NotanError("a loaded model was given without its tokenizer", "both", "decode(..., tokenizer=tokenizer)")
        return model.eval(), _padded(tokenizer)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEES

    path, file = located(model)
    base = _base(path)
    dtype: Any = "auto" if choose_precision("auto") == "bf16" else torch.float32    # half precision crawls on other CPUs
    with explained(model, "a causal or an image-text-to-text model, or a .gguf file"):
        sees = not file and AutoConfig.from_pretrained(base).model_type in SEES
        loaded = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(path, dtype=dtype, **file)
        tokenizer = (AutoProcessor if sees else AutoTokenizer).from_pretrained(base, **file)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval(), _padded(tokenizer)


def _base(path: str) -> str:
    """What an adapter is put on; the path itself for everything else. Raises `NotanError` for an adapter without `peft`."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        adapter = find_adapter_config_file(path)
    except (OSError, ValueError):
        return path                                                     # there is nothing of that name: said when it is opened
    if adapter is None:
        return path
    if importlib.util.find_spec("peft") is None:
        raise NotanError(f"{path} is a LoRA adapter, and peft is not installed", "the extra that reads it",
                         "pip install 'notan[lora]'")
    return json.loads(Path(adapter).read_text())["base_model_name_or_path"]


def words_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def layers_of(strategy: Any, model: Any) -> tuple[tuple[int, ...], bool]:
    """The layers of this model that the strategy asks for, none for most, and whether it wants them normed."""
    if not hasattr(strategy, "layers"):
        return (), False
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight      # not every config says so
    return strategy.layers(model.config.get_text_config().num_hidden_layers, tied), getattr(strategy, "norm", False)


def _padded(processor: Any) -> Any:
    tokenizer = words_of(processor)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _check_vocabularies(main: Any, amateur: Any) -> None:
    ours, theirs = main.get_vocab(), amateur.get_vocab()
    if ours != theirs:
        differ = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))
        raise NotanError(f"the amateur's vocabulary of {len(theirs):,} tokens is not the model's of {len(ours):,} "
                         f"(they differ at {differ[0]!r})", "the same tokens with the same numbers", "a model of one family")
