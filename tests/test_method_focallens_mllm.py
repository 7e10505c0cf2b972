"""FocalLens on a language model that sees: its loss, what learns, and what a run of it can be asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from notan import catalogue
from notan.data import open_data
from notan.errors import NotanError
from notan.methods import focallens_mllm
from notan.methods._example import asked, tiny_seeing_model
from notan.methods._progress import Progress
from notan.methods.focallens_mllm import FocalLensMLLM
from notan.runs.build import too_fast
from notan.runs.conditional import conditional
from notan.runs.embed import embed, encoding
from notan.runs.index import Index
from notan.runs.search import search
from notan.runs.train import train
from notan.runs.words import by_words

NOW = Progress(step=1, steps=2, epoch=0, epochs=1)


def test_the_loss_is_a_cross_entropy_with_equal_answers_sharing_the_target():
    method, batch = focallens_mllm.example(8, torch.float64)
    batch["answer"] = ["Yes.", "a dog", "yes", "two", "A dog!", " YES ", "no", "red"]
    z, u = method.encode(batch)["image"], method.model.text(batch["answer"])
    s = F.normalize(z, dim=1) @ F.normalize(u, dim=1).T / 0.07
    kind = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])
    target = (kind[:, None] == kind).double()
    target = target / target.sum(1, keepdim=True)
    wanted = (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], wanted, rtol=1e-6, atol=1e-6)  # tau begins as float32
    method.equal_answers = False
    own = torch.arange(8)
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2,
                               rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("lora", "picture_encoder"), [(0, True), (0, False), (2, False), (2, True)])
def test_what_learns(lora, picture_encoder):
    torch.manual_seed(0)
    method, batch = FocalLensMLLM(tiny_seeing_model(), lora=lora, picture_encoder=picture_encoder), asked(8)
    for p in method.parameters():
        if p.ndim == 2 and not p.any():                                 # B of the low-rank sums: as after a step
            nn.init.normal_(p, std=0.1)
    method.loss(batch, NOW)["loss"].backward()
    learned = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned == {name for name, p in method.named_parameters() if p.requires_grad}
    assert {"log_scale", "model.readout.vector", "model.readout.P.weight"} < learned
    assert any("multi_modal_projector" in name for name in learned)
    assert any("vision_tower" in name for name in learned) == picture_encoder
    words = {name for name in learned if "language_model" in name}
    assert all(name.endswith((".A", ".B")) for name in words) if lora else any("embed_tokens" in name for name in words)
    assert words


def test_an_answer_s_gradient_goes_through_its_reading():
    """No second model stands still beside it: texts are read by what learns."""
    method, batch = focallens_mllm.example(8, torch.float64)
    u = method.model.text(batch["answer"])
    assert u.requires_grad
    once = method.model.text(["Yes."])
    torch.testing.assert_close(u[0], once[0], rtol=1e-9, atol=1e-9)


def test_odd_settings_are_refused():
    for settings, said in (({"tau": 0.001}, "tau = 0.001"), ({"lora": -1}, "lora = -1"), ({"turns": 0}, "turns = 0")):
        with pytest.raises(NotanError, match=said):
            FocalLensMLLM(tiny_seeing_model(), **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A few steps with low-rank changes."""
    size = {"name": "llava", "dim": 32, "depth": 1, "heads": 2, "context": 96, "patch": 8, "picture_depth": 1}
    return train("focallens_mllm", "emoji-questions", out=tmp_path_factory.mktemp("mllm") / "run", steps=3, batch=16,
                 encoder=size, threads=1, precision="fp32", settings={"lora": 2})


def test_a_run_can_be_asked(run, tmp_path):
    data = open_data("emoji-questions")
    found = conditional(encoding(run), data, 600)
    assert len(found) > 2 and all({"scaled", "wrong", "without"} <= set(r) for r in found.values())
    emoji = open_data("emoji")
    said = by_words(run.path, emoji, 60, ["retrieval", "zeroshot"], None)
    assert set(said) == {"picture to text", "text to picture", "zero-shot"}
    embed(run.path, emoji, out=tmp_path / "index", split="test")
    hits = search(tmp_path / "index", "a red heart", top=3).hits
    assert len(hits) == 3 and hits[0].score >= hits[1].score
    row = {"image": emoji.test.take(np.arange(4))["image"]}
    torch.testing.assert_close(encoding(run.path / "model")(row)["image"], encoding(run)(row)["image"])   # sums added up


