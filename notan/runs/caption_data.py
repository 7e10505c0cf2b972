"""From a folder of pictures to a training set with captions: filters, a captioner, checks, and a report of what was dropped.

The pipeline of WebPerson (GA-DMS: Zheng et al. 2025, arXiv 2509.09118, section 4), with detectors and models that the user
brings.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from notan.data import keys
from notan.data.curate import Filter, Record, why_dropped, why_poor
from notan.data.folder import picture_files
from notan.errors import NotanError, check_between
from notan.nets.attribution import ends, is_word, to_one, word_scores
from notan.runs.checkpoint import full_disk_explained, whole_lines, write_text
from notan.runs.inspect import two_encoders
from notan.runs.prompts import given_with, rows_of
from notan.runs.reader import load, words_of
from notan.views.geometry import floats, resize

Captioner = Callable[[list[Any], list[str]], Sequence[str | Sequence[str]]]     # PIL pictures, and a template of each: captions
Scorer = Callable[[list[Any], list[str]], Sequence[float]]              # pictures and a caption of each, to numbers
PROMPT = ("Describe the main subject of this picture in one or two sentences. Say only what you are certain of, and nothing "
          "about the background.")
IN_THE_MANNER = " Write it in the manner of: {template}"


def caption_data(source: str | Path | Iterable[Record], captioner: Captioner, *, out: str | Path, filters: Sequence[Filter] = (),
                 templates: Sequence[str] = (), poor: Callable[[str], str] = why_poor, score: Scorer | None = None,
                 least: float = -np.inf, seed: int = 0, batch: int = 8) -> dict[str, Any]:
    """Write captions of the pictures into the folder `out` and return the report.

    source: a folder of pictures, or records with `image` (a file's path) and whatever the filters read; `width` and `height`
    are filled in from the file. Each kept picture gets one of the templates, drawn by seed and path, and the captioner writes
    one caption or several. A caption stays if `poor` has nothing against it and its `score` (e.g. `cosines(model)`) is at least
    `least`.

    out: captions.jsonl, a line a picture ({"image", "captions", "template", "scores"}, paths relative to out), which `notan
    train METHOD --data out/captions.jsonl` reads; dropped.jsonl, a line for each picture and caption that was not kept, and
    why; report.json. The same call goes on where it was interrupted. Raises `NotanError` for no pictures, other settings than
    those of the first call (settings.json), and a captioner that gives other numbers of captions.
    """
    check_between(1, np.inf, batch=batch)
    out, folder = Path(out), isinstance(source, (str, Path))
    every: Any = _records(Path(source)) if isinstance(source, (str, Path)) else source
    out.mkdir(parents=True, exist_ok=True)
    _same_settings(out / "settings.json", {"templates": list(templates), "least": float(least), "seed": seed,
                                           "filters": [repr(one) for one in filters], "scored": score is not None})
    kept, dropped = out / "captions.jsonl", out / "dropped.jsonl"
    done, seen = _done(kept, dropped), 0
    with full_disk_explained(out), kept.open("a", encoding="utf-8") as good, dropped.open("a", encoding="utf-8") as bad:
        records = iter(every)
        while some := list(islice(records, batch)):
            seen += len(some)
            new = [{**record, "image": path} for record in some if (path := _relative(record, out)) not in done]
            done |= {record["image"] for record in new}
            lines, refused = _captioned(new, captioner, out, filters, templates, poor, score, least, seed)
            for file, found in ((bad, refused), (good, lines)):
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
                file.flush()
    if not seen:
        raise NotanError(f"{source if folder else 'what was given'} has no pictures", "a folder of pictures, or records",
                         "check the path")
    report = _report(kept, dropped)
    write_text(out / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return report


def _same_settings(path: Path, asked: dict[str, Any]) -> None:
    """Keep the settings of a first call. Raises `NotanError` for a later one with others: what is done would stay as it was."""
    asked = json.loads(json.dumps(asked))
    kept = json.loads(path.read_text()) if path.exists() else asked
    if other := [name for name in asked if kept.get(name) != asked[name]]:
        name = other[0]
        raise NotanError(f"{path.parent} holds captions made with {name} = {kept.get(name)}, and {asked[name]} was asked",
                         "the same settings, to go on", "another out, or remove the folder")
    write_text(path, json.dumps(asked, indent=2, ensure_ascii=False) + "\n")


def _captioned(records: list[Record], captioner: Captioner, out: Path, filters: Sequence[Filter], templates: Sequence[str],
               poor: Callable[[str], str], score: Scorer | None, least: float, seed: int) -> tuple[list[dict], list[dict]]:
    """Lines of what is kept, and of what is not. A picture that is dropped as a whole says so by `whole`."""
    refused, stay, pictures = [], [], []
    for record in records:
        picture, why = _opened(out / record["image"])
        if picture is not None:
            record = {"width": picture.width, "height": picture.height} | record
            why = why_dropped(record, filters)
        if why:
            refused.append({"image": record["image"], "why": why, "whole": True})
        else:
            stay.append(record["image"])
            pictures.append(picture)
    chosen = [templates[int(keys.fold(keys.word(name), seed)) % len(templates)] if templates else "" for name in stay]
    said = [[one] if isinstance(one, str) else list(one) for one in captioner(pictures, chosen)] if stay else []
    if len(said) != len(stay):
        raise NotanError(f"the captioner gave captions of {len(said)} pictures, of {len(stay)} asked", "captions of each picture",
                         "a string, or a list of strings, for each")
    lines = []
    for name, picture, template, captions in zip(stay, pictures, chosen, said):
        captions = list(dict.fromkeys(" ".join(one.split()) for one in captions))
        reasons = {one: poor(one) for one in captions}
        left = [one for one in captions if not reasons[one]]
        scores = [float(s) for s in score([picture] * len(left), left)] if score and left else []
        reasons |= {one: "score below the least" for one, s in zip(left, scores) if not s >= least}
        good = [one for one in captions if not reasons[one]]
        refused += [{"image": name, "caption": one, "why": f"caption: {why}", "whole": False}
                    for one, why in reasons.items() if why]
        if good:
            known = dict(zip(left, scores))
            scored = {"scores": [known[one] for one in good]} if known else {}
            lines.append({"image": name, "captions": good, "template": template} | scored)
        else:
            refused.append({"image": name, "why": "no caption was kept", "whole": True})
    return lines, refused


def _done(kept: Path, dropped: Path) -> set[str]:
    """Pictures that have their last line. Of others, which a call was about to write, what is there is taken out again."""
    lines = [json.loads(line) for line in whole_lines(dropped)]
    done = {json.loads(line)["image"] for line in whole_lines(kept)} | {line["image"] for line in lines if line["whole"]}
    if any(line["image"] not in done for line in lines):
        write_text(dropped, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["image"] in done))
    return done


def _records(folder: Path) -> Iterator[Record]:
    if not folder.is_dir():
        raise NotanError(f"{folder} is no folder", "a folder of pictures, or records", "check the path")
    return ({"image": path} for path in picture_files(folder)[0])


def _relative(record: Record, out: Path) -> str:
    if "image" not in record:
        raise NotanError(f"a record of {', '.join(record)}", "`image`, the path of a file", "name it so")
    return os.path.relpath(record["image"], out)


def _opened(path: Path) -> tuple[Any, str]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB"), ""
    except (OSError, Image.DecompressionBombError):
        return None, "cannot be read"


def _report(kept: Path, dropped: Path) -> dict[str, Any]:
    """Counts of what is there, made from the files, so that they hold over interruptions."""
    lines, refused = ([json.loads(line) for line in whole_lines(path)] for path in (kept, dropped))
    words = Counter(word for line in lines for one in line["captions"] for word in one.lower().split())
    return {"pictures": len(lines) + sum(line["whole"] for line in refused), "kept": len(lines),
            "captions": sum(len(line["captions"]) for line in lines), "different words": len(words),
            "templates used": len({line["template"] for line in lines if line["template"]}),
            "dropped": dict(Counter(line["why"] for line in refused).most_common())}


# ------------------------------------------------------------------------------------------------- models that take part

def vlm_captioner(model: str | Path | Any, processor: Any = None, *, prompt: str = PROMPT, tokens: int = 80,
                  chat: bool | None = None) -> Captioner:
    """A captioner of an image-text-to-text model of `transformers` (a name, a folder, or loaded with its processor), greedily.

    prompt: what it is asked; where a picture has a template, that is added.
    """
    reader = load(model, processor)

    @torch.no_grad()
    def captions(pictures: list[Any], templates: list[str]) -> list[str]:
        asked = [prompt + (IN_THE_MANNER.format(template=t) if t else "") for t in templates]
        rows = rows_of(reader, given_with(asked, pictures, 0), chat, tokens)
        ids = reader[0].generate(**rows, max_new_tokens=tokens, do_sample=False, pad_token_id=words_of(reader[1]).pad_token_id)
        return [t.strip() for t in reader[1].batch_decode(ids[:, rows["input_ids"].shape[1]:], skip_special_tokens=True)]

    return captions


def cosines(model: str | Path | Any) -> Scorer:
    """A scorer: the cosine of picture and caption by two encoders with a joint space (a run, a folder, "hf:NAME", or loaded)."""
    dual: Any = two_encoders(model).eval()                              # type: ignore[attr-defined]

    @torch.no_grad()
    def scores(pictures: list[Any], captions: list[str]) -> list[float]:
        return torch.cosine_similarity(dual.image(_pixels(dual, pictures)), dual.text(captions)).tolist()

    return scores


def word_support(model: str | Path | Any, *, layers: int = 1) -> Callable[[list[Any], list[str]], list[list[tuple[str, float]]]]:
    """What the gradient says of each token of a caption (GASS): pictures and captions to (token, score) from 0, likely wrong,
    to 1."""
    dual: Any = two_encoders(model).eval()                              # type: ignore[attr-defined]

    @torch.no_grad()
    def support(pictures: list[Any], captions: list[str]) -> list[list[tuple[str, float]]]:
        encoder, (ids, pad) = dual.text_encoder, dual.text_encoder.tokens(captions)
        s = to_one(word_scores(encoder, dual.text_head, ids, pad, dual.image(_pixels(dual, pictures)), layers=layers))
        word, named = is_word(ends(encoder, ids, pad), ids.shape[1]), encoder.tokenizer
        return [[(named.decode([int(i)]).strip(), float(x)) for i, x in zip(row[w], score[w])]
                for row, score, w in zip(ids, s, word)]

    return support


def unsupported(model: str | Path | Any, *, below: float = 0.1, layers: int = 1) -> Scorer:
    """A scorer: minus the share of a caption's tokens that the gradient gives less than `below`."""
    support = word_support(model, layers=layers)
    return lambda pictures, captions: [-sum(s < below for _, s in one) / max(1, len(one)) for one in support(pictures, captions)]


def _pixels(dual: Any, pictures: list[Any]) -> torch.Tensor:
    p = next(dual.parameters())
    made = [resize(floats(torch.from_numpy(np.array(x)).permute(2, 0, 1)[None].to(p.device)), dual.image_size) for x in pictures]
    x = torch.cat(made)
    return (x if x.shape[1] == dual.channels else x.mean(1, keepdim=True)).to(p.dtype)
