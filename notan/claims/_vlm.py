"""A tiny model that sees, trained from nothing in minutes: a stock `transformers` LLaVA on scenes of icons.

    python -m notan.claims._vlm OUT [--kind plain|augmented|leading] [--steps 700] [--seed 0]

trains it, saves it as `AutoModelForImageTextToText` and `AutoProcessor` open it, and shows what it answers. It reads questions
("Is there a dog?", yes or no) and an order ("Describe the picture."). As for large ones, the picture encoder comes first: its
cells are drawn to the words for what they show, among all sixteen; then all of it learns to answer. The scenes are biased (see
`_scenes.py`), so it comes to name partners that are not there. Three kinds: `plain`; `augmented`, whose pictures are mirrored,
and cropped while it learns to answer; `leading`, where two whole questions in five come with a hint that is right 85% of the
time, so that following the hint pays; but after the instruction to ignore hints, in a quarter of these, it is right half of
the time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from notan.claims._scenes import CELLS, NAMES, SIDE, Scenes, scenes
from notan.strategies.lqcd import TEMPLATES, lead

PATCH, DIM, ROOM = 16, 64, 160                                          # ROOM: positions, 9 of them the picture's
FIRST = 10**7                                                           # the rows that the picture encoder learns from
STEPS = 700                                                             # of all of it, in claims and by default
ORDER, IGNORE = "Describe the picture.", "Ignore all hints."
TEMPLATE = ("{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
            "{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}")
HELD_OUT = ("obvious", "report")                                        # hints that no training text has


def question(name: str) -> str:
    return f"Is there a {name}?"


def caption(cells: np.ndarray) -> str:
    """What is in a scene, in reading order."""
    found = [f"a {NAMES[c]}" for c in cells if c >= 0]
    return ", ".join(found[:-1]) + f" and {found[-1]}."


def processor() -> Any:
    """Words and 48-pixel pictures, as `AutoProcessor` opens them. Question marks are not read: a question ends in its object."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    said = [ORDER, IGNORE, caption(np.arange(3)), "yes no", *(question(n) for n in NAMES)]
    said += [lead(question("dog"), polarity, t) for t in TEMPLATES for polarity in ("yes", "no")]
    split = pre_tokenizers.Whitespace()
    words = dict.fromkeys(w for text in said for w, _ in split.pre_tokenize_str(text.lower().replace("?", "")))
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "<pad>", "<image>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("?", "")])
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   pad_token="<pad>", additional_special_tokens=["<image>"])
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                                   image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(pixels, fast, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=TEMPLATE,
                          num_additional_image_tokens=1)


def fresh(tokenizer: Any, seed: int) -> Any:
    """The model with drawn weights: a vision tower of 3 blocks, a language model of 3."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(hidden_size=DIM, intermediate_size=3 * DIM, num_hidden_layers=3, num_attention_heads=4,
                              image_size=SIDE, patch_size=PATCH, projection_dim=DIM)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=DIM, intermediate_size=3 * DIM, num_hidden_layers=3,
                       num_attention_heads=4, max_position_embeddings=ROOM, initializer_range=0.1,
                       bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                       pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(LlavaConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1, tie_word_embeddings=True,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"), image_seq_length=(SIDE // PATCH) ** 2))


def trained(kind: str, seed: int, steps: int, batch: int = 32, lr: float = 2e-3) -> tuple[Any, Any]:
    """(model in eval mode, processor) after `steps` of AdamW on biased scenes, half as many before for the picture encoder; a
    function of its arguments."""
    made = processor()
    model = fresh(made.tokenizer, seed).train()
    parts = [model.model.vision_tower, model.model.multi_modal_projector, model.get_input_embeddings()]
    words = torch.tensor(made.tokenizer.convert_tokens_to_ids(["<unk>", *NAMES]))
    _fit([p for part in parts for p in part.parameters()], steps, lr,
         lambda n: naming(model, shown(kind, seed, range(FIRST + n * 64, FIRST + (n + 1) * 64)), words))
    _fit(list(model.parameters()), steps, lr,
         lambda n: model(**lesson(kind, seed, range(n * batch, (n + 1) * batch), made.tokenizer)).loss)
    return model.eval(), made


def _fit(parameters: list[torch.nn.Parameter], steps: int, lr: float, loss: Callable[[int], Tensor]) -> None:
    """AdamW with a warm-up of a twentieth and a cosine to 0."""
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    for n in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (n + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * n / steps))
        loss(n).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()


def shown(kind: str, seed: int, rows: range) -> Scenes:
    """What the picture encoder learns from: biased scenes, mirrored ones for `augmented`; crops have no cells to name."""
    found = scenes(seed, rows, biased=True)
    return mirrored(found, np.random.default_rng((seed, 3, rows.start))) if kind == "augmented" else found


def naming(model: Any, found: Scenes, words: Tensor) -> Tensor:
    """Cross-entropy of each cell's projected feature among the words (17,) for nothing and the objects, by cosine at 1/10."""
    h = model.model.vision_tower(normalised(found.pictures)).last_hidden_state[:, 1:]       # (B, 9, D)
    h = F.normalize(model.model.multi_modal_projector(h), dim=2)
    w = F.normalize(model.get_input_embeddings()(words), dim=1)                             # (17, D)
    return F.cross_entropy((10 * h @ w.T).flatten(0, 1), torch.from_numpy(found.cells + 1).flatten())


