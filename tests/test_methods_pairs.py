"""Pictures with words: CLIP and SigLIP by their definitions, their captions, and a run that finds pictures by words."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from notan import train
from notan.data import keys
from notan.data.build import build
from notan.data.pictures import Pixels
from notan.data.raw import Raw
from notan.errors import NotanError
from notan.inspectors import gap
from notan.methods import clip, siglip
from notan.methods._pairs import one_caption
from notan.methods._progress import Progress
from notan.runs.embed import embed, encoding
from notan.runs.inspect import Encoding
from notan.runs.probe import print_results, probe

NOW = Progress(step=1, steps=2, epoch=0, epochs=1)


def test_clip_is_the_mean_of_two_softmaxes():
    method, batch = clip.example(6, torch.float64)
    method.eval()
    x = clip.cropped(batch, 16, scale=method.crop)
    a = F.normalize(method.image_head(method.image_encoder.features(x)), dim=1)
    b = F.normalize(method.text_head(method.text_encoder.features(one_caption(batch))), dim=1)
    s, own = a @ b.T / 0.07, torch.arange(6)
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2)


def test_siglip_is_a_logistic_regression_on_every_pair():
    method, batch = siglip.example(6, torch.float64)
    method.eval()
    x = clip.cropped(batch, 16, scale=method.crop)
    a = F.normalize(method.image_head(method.image_encoder.features(x)), dim=1)
    b = F.normalize(method.text_head(method.text_encoder.features(one_caption(batch))), dim=1)
    z = 2 * torch.eye(6, dtype=torch.float64) - 1
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], -F.logsigmoid(z * (a @ b.T / 0.1 - 10)).sum(1).mean())


def test_equal_features_cost_the_log_of_the_batch_and_the_temperature_has_an_end():
    method, batch = clip.example(8, torch.float64)
    torch.nn.init.zeros_(method.text_head.weight)                       # every text at 0: all cosines are 0
    assert method.loss(batch, NOW)["loss"].item() == pytest.approx(math.log(8))
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    assert method.tau.item() == pytest.approx(0.01)
    for bad in (0.0, -1.0, 0.001, float("nan")):
        with pytest.raises(NotanError, match="tau = "):
            clip.CLIP(method.image_encoder, method.text_encoder, tau=bad)


def test_one_of_several_captions_is_drawn_by_key():
    _, batch = clip.example(8, torch.float32)
    drawn = [one_caption({**batch, "key": batch["key"] + epoch}) for epoch in range(30)]
    assert drawn[0] == one_caption(batch)
    for row, every in enumerate(batch["captions"]):
        assert {texts[row] for texts in drawn} == set(every)


def coloured(rows: int = 240):
    """Squares in one of six colours on grey, named in words: what a picture is can be said."""
    colours = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40),
               "white": (250, 250, 250), "black": (10, 10, 10)}
    names = list(colours)
    label = np.arange(rows) % 6
    image = np.full((rows, 3, 16, 16), 128, dtype=np.uint8)
    for i in range(rows):
        r, c = keys.shuffle(1, i, 8)[:2]
        image[i, :, r : r + 8, c : c + 8] = np.array(colours[names[label[i]]])[:, None, None]
    text = [f"a {names[k]} square" for k in label]
    raw = Raw("coloured", {"image": Pixels(image), "text": text, "label": label}, classes=tuple(names))
    return raw


@pytest.mark.parametrize("slug", ["clip", "siglip"])
def test_a_run_names_what_it_sees(slug, tmp_path):
    data = build(coloured(), tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0.0)
    towers = {"image_encoder": "convnet:widths=[16,32],strides=[2,2]", "text_encoder": "text:dim=32,depth=1,heads=2,context=8"}
    run = train(slug, data, out=tmp_path / "run", steps=60, batch=48, lr=3e-3, encoder=towers, threads=1)
    found = probe(run.path, data, prompts=["a {} square"])
    assert set(found) == {"picture to text", "text to picture", "zero-shot", "ridge"}
    assert found["zero-shot"]["accuracy"] > 0.9 and found["picture to text"]["r1"] > 0.9 and found["text to picture"]["r1"] > 0.9
    print_results(found, Console(file=(said := io.StringIO()), width=200))
    assert "R@1 1.000" in said.getvalue() and "zero-shot: accuracy" in said.getvalue()
    assert run.encoder("text_encoder").features(["a red square"]).shape == (1, 32)


def test_what_cannot_be_measured_by_words_is_refused(tmp_path):
    data = build(coloured(60), tmp_path / "cache", cache_side=None, fit="crop", cache_limit_gb=1, limit_bad=0.0)
    towers = {"image_encoder": "convnet:widths=[8],strides=[2]", "text_encoder": "text:dim=16,depth=1,heads=2,context=8"}
    both = train("clip", data, out=tmp_path / "both", steps=1, batch=8, encoder=towers, threads=1)
    alone = train("simclr", data, out=tmp_path / "alone", steps=1, batch=8, encoder=towers["image_encoder"], threads=1)
    with pytest.raises(NotanError, match="no space that pictures and texts share"):
        probe(alone.path, data, protocols=["retrieval"])
    with pytest.raises(NotanError, match="the model gives one output"):
        gap.measure(Encoding(encoding(alone)), [{**data.test.take(np.arange(12)), "key": torch.arange(12)}])
    wordless = replace(data, test=data.test.only("image", "label"))
    with pytest.raises(NotanError, match="captions: text or captions"):
        probe(both.path, wordless, protocols=["retrieval"])
    with pytest.raises(NotanError, match="no column 'label'"):
        probe(both.path, replace(data, test=data.test.only("image", "text")), protocols=["zeroshot"])
    (tmp_path / "words.jsonl").write_text("".join(f'{{"text": "a cat {i}"}}\n' for i in range(12)))
    for protocol in ("retrieval", "zeroshot", "basetonovel"):
        with pytest.raises(NotanError, match="has no pictures, only text"):
            probe(both.path, str(tmp_path / "words.jsonl"), protocols=[protocol])
    (tmp_path / "numbers.csv").write_text("a,b\n" + "".join(f"{i},{i % 3}\n" for i in range(12)))
    numbers = str(tmp_path / "numbers.csv")
    with pytest.raises(NotanError, match="rows of features"):
        embed(both.path, numbers, out=tmp_path / "e.parquet", data_options={"columns": {"a": "features", "b": "features"}})
    with pytest.raises(NotanError, match=r"rows of text.*pictures"):
        embed(both.path / "image_encoder", str(tmp_path / "words.jsonl"), out=tmp_path / "e.parquet")
    with pytest.raises(NotanError, match=r"rows of features.*text or captions"):
        embed(both.path / "text_encoder", numbers, out=tmp_path / "e.parquet",
              data_options={"columns": {"a": "features", "b": "features"}})