def test_pictures_are_embedded_under_an_instruction(run, tmp_path):
    emoji, colour = open_data("emoji"), "which colour is it?"
    picture = emoji.test.take(np.arange(1))["image"][0]
    for source in (run.path, run.path / "model"):
        plain, asked_ = tmp_path / f"{source.name} plain", tmp_path / f"{source.name} asked"
        embed(source, emoji, out=plain, split="test")
        embed(source, emoji, out=asked_, split="test", instruction=colour, dtype="float32")
        found = search(asked_, picture=picture.numpy(), top=3)
        assert found.hits[0].score == pytest.approx(1, abs=2e-2) and any(colour in note for note in found.notes)   # bf16
        wanted = F.normalize(encoding(run, colour)({"image": picture[None]})["image"][0], dim=0)
        torch.testing.assert_close(torch.from_numpy(np.array(Index(asked_).vectors[0])).float(), wanted, atol=2e-2, rtol=0)
        assert np.abs(np.array(Index(asked_).vectors[0]) - np.array(Index(plain).vectors[0], dtype=np.float32)).max() > 2e-2
        assert not search(plain, picture=picture.numpy(), top=3).notes
        embed(source, emoji, out=asked_, split="test", instruction=f" {colour} ", dtype="float32")     # the same one
        with pytest.raises(NotanError, match=rf"--instruction '{colour[:-1]}"):
            embed(source, emoji, out=asked_, split="test", dtype="float32")
        with pytest.raises(NotanError, match=rf"{colour[:-1]}.*one model in an index.*leave out --instruction"):
            embed(source, emoji, out=plain, split="test", instruction=colour)
    tables = [pq.read_table(embed(run.path, emoji, out=tmp_path / f"{i}.parquet", split="test", instruction=text))
              for i, text in enumerate((None, colour))]
    a, b = (np.stack(table["feature_image"].to_numpy()) for table in tables)
    assert np.abs(a - b).max() > 1e-3 and a.shape == b.shape


def test_an_instruction_to_what_reads_none_is_refused(run, tmp_path):
    deaf = train("clip", "emoji", out=tmp_path / "clip", steps=0, batch=16, threads=1)
    for out in (tmp_path / "index", tmp_path / "table.parquet"):
        with pytest.raises(NotanError, match=r"clip reads no instruction, and 'which\?'.*leave out --instruction"):
            embed(deaf.path, "emoji", out=out, instruction="which?")
        with pytest.raises(NotanError, match="the instruction is empty"):
            embed(run.path, "emoji", out=out, instruction=" ")
        assert not out.exists()
    with pytest.raises(NotanError, match=r"pictures, which an instruction asks about"):
        embed(run.path, "docstrings", out=tmp_path / "texts.parquet", instruction="which?")
    for out in (tmp_path / "index", tmp_path / "table.parquet"):
        with pytest.raises(NotanError, match=r"the instruction has \d+ tokens and the model reads \d+"):
            embed(run.path, "emoji", out=out, instruction="which of all of these " * 80)
    with pytest.raises(NotanError, match=r"an instruction was given for docstrings, which has .*Wanted: pictures"):
        embed(run.path, "docstrings", out=tmp_path / "texts", instruction="which?")


def test_it_goes_on_from_a_run_of_its_own(run, tmp_path):
    again = train("focallens_mllm", "emoji-questions", out=tmp_path / "run", steps=0, batch=16, encoder=f"{run.path}",
                  threads=1, precision="fp32", settings={"lora": 2})
    row = {"image": open_data("emoji").test.take(np.arange(4))["image"]}
    torch.testing.assert_close(encoding(again)(row)["image"], encoding(run)(row)["image"])


def test_a_released_model_by_a_recipe_for_fresh_weights_is_told():
    paper, small = (catalogue.method("focallens_mllm").recipes[name]["optimiser"] for name in ("paper", "small"))
    for spec, recipe, said in (("hf:me/mine", "small", "--recipe paper"), ("hf:me/mine", "paper", ""), ("runs/x", "small", "")):
        config = SimpleNamespace(method="focallens_mllm", towers={"model": spec}, recipe=recipe,
                                 optimiser=small if recipe == "small" else paper)
        found = too_fast(config)
        assert said in found and bool(said) == bool(found)
