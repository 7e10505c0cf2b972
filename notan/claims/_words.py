"""Small language models with a token for a word, trained from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.runs import optim

PAD, END = "<pad>", "<end>"
BATCH = 32                                                              # rows of a step


def words_tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of `transformers` with one token for every word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: k for k, w in enumerate((PAD, END, *words))}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left")


def language_model(words: int, layers: int, width: int) -> Any:
    """A Llama whose weights are drawn so wide, 1 / sqrt(width), that facts are learned in minutes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=43 * width // 16, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=32, tie_word_embeddings=False, initializer_range=width**-0.5,
        pad_token_id=0, eos_token_id=1, bos_token_id=None))


def rows(tokenizer: Any, texts: Sequence[str], starts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Words (N, L), padded at the end, and which of them the loss counts: from the first of `starts` on, itself only if it is
    no question mark."""
    found = [tokenizer(t)["input_ids"] for t in texts]
    ids = torch.full((len(found), max(map(len, found))), tokenizer.pad_token_id)
    for row, words in zip(ids, found):
        row[: len(words)] = torch.tensor(words)
    begun = torch.isin(ids, torch.tensor(tokenizer.convert_tokens_to_ids(list(starts))))
    counted = begun.cumsum(1) - (ids == tokenizer.convert_tokens_to_ids("?")).int() > 0
    return ids, counted & (ids != tokenizer.pad_token_id)


def fit_words(model: Any, data: tuple[Tensor, Tensor], *, steps: int, lr: float, seed: int) -> Any:
    """Train a language model on rows of words, epoch after epoch in orders of the seed; the embeddings learn five times
    as fast. AdamW without decay, gradients of length 1 at most."""
    ids, counted = data
    embedding = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p is not embedding]
    groups = [{"params": others, "scale": 1.0}, {"params": [embedding], "scale": 5.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    order = torch.empty(0, dtype=torch.long)
    draws = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(ids), generator=draws)
        index, order = order[:BATCH], order[BATCH:]
        optim.set_rate(optimiser, lr * optim.rate(step, steps, 0.03))
        x, wanted = ids[index], counted[index, 1:]
        z = model(input_ids=x, use_cache=False).logits[:, :-1]          # what is padded is at the end, so never seen
        loss = F.cross_entropy(z[wanted], x[:, 1:][wanted])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model.eval()
