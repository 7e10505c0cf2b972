"""Text encoders with their tokenizers: CLIP's text tower at any size with fresh weights, or a text model of `transformers`.

Texts of a batch are read in groups of like length, so that short ones do not pay for long ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from notan.errors import NotanError, did_you_mean
from notan.nets.files import load_weights, moved_into
from notan.nets.hub import bare, blocks_of, changed_inside, fingerprint, inside, opened
from notan.nets.insert import Extra, count, inserted, replaced, through
from notan.nets.language import fresh, open_tokenizer, padded, without_bars
from notan.nets.spec import parse
from notan.nets.vit import Block

GROUP = 32                                                              # texts that are read at once
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

    def tokens(self, texts: list[str], room: int = 0) -> tuple[Tensor, Tensor]:
        """Ids int64 and pad bool (True at padding), (B, T): start, `room` places, as much of the text as fits, end."""
        end, start = self.tokenizer.eos_token_id, [self.tokenizer.eos_token_id] * (1 + room)
        most = room_left(self.context, 2 + room)
        found = self.tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=most)["input_ids"]
        return padded([[*start, *row, end] for row in found], self.pos_embed.device)

    def lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text would have if none were cut, start and end among them."""
        return [len(row) + 2 for row in self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    def forward(self, ids: Tensor, pad: Tensor | None = None, extra: Extra = ()) -> Tensor:
        """States (B, T, D) after the last norm; vectors of `extra` stand after the start, where `tokens` left room for them."""
        x = self.token_embedding(ids)
        x = (replaced(x, extra[0], 1) if extra else x) + self.pos_embed[: ids.shape[1]]
        return self.norm(through(self.blocks, x, extra, 1))

    def states(self, ids: Tensor, pad: Tensor, last: Tensor | None = None) -> Tensor:
        """States before the last norm, with vectors `last` (1 or B, K, D) behind each text's end where there are: (B, T + K, D).

        They have no positions. They see the text, and no token of it sees them: padding, which does, comes after both.
        """
        x = self.token_embedding(ids) + self.pos_embed[: ids.shape[1]]
        return through(self.blocks, x if last is None else inserted(x, last, (~pad).sum(1)), (), 0)

    def pool(self, states: Tensor, pad: Tensor) -> Tensor:
        """The state at each text's end: (B, T, D) to (B, D)."""
        last = (~pad).sum(1) - 1
        return states[torch.arange(len(states), device=states.device), last]

    def features(self, texts: list[str], extra: Extra = ()) -> Tensor:  # (B, D)
        return in_groups(lambda ids, pad: self.pool(self(ids, pad, extra), pad), *self.tokens(texts, count(extra)))


class HubText(nn.Module):
    """A text model of `transformers` behind the protocol of text encoders.

    A text is the model's pooled output where it was trained to be one (CLIP's, SigLIP's), else the mean of its tokens' states or,
    with pooling "cls", the state of the first.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, source: str, hash: str = "", pooling: str = "mean") -> None:
        super().__init__()
        self.pooling = pooling
        settings: Any = model.config
        self.model, self.tokenizer, self.dim = model, tokenizer, int(settings.hidden_size)
        most = getattr(settings, "max_position_embeddings", None) or 512
        self.context = min(most, getattr(tokenizer, "model_max_length", most))
        self.pooled = settings.model_type in ("clip_text_model", "siglip_text_model", "siglip2_text_model")
        self.filled = settings.model_type.startswith("siglip")          # trained on texts filled up to the context
        self.config: dict[str, Any] = {"name": "hf-text", "source": source, "hash": hash or fingerprint(model),
                                       "architecture": settings.to_dict(), "pooling": pooling}

    def tokens(self, texts: list[str], room: int = 0) -> tuple[Tensor, Tensor]:
        """Ids and pad (B, T) as the model's tokenizer makes them, with `room` places after the start."""
        most = room_left(self.context, room)
        found = self.tokenizer(list(texts), truncation=True, max_length=most, return_tensors="pt",
                               padding="max_length" if self.filled else True)
        ids = found["input_ids"].to(next(self.parameters()).device)
        mask = None if self.filled else found.get("attention_mask")     # SigLIP's texts see what fills them up
        pad = torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device) == 0
        if room:                                                        # any token but a special one: its vector is not used
            at = int(self.starts)
            ids = torch.cat([ids[:, :at], ids.new_full((len(ids), room), self.filler), ids[:, at:]], dim=1)
            pad = torch.cat([pad.new_zeros(len(pad), room), pad], dim=1)
        return ids, pad

    def lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text would have if none were cut, special ones among them."""
        return [len(row) for row in self.tokenizer(list(texts), verbose=False)["input_ids"]]

    @cached_property
    def starts(self) -> bool:
        """Whether its tokenizer puts a token before the text (SigLIP's does not)."""
        ids = self.tokenizer("a")["input_ids"]
        return len(ids) > 1 and ids[0] in self.tokenizer.all_special_ids

    @cached_property
    def filler(self) -> int:
        """The first token that is none of the special ones."""
        special = {*self.tokenizer.all_special_ids}
        return next(i for i in range(len(self.tokenizer)) if i not in special)

    @property
    def token_embedding(self) -> Any:
        """The table of its tokens' vectors."""
        embeddings: Any = inside(self.model, self.config["source"])[0]
        return getattr(embeddings, "token_embedding", getattr(embeddings, "word_embeddings", None))

    def forward(self, ids: Tensor, pad: Tensor | None = None, extra: Extra = ()) -> Tensor:
        return self._run(ids, pad, extra).last_hidden_state

    def pool(self, states: Tensor, pad: Tensor) -> Tensor:
        """The mean over a text's tokens, or what its first is: (B, T, D) to (B, D)."""
        if self.pooling == "cls":
            return states[:, 0]
        real = ~pad[..., None]
        return (states * real).sum(1) / real.sum(1).clamp(min=1)

    def features(self, texts: list[str], extra: Extra = ()) -> Tensor:
        def read(ids: Tensor, pad: Tensor) -> Tensor:
            out = self._run(ids, pad, extra)
            return out.pooler_output if self.pooled else self.pool(out.last_hidden_state, pad)

        return in_groups(read, *self.tokens(texts, count(extra)))

    def _run(self, ids: Tensor, pad: Tensor | None, extra: Extra) -> Any:
        mask = None if pad is None else (~pad).long()
        if not extra:
            return self.model(input_ids=ids, attention_mask=mask)
        layers, at = blocks_of(self), int(self.starts)
        with changed_inside(self.token_embedding, lambda _module, _inputs, x: replaced(x, extra[0], at), layers, extra, at):
            return self.model(input_ids=ids, attention_mask=mask)


class Cut(NamedTuple):
    """How many of some texts are longer than `context` tokens and lose their ends, and how many tokens the longest has."""

    cut: int
    of: int
    longest: int
    context: int


def cut(encoder: Any, texts: list[str]) -> Cut:
    """How many of these texts the encoder cuts: counts of tokens, what `tokens` adds among them."""
    lengths = encoder.lengths(texts) if texts else []
    return Cut(sum(n > encoder.context for n in lengths), len(lengths), max(lengths, default=0), encoder.context)


def in_groups(read: Callable[[Tensor, Tensor], Tensor], ids: Tensor, pad: Tensor) -> Tensor:
    """`read` of ids and pad (B, T), GROUP rows of like length at a time, each cut to its longest: (B, ...) in the given order."""
    order, found = [], []
    for rows, longest in groups(pad):
        order.append(rows)
        found.append(read(ids[rows, :longest], pad[rows, :longest]))
    return torch.cat(found)[torch.cat(order).argsort()]


def groups(pad: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows of pad (B, T), GROUP of like length at a time, int64 (n,), and how long the longest of them is."""
    lengths = (~pad).sum(1)
    for rows in lengths.argsort(stable=True).split(GROUP):
        yield rows, int(lengths[rows[-1]])


def room_left(context: int, taken: int) -> int:
    """Tokens that a text may have. Raises `NotanError` where none are left."""
    if taken >= context:
        raise NotanError(f"{taken} places of {context} tokens are taken before the text", "room for at least one of its tokens",
                         "fewer prompts, or a text encoder with a longer context")
    return context - taken


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
    return HubText(model, open_tokenizer(source), source=source, pooling=_pooling(source))


def _pooling(source: str) -> str:
    """How the makers of a sentence encoder pool its tokens, as a file beside it says; the mean where there is none.

    Raises `NotanError` for a way that is neither the mean nor the first token.
    """
    from transformers.utils import cached_file

    path = cached_file(source, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False,
                       _raise_exceptions_for_connection_errors=False)
    config = json.loads(Path(path).read_text()) if path else {}
    modes = [name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    modes = modes or [config.get("pooling_mode", "mean")]
    if modes not in (["mean"], ["cls"]):
        raise NotanError(f"{source!r} pools its tokens by {' and '.join(map(str, modes))}", "their mean, or the first of them",
                         "another sentence encoder")
    return str(modes[0])


def load_text(folder: Path) -> TextTransformer | HubText:
    """The text encoder that `save_text` wrote; needs no network."""
    config, tokenizer = json.loads((folder / "config.json").read_text()), open_tokenizer(str(folder))
    encoder: TextTransformer | HubText
    if config["name"] == "text":
        encoder = TextTransformer(tokenizer, **{k: config[k] for k in SIZES})
    else:
        encoder = HubText(bare(config["architecture"]), tokenizer, source=config["source"], hash=config["hash"],
                          pooling=config.get("pooling", "mean"))
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