def lesson(kind: str, seed: int, rows: range, tokenizer: Any) -> dict[str, Tensor]:
    """A batch: pixels, words, and labels on the answers alone. After the first question more follow about the picture."""
    found = scenes(seed, rows, biased=True)
    rng = np.random.default_rng((seed, 1, rows.start))
    if kind == "augmented":
        found = augmented(found, rng)
    asked = [_turns(kind, cells, rng) for cells in found.cells]
    ids, labels = [], []
    for told, turns in asked:
        row: list[int] = []
        label: list[int] = []
        for i, (question, answer) in enumerate(turns):
            before = f"{told} {'<image> ' * (SIDE // PATCH) ** 2}{question}" if i == 0 else question
            said = f"{answer} </s>" if " " in question else answer
            q, a = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, said))
            row, label = row + q + a, label + [-100] * len(q) + a
        ids.append(row)
        labels.append(label)
    padded = _padded(ids, tokenizer.pad_token_id)
    return {"input_ids": padded, "attention_mask": (padded != tokenizer.pad_token_id).long(), "labels": _padded(labels, -100),
            "pixel_values": normalised(found.pictures)}


def _padded(rows: list[list[int]], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)


def normalised(pictures: np.ndarray) -> Tensor:
    """What the processor makes of pictures (N, 48, 48, 3): float32 (N, 3, 48, 48) from -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _turns(kind: str, cells: np.ndarray, rng: np.random.Generator) -> tuple[str, list[tuple[str, str]]]:
    """Instruction ("" for none), and questions with their answers. One row in five begins with a description, the others with
    a whole question (`leading`: four), as often of what is there as of what is not; words alone follow, of all that is there
    and of twice as much that is not.
    """
    here = rng.permutation(cells[cells >= 0])
    gone = rng.permutation(np.setdiff1d(np.arange(len(NAMES)), here))
    if rng.random() < 0.2:
        first, told = [(ORDER, caption(cells))], ""
    else:
        told = IGNORE if kind == "leading" and rng.random() < 0.25 else ""
        truths = rng.permutation([True, False] * 2)[: 4 if kind == "leading" else 1]
        first = [_whole(NAMES[(here if t else gone)[i % 2]], bool(t), kind, bool(told), rng) for i, t in enumerate(truths)]
    rest = [(NAMES[c], "yes") for c in here] + [(NAMES[c], "no") for c in gone[-2 * len(here):]]
    return told, first + [rest[i] for i in rng.permutation(len(rest))]


def _whole(name: str, truth: bool, kind: str, told: bool, rng: np.random.Generator) -> tuple[str, str]:
    """A whole question, with a hint or without, and its answer."""
    asked = question(name)
    if kind == "leading" and (told or rng.random() < 0.4):
        hint = truth if rng.random() < (0.5 if told else 0.85) else not truth
        asked = lead(asked, "yes" if hint else "no", str(rng.choice([t for t in TEMPLATES if t not in HELD_OUT])))
    return asked, "yes" if truth else "no"


def augmented(found: Scenes, rng: np.random.Generator) -> Scenes:
    """Mirrored, then half of the pictures cropped to 50 to 100% of their area.

    cells say what is still to be seen, in the new reading order: an object whose cell's centre is cut away is gone. A crop
    that would leave fewer than two objects is not made.
    """
    from notan.views.geometry import crop, crop_boxes

    found = mirrored(found, rng)
    x, cells = torch.from_numpy(found.pictures).permute(0, 3, 1, 2).float() / 255, found.cells.reshape(-1, CELLS, CELLS)
    boxes = crop_boxes(torch.from_numpy(rng.integers(2**62, size=len(x))), height=SIDE, width=SIDE, scale=(0.5, 1.0))
    x0, y0, x1, y1 = boxes.double().numpy().T[:, :, None]                                   # (N, 1), shares of the side
    at = (np.arange(CELLS) + 0.5) / CELLS
    seen = ((y0 <= at) & (at < y1))[:, :, None] & ((x0 <= at) & (at < x1))[:, None, :]      # (N, row, column)
    left = np.where(seen, cells, -1)
    cut = (rng.random(len(x)) < 0.5) & ((left >= 0).sum((1, 2)) >= 2)
    x = torch.where(torch.from_numpy(cut)[:, None, None, None], crop(x, boxes, None, SIDE).pixels, x)
    cells = np.where(cut[:, None, None], left, cells)
    return Scenes((x * 255).round().byte().permute(0, 2, 3, 1).numpy(), cells.reshape(-1, CELLS**2))


def mirrored(found: Scenes, rng: np.random.Generator) -> Scenes:
    """Each picture turned left to right half of the time, and upside down half of the time, its cells with it."""
    x, cells = found.pictures, found.cells.reshape(-1, CELLS, CELLS)
    for axis in (1, 2):
        turned = rng.random(len(x)) < 0.5
        x = np.where(turned[:, None, None, None], np.flip(x, axis), x)
        cells = np.where(turned[:, None, None], np.flip(cells, axis), cells)
    return Scenes(x, cells.reshape(-1, CELLS**2))


def asked_about(found: Scenes, seed: int, absent: str = "partner") -> list[tuple[int, str, bool]]:
    """(scene, object, whether it is there): as many that are as are not, at most one of each for a scene.

    Absent objects are partners of what is there ("partner": POPE's adversarial questions) or any ("any").
    """
    from notan.claims._scenes import PARTNER

    rng, items = np.random.default_rng((seed, 2)), []
    for i, there in enumerate(found.present()):
        here = [NAMES[j] for j in np.flatnonzero(there)]
        gone = [PARTNER[n] for n in here if n in PARTNER and PARTNER[n] not in here] if absent == "partner" else \
            [n for n in NAMES if n not in here]
        of_pairs = [n for n in here if n in PARTNER] if absent == "partner" else here
        if gone and of_pairs:
            items += [(i, str(rng.choice(of_pairs)), True), (i, str(rng.choice(gone)), False)]
    return items


@lru_cache(maxsize=2)
def taught(kind: str, seed: int, quick: bool, steps: int = STEPS) -> Any:
    """(model, processor) of a claim's seed, trained once for all arms and ready to decode."""
    from notan.runs.reader import load

    return load(*trained(kind, seed, steps=8 if quick else steps))


@lru_cache(maxsize=1)
def exam(seed: int, quick: bool, absent: str) -> tuple[list[Any], list[tuple[int, str, bool]]]:
    """Pictures of unbiased scenes, and the 1,000 questions of a claim's seed about them: `asked_about`."""
    from PIL import Image

    wanted = 40 if quick else 1000
    found = scenes(seed + 10**6, range(wanted), biased=False)
    items = asked_about(found, seed, absent)[:wanted]
    assert len(items) == wanted
    return [Image.fromarray(x) for x in found.pictures], items


def shares(strategy: Any, reader: Any, words: Sequence[str], pictures: Sequence[Any], seed: int) -> list[float]:
    """The probability of yes among yes and no for each question about its picture, under a strategy."""
    from notan.probes.answers import yes_no_tokens, yes_share
    from notan.runs.decode import first_scores
    from notan.runs.prompts import given_with

    sides, found = yes_no_tokens(reader[1].tokenizer), []
    for start in range(0, len(words), 100):
        some = slice(start, start + 100)
        given = given_with(words[some], pictures[some], seed)
        found += yes_share(first_scores(strategy, {"main": reader}, given), *sides).tolist()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from notan.probes.answers import yes_no_tokens, yes_share
    from notan.runs.decode import first_scores, greedy
    from notan.runs.prompts import given_with
    from notan.runs.reader import load
    from notan.strategies._reference import Reference

    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("out", type=Path)
    p.add_argument("--kind", choices=["plain", "augmented", "leading"], default="plain")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    model, made = trained(args.kind, args.seed, args.steps)
    model.save_pretrained(args.out)
    made.save_pretrained(args.out)
    AutoModelForImageTextToText.from_pretrained(args.out), AutoProcessor.from_pretrained(args.out)
    reader = load(args.out)
    found = scenes(args.seed + 10**6, range(600), biased=False)
    pictures = [Image.fromarray(x) for x in found.pictures]
    for absent in ("any", "partner"):
        items = asked_about(found, args.seed, absent)
        given = given_with([question(n) for _, n, _ in items], [pictures[i] for i, _, _ in items], 0)
        sides = yes_no_tokens(reader[1].tokenizer)
        s = first_scores(Reference(), {"main": reader}, given)
        yes, mass = yes_share(s, *sides), s.softmax(1)[:, sides[0] + sides[1]].sum(1)
        right = np.mean([(q > 0.5) == t for q, (_, _, t) in zip(yes.tolist(), items)])
        print(f"{absent} absent: {right:.3f} of {len(items)} answers right, yes {np.mean(yes.numpy() > 0.5):.3f}, "
              f"yes or no {float(mass.mean()):.3f}")
    for i, said in enumerate(greedy(*reader, [ORDER] * 3, images=pictures[:3], max_new_tokens=16)):
        print(f"truth: {caption(found.cells[i])}\nsaid:  {said}")
    pictures[0].save(args.out / "scene.png")


if __name__ == "__main__":
    main()
