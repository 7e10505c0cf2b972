"""What every inspector must hold, enumerated on its own tiny example; and `notan inspect` end to end."""

from __future__ import annotations

import importlib
import json
import math
import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from test_runs_decode import saved
from torch import Tensor, nn

from notan import catalogue, cli
from notan.errors import NotanError
from notan.runs.inspect import Reading, inspect
from notan.runs.reader import load

SLUGS = list(catalogue.inspectors())


def parts(slug: str):
    module = importlib.import_module(f"notan.inspectors.{slug}")
    model, data = module.example()
    return module.measure, model, data


def numbers(found: dict) -> dict:
    return {k: v for k, v in found.items() if isinstance(v, (int, float, list))}


def reordered(data: list[dict]) -> list[dict]:
    """The same rows backwards, one at a time and then the rest."""
    whole = {k: torch.cat([b[k] for b in data]) if isinstance(data[0][k], Tensor) else [v for b in data for v in b[k]]
             for k in data[0]}
    rows = [{k: v[i: i + 1] for k, v in whole.items()} for i in range(len(next(iter(whole.values()))))][::-1]
    rest = {k: torch.cat([r[k] for r in rows[1:]]) if isinstance(rows[0][k], Tensor) else [v for r in rows[1:] for v in r[k]]
            for k in rows[0]}
    return [rows[0], rest]


@pytest.mark.parametrize("slug", SLUGS)
def test_card_is_complete(slug):
    entry = catalogue.inspector(slug)
    missing = {"title", "arxiv", "year", "needs", "asks", "claim", "cost", "deviations"} - set(entry.card)
    assert not missing, f"{slug}: CARD lacks {missing}"
    assert entry.doc and entry.card["asks"] in ("encode", "states", "dual", "method")
    assert all(entry.helps.get(f.name) and not f.required for f in entry.flags)


@pytest.mark.parametrize("slug", SLUGS)
def test_it_gives_finite_numbers_and_figures_that_can_be_saved(slug, tmp_path):
    measure, model, data = parts(slug)
    found = measure(model, data)
    assert any(isinstance(v, float) for v in found.values())
    for name, value in found.items():
        if isinstance(value, (int, float, list)):
            assert all(map(math.isfinite, value if isinstance(value, list) else [value])), name
        else:
            value.savefig(tmp_path / "figure.png")
            assert Image.open(tmp_path / "figure.png").width > 100
    assert numbers(measure(model, data)) == numbers(found)


@pytest.mark.parametrize("slug", SLUGS)
def test_it_changes_nothing(slug):
    measure, model, data = parts(slug)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    measure(model, data)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert model.training and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("slug", SLUGS)
def test_the_order_of_rows_does_not_matter(slug):
    measure, model, data = parts(slug)
    a, b = (numbers(measure(model, d)) for d in (data, reordered(data)))
    assert a.keys() == b.keys()
    for name in a:
        assert b[name] == pytest.approx(a[name], rel=1e-9, abs=1e-9), name


# ---- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_the_command_reads_texts_and_writes_numbers_and_figures(folder, tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(20)]
    file, out = tmp_path / f"texts.{suffix}", tmp_path / "out"
    file.write_text({"txt": "\n\n".join(texts), "csv": "\n".join(["words", *texts]),
                     "jsonl": "\n".join(json.dumps({"words": t}) for t in texts)}[suffix] + "\n")
    renamed = [] if suffix == "txt" else ["--column", "words=text"]
    assert cli.main(["inspect", "isotropy", str(folder), "--data", str(file), "--out", str(out), *renamed]) == 0
    written = json.loads((out / "isotropy.json").read_text())
    assert f"{written['isotropy']:.4g}" in capsys.readouterr().out and (out / "isotropy-layers.png").stat().st_size > 1000
    assert written["texts"] == 20 and written["pairs"] == 20 * 6 and len(written["by layer"]) == 3
    assert inspect("isotropy", folder, file, rows=7, tokens=2, data_options={"columns": {"words": "text"}})["pairs"] == 14


def test_padding_changes_nothing_and_the_last_states_are_what_the_head_reads(folder):
    model, tokenizer = load(folder)
    reading, texts = Reading(model, tokenizer, 99), ["w1 w2 w3 w4", "w5 w6"]
    with torch.no_grad():
        layers, mask = reading.states({"text": texts})
        for b, text in enumerate(texts):
            alone, _ = reading.states({"text": [text]})
            for h, one in zip(layers, alone):
                torch.testing.assert_close(h[b, mask[b]], one[0], atol=1e-6, rtol=0)
            logits = model(**tokenizer(text, return_tensors="pt")).logits
            torch.testing.assert_close(model.get_output_embeddings()(alone[-1]), logits)


def test_bad_input(folder, tmp_path, capsys):
    assert cli.main(["inspect", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(slug in listed for slug in SLUGS)
    assert cli.main(["inspect", "isotopy", "M", "--data", "D"]) == 1 and "'isotropy'" in capsys.readouterr().err
    assert cli.main(["inspect", "isotropy", "M"]) == 1 and "no data was named" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "short.txt").write_text("w1\nw2\n")
    (tmp_path / "nothing.csv").write_text('text\n""\n""\n""\n')
    for file, seen in (("empty.txt", "is empty"), ("none.txt", "cannot be read"), ("short.txt", "none of 2 texts has two tokens"),
                       ("nothing.csv", "text")):
        with pytest.raises(NotanError, match=seen):
            inspect("isotropy", folder, tmp_path / file)
    with pytest.raises(NotanError, match="2 texts in a row have no tokens"):
        Reading(*load(folder), 9).states({"text": ["", ""]})
    with pytest.raises(NotanError, match="has no column 'text'"):
        inspect("isotropy", folder, "digits")
    with pytest.raises(NotanError, match="has no setting 'beta'"):
        inspect("isotropy", folder, tmp_path / "short.txt", settings={"beta": 1})
    for name, value in (("rows", 0), ("rows", -3), ("tokens", 0)):
        with pytest.raises(NotanError, match=f"{name} = {value}. Wanted: {name} of at least 1"):
            inspect("isotropy", folder, tmp_path / "short.txt", **{name: value})


class Mean(nn.Module):
    """An encoder: the mean of each channel."""

    channels, image_size = 1, 8

    def features(self, pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3))


def test_an_inspector_of_encoders_gets_features_of_the_test_rows_and_its_settings(tmp_path, monkeypatch):
    (tmp_path / "bright.py").write_text('"""Brightness."""\nCARD = {"title": "T", "needs": ["image"], "asks": "encode"}\n'
                                        'def measure(model, data, *, scale: float = 1.0): ...\n')
    made_up = ModuleType("notan.inspectors.bright")

    def measure(model, data, *, scale=1.0):
        batches = [list(data), list(data)]
        assert all(torch.equal(a["key"], b["key"]) for a, b in zip(*batches))
        z = torch.cat([model.encode(b) for b in batches[0]])
        return {"rows": len(z), "mean": scale * float(z.mean())}

    made_up.measure = measure
    monkeypatch.setitem(sys.modules, "notan.inspectors.bright", made_up)
    monkeypatch.setattr(catalogue, "inspectors", lambda: {"bright": catalogue.read_measure(tmp_path / "bright.py")})
    found = inspect("bright", Mean(), "digits", rows=300, settings={"scale": 2.0})
    assert found["rows"] == 300 and 0 < found["mean"] < 2
