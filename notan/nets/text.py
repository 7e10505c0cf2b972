"""Text encoders with their tokenizers: CLIP's text tower at any size with fresh weights, or a text model of `transformers`.

Texts of a batch are read in groups of like length, so that short ones do not pay for long ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from notan.errors import NotanError, did_you_mean
from notan.nets.files import load_weights, moved_into
from notan.nets.hub import bare, fingerprint, opened
from notan.nets.language import fresh, open_tokenizer, padded, without_bars
from notan.nets.spec import parse
from notan.nets.vit import Block

GROUP = 64                                                              # texts that are read at once
NAMES = ("text", "hf-text")                                             # of what is saved here, in config.json
SIZES = {"dim": 128, "depth": 4, "heads": 4, "context": 32}


class TextTransformer(nn.Module):
    """The text tower of CLIP (Radford et al. 2021, section 2.4): causal blocks, and what a text is at its end token.

    tokenizer: of `transformers`; its end token is put before and after each text. context: most tokens, these two among them.
    Exact GELU, and CLIP's initialisation. Nothing sees padding, which comes last.
    """

    def __init__(self, tokenizer: Any, *, dim: int = 128, depth: int = 4, heads: int = 4, context: int = 32) -> None:
        super().__init__()
        if context < 3:
            raise NotanError(f"a context of {context} tokens", "at least 3: the start, a word, the end", "context=32")
        self.tokenizer, self.dim, self.context = tokenizer, dim, context
        self.config: dict[str, Any] = {"name": "text", "dim": dim, "depth": depth, "heads": heads, "context": context,
                                       "vocabulary": len(tokenizer)}
        self.token_embedding = nn.Embedding(len(tokenizer), dim)
        self.pos_embed = nn.Parameter(torch.empty(context, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, causal=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._init(dim, depth)

    def _init(self, dim: int, depth: int) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        inner = dim**-0.5 * (2 * depth) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear, std in ((block.attn.qkv, dim**-0.5), (block.attn.proj, inner), (block.mlp.fc1, (2 * dim) ** -0.5),
                                (block.mlp.fc2, inner)):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 and pad bool (True at padding), (B, T): start, at most context - 2 tokens of the text, end."""
        end = self.tokenizer.eos_token_id
        found = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=self.context - 2)["input_ids"]
        return padded([[end, *row, end] for row in found], self.pos_embed.device)

    def lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text would have if none were cut, start and end among them."""
        return [len(row) + 2 for row in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def forward(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        """States (B, T, D) after the last norm."""
        x = self.token_embedding(ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pool(self, states: Tensor, pad: Tensor) -> Tensor:
        """The state at each text's end: (B, T, D) to (B, D)."""
        last = (~pad).sum(1) - 1
        return states[torch.arange(len(states), device=states.device), last]

    def features(self, texts: list[str]) -> Tensor:                     # (B, D)
        return in_groups(lambda ids, pad: self.pool(self(ids, pad), pad), *self.tokens(texts))


class HubText(nn.Module):
    """A text model of `transformers` behind the protocol of text encoders.

    A text is the model's pooled output where it was trained to be one (CLIP's, SigLIP's), else the mean of its tokens' states.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, source: str, hash: str = "") -> None:
        super().__init__()
        settings: Any = model.config
        self.model, self.tokenizer, self.dim = model, tokenizer, int(settings.hidden_size)
        most = getattr(settings, "max_position_embeddings", None) or 512
        self.context = min(most, getattr(tokenizer, "model_max_length", most))
        self.pooled = settings.model_type in ("clip_text_model", "siglip_text_model", "siglip2_text_model")
        self.filled = settings.model_type.startswith("siglip")          # trained on texts filled up to the context
        self.config: dict[str, Any] = {"name": "hf-text", "source": source, "hash": hash or fingerprint(model),
                                       "architecture": settings.to_dict()}

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(list(texts), truncation=True, max_length=self.context, return_tensors="pt",
                               padding="max_length" if self.filled else True)
        ids = found["input_ids"].to(next(self.parameters()).device)
        mask = found.get("attention_mask")
        return ids, torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device) == 0

    def lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text would have if none were cut, special ones among them."""
        return [len(row) for row in self.tokenizer(list(texts), verbose=False)["input_ids"]]

    def forward(self, ids: Tensor, pad: Tensor | None = None) -> Tensor:
        return self._run(ids, pad).last_hidden_state

    def pool(self, states: Tensor, pad: Tensor) -> Tensor:
        """The mean over a text's tokens: (B, T, D) to (B, D)."""
        real = ~pad[..., None]
        return (states * real).sum(1) / real.sum(1).clamp(min=1)

    def features(self, texts: list[str]) -> Tensor:
        def read(ids: Tensor, pad: Tensor) -> Tensor:
            out = self._run(ids, pad)
            return out.pooler_output if self.pooled else self.pool(out.last_hidden_state, pad)

        return in_groups(read, *self.tokens(texts))

    def _run(self, ids: Tensor, pad: Tensor | None) -> Any:
        return self.model(input_ids=ids, attention_mask=None if pad is None else (~pad).long())


