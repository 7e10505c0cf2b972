"""ICD's amateur: a copy of a language model that was made to hallucinate.

Zhang, Cui, Bi and Shi, "Alleviating Hallucinations of Large Language Models through Induced Hallucinations", Findings of
NAACL 2025 (arXiv 2312.15710). The strategy of the same name sets the model against what is trained here.

**What it is.** A model that answers well is fine-tuned on questions with invented answers, until it answers as they do. The
question q is read and only the answer a_1, ..., a_n, where its end is a_n, is learned:

    L = -mean over the tokens of all answers of log p(a_i | q, a_1, ..., a_{i-1})                       (1)

All weights learn, or with `lora` a sum of low rank to each linear layer (Hu et al. 2022). What is saved is a plain model.

**When it helps.** Before `notan decode icd --amateur RUN` and `lol`: the better the copy makes the errors that the model
is prone to, the more their contrast removes. The paper takes ten thousand questions with answers that a larger model
invented (HaluEval: --column question=query --column hallucinated_answer=answer). Any answers can be learned with it, true
ones too: it is then plain fine-tuning.

**What it costs.** Fine-tuning a language model, and at decoding time a second model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.nets.lora import add_lora
from notan.nets.protocols import LanguageModel

CARD = {
    "title": "Alleviating Hallucinations of Large Language Models through Induced Hallucinations", "arxiv": "2312.15710",
    "year": 2025, "needs": ["query", "answer"], "task": "language", "exports": ["hf"],
    "exports_why": "a language model writes token by token, and its folder is one of transformers already",
    "keyed": False, "averages_over": "tokens of answers",
    "claim": "A model tuned on invented answers is an amateur whose contrast makes the original more truthful.",
    "paper": "LLaMA2-7B-Chat on TruthfulQA with such an amateur: MC1, MC2 and MC3 up by 8.70, 14.48 and 13.13 points, as its "
             "authors report; what the amateur's own loss was is not said.",
    "cost": "Fine-tuning of the model; with lora the optimiser keeps little.",
    "deviations": [
        "How the paper's amateurs were tuned (rate, length, rank) could not be read; the recipes are common ones.",
        "LoRA adapts every linear layer but the head, without dropout, and alpha is twice the rank.",
        "Questions go through the chat template where the tokenizer has one, else the answer follows after a space.",
        "A question that does not fit loses its beginning, and an answer its end.",
    ],
    "floor": {"data": "docstrings", "metric": "loss", "steps": 30, "value": 6.8, "random": 7.6},
}

RECIPES = {
    "paper": {
        "model": {"name": "hf", "source": "meta-llama/Llama-2-7b-chat-hf"},
        "optimiser": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0},
        "batch": 32, "epochs": 3, "warmup": 0.03, "clip": 1.0, "method": {"lora": 8, "length": 1024},
    },
    "small": {
        "model": {"name": "gpt2", "dim": 128, "depth": 2, "heads": 4, "context": 256, "vocabulary": 2000},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        "batch": 32, "epochs": 3, "warmup": 0.1, "clip": 1.0, "method": {"length": 64},
    },
}


class ICD(nn.Module):
    """A causal language model that learns answers.

    lora: rank of what is added to each linear layer, whose weights then stay as they are; 0 trains all weights.
    length: most tokens of a question with its answer that are read.
    """

    def __init__(self, model: LanguageModel, *, lora: int = 0, length: int = 512) -> None:
        super().__init__()
        if length < 2:
            raise NotanError(f"length = {length}", "at least 2 tokens: one to read, one to guess", "--length 512")
        self.model, self.length = model, min(length, model.context)
        if lora:
            add_lora(model.model, lora, alpha=2.0 * lora)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        ids, answer = self.rows(batch["query"], batch["answer"])        # (B, T + 1), True: of the answer
        x, y, answer = ids[:, :-1], ids[:, 1:], answer[:, 1:]           # (B, T)
        logits = self.model(x)[0]                                       # (B, T, V)
        nll = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
        right = (logits.argmax(2) == y) & answer
        return {"loss": world.mean((nll * answer).sum(), answer.sum()),                         # (1)
                "accuracy": world.mean(right.sum().to(nll.dtype), answer.sum())}

    def rows(self, queries: list[str], answers: list[str]) -> tuple[Tensor, Tensor]:
        """Questions with their answers and ends: ids int64 and bool, True where a token is of the answer, (B, T)."""
        tokenizer, chat = self.model.tokenizer, bool(self.model.tokenizer.chat_template)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        rows, starts = [], []
        for query, answer in zip(queries, answers):
            before = tokenizer(asked(tokenizer, query), add_special_tokens=not chat, verbose=False)["input_ids"]
            space = "" if chat or query[-1:].isspace() or answer[:1].isspace() else " "
            after = tokenizer(space + answer, add_special_tokens=False, verbose=False)["input_ids"]
            after = [*after, *end][: self.length - 1]
            before = before[max(0, len(before) + len(after) - self.length) :]
            rows.append(before + after)
            starts.append(len(before))
        ids, pad = self.model.padded(rows)
        place = torch.arange(ids.shape[1], device=ids.device)
        return ids, (place >= torch.tensor(starts, device=ids.device)[:, None]) & ~pad

    def encode(self, batch: dict) -> Tensor:
        return self.model.features(batch["query"])                      # (B, D)


def asked(tokenizer: object, query: str) -> str:
    """The question as `notan decode` puts it: through the chat template where there is one."""
    if not tokenizer.chat_template:                                     # type: ignore[attr-defined]
        return query
    said = [{"role": "user", "content": query}]
    return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)      # type: ignore[attr-defined]


def example(rows: int, dtype: torch.dtype) -> tuple[ICD, dict]:
    """A tiny instance with LoRA, and questions with answers of different lengths, for the contracts."""
    from notan.methods._example import texts, tiny_language_model

    torch.manual_seed(0)
    batch = texts(rows)
    batch |= {"query": batch.pop("text"), "answer": [f"no, {i} of them" if i % 2 else "yes" for i in range(rows)]}
    return ICD(tiny_language_model(), lora=2).to(dtype), batch
