"""A tiny language model without transformers, for the inspectors' `example`s."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.nets.gate import PairGate


class Letters(nn.Module):
    """Reads letters: an embedding and two layers that add the mean of what came before."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))

    def states(self, batch: dict) -> tuple[list[Tensor], Tensor]:
        texts = batch["text"]
        codes = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
        for row, text in zip(codes, texts):
            row[: len(text)] = torch.tensor([ord(c) % 128 for c in text])
        mask = torch.arange(codes.shape[1]) < torch.tensor([[len(text)] for text in texts])         # (B, T)
        h = self.embed(codes)                                           # (B, T, E)
        found = [h]
        for layer in self.layers:
            before = h.cumsum(1) / torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]
            h = h + layer(before).tanh()
            found.append(h)
        return found, mask


def texts() -> list[dict]:
    """Batches of short texts, one of them a single letter."""
    words = ["a short text", "x", "one that is longer than the others", "dots ...", "again", "again and again", "so it goes"]
    return [{"text": words[:3], "row": torch.arange(3)}, {"text": words[3:], "row": torch.arange(3, 7)}]


class Bright(nn.Module):
    """An encoder of pictures: a linear layer on pixels, and tanh."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, dim)

    def encode(self, batch: dict) -> Tensor:
        return self.layer(batch["image"].to(self.layer.weight.dtype).flatten(1) / 255).tanh()


def pictures() -> list[dict]:
    """Two batches of coloured pictures, of three classes."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (20, 3, 8, 8), generator=g, dtype=torch.uint8)
    whole = {"image": image, "label": torch.arange(20) % 3, "row": torch.arange(20), "key": torch.arange(20) * 7919}
    return [{k: v[:12] for k, v in whole.items()}, {k: v[12:] for k, v in whole.items()}]


class Paired(nn.Module):
    """Pictures and texts in one space: linear layers on pixels and on counts of letters."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3 * 8 * 8, dim), nn.Linear(128, dim)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        counts = torch.zeros(len(batch["text"]), 128, dtype=self.text.weight.dtype)
        for row, text in zip(counts, batch["text"]):
            for c in text:
                row[ord(c) % 128] += 1
        return {"image": self.image(batch["image"].to(counts.dtype).flatten(1) / 255), "text": self.text(counts)}


def captioned() -> list[dict]:
    """The pictures of `pictures`, each with a text."""
    return [{**batch, "text": [f"picture {'abc'[int(c)]} of row {int(r)}" for c, r in zip(batch["label"], batch["row"])]}
            for batch in pictures()]


class Gated(Bright):
    """The same with Hydra's gates of three classes."""

    classes = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.gate = PairGate(3, 6, embed=4, hidden=8)