class Cut(NamedTuple):
    """How many of some texts are longer than `context` tokens and lose their ends, and how many tokens the longest has."""

    cut: int
    of: int
    longest: int
    context: int


def cut(encoder: TextTransformer | HubText, texts: list[str]) -> Cut:
    """How many of these texts the encoder cuts: counts of tokens, what `tokens` adds among them."""
    lengths = encoder.lengths(texts) if texts else []
    return Cut(sum(n > encoder.context for n in lengths), len(lengths), max(lengths, default=0), encoder.context)


def in_groups(read: Callable[[Tensor, Tensor], Tensor], ids: Tensor, pad: Tensor) -> Tensor:
    """`read` of ids and pad (B, T), GROUP rows of like length at a time, each cut to its longest: (B, ...) in the given order."""
    lengths = (~pad).sum(1)
    order = lengths.argsort(stable=True)
    found = []
    for rows in order.split(GROUP):
        longest = int(lengths[rows[-1]])
        found.append(read(ids[rows, :longest], pad[rows, :longest]))
    return torch.cat(found)[order.argsort()]


# ---------------------------------------------------------------------------------------------------------- to build one

def build_text(spec: str | dict[str, Any]) -> TextTransformer | HubText:
    """A text encoder: "text:dim=128,depth=4,heads=4,context=32,tokenizer=FOLDER" with fresh weights, "hf:NAME|FOLDER" with
    those of a text model of `transformers`, or a folder with one of ours; or the same as a dict with "name".

    Raises `NotanError` for unknown names and options, a missing tokenizer, and what cannot be loaded.
    """
    if isinstance(spec, str) and spec.startswith("hf:"):
        return from_hub(spec[3:])
    if isinstance(spec, str) and Path(spec).is_dir():
        return load_text(Path(spec)) if _is_ours(Path(spec)) else from_hub(spec)
    name, options = parse(spec)
    if name == "hf":
        return from_hub(options["source"])
    if name != "text":
        raise NotanError(f"there is no text encoder {name!r}", "text (fresh weights), hf:<name>, or a folder",
                         did_you_mean(name, ["text"]) or "text")
    return TextTransformer(**fresh("text", options, SIZES))


def from_hub(source: str) -> HubText:
    """The text model `source`, a name on the hub or a folder, with its weights and its tokenizer; of CLIP the text tower."""
    with without_bars():
        model = opened(source, dtype=torch.float32)
    model = getattr(model, "text_model", model)
    if getattr(model, "main_input_name", "input_ids") != "input_ids" or not hasattr(model.config, "vocab_size"):
        raise NotanError(f"{source!r} is a {type(model).__name__}, which reads no text", "a text model")
    return HubText(model, open_tokenizer(source), source=source)


def load_text(folder: Path) -> TextTransformer | HubText:
    """The text encoder that `save_text` wrote; needs no network."""
    config, tokenizer = json.loads((folder / "config.json").read_text()), open_tokenizer(str(folder))
    encoder: TextTransformer | HubText
    if config["name"] == "text":
        encoder = TextTransformer(tokenizer, **{k: config[k] for k in SIZES})
    else:
        encoder = HubText(bare(config["architecture"]), tokenizer, source=config["source"], hash=config["hash"])
    load_weights(encoder, folder / "model.safetensors")
    return encoder.eval()


def save_text(encoder: Any, folder: Path) -> None:
    """Write config, weights and tokenizer; each file appears whole or not at all, config.json last."""
    from safetensors.torch import save_file

    with moved_into(folder) as place:
        encoder.tokenizer.save_pretrained(place)
        weights = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
        save_file(weights, place / "model.safetensors", {"format": "pt"})
        (place / "config.json").write_text(json.dumps(encoder.config, indent=1) + "\n")


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / "config.json").read_text()).get("name") in NAMES
    except (OSError, ValueError):
        return False
