"""Runs on texts, end to end: a run folder, its tokenizer, comparison, embedding, probes, export and decoding."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from notan import decode, embed, export, load, probe, train
from notan.data import open_data
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.runs.compare import compare
from notan.runs.dump import dump, replay
from notan.runs.folder import Run
from notan.runs.report import write_single
from notan.runs.train import train_config

SPEC = "gpt2:dim=16,depth=1,heads=2,context=32,vocabulary=270"
HOW = {"precision": "fp32", "steps": 6, "batch": 8, "threads": 1, "encoder": SPEC, "save_every": 3}
SAID = ("the {0} ran to the {1} and hid there", "price of a {0} rose by {1} today", "no {0} without a {1}, they say")
WORDS = "cat dog house sea tree boat song bread".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    """96 sentences of three kinds, the kind their label."""
    lines = [{"text": SAID[i % 3].format(WORDS[i % 8], WORDS[(i * 5 + 2) % 8]), "label": "abc"[i % 3]} for i in range(96)]
    path = tmp_path_factory.mktemp("texts") / "said.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory) -> Run:
    return train("simctg", texts, out=tmp_path_factory.mktemp("run") / "r", **HOW)


def weights(run: Run) -> dict:
    return load_file(sorted((run.path / "state").iterdir())[-1] / "model.safetensors")


def test_the_folder_is_a_model_of_transformers(run):
    model, words = AutoModelForCausalLM.from_pretrained(run.path / "model"), AutoTokenizer.from_pretrained(run.path / "model")
    ids = words("the cat ran", return_tensors="pt")["input_ids"]
    ours = run.encoder()
    assert torch.equal(model(ids).logits, ours(ids)[0]) and run.towers == ["model"]
    assert torch.equal(load(run.path).features(["the cat"]), run.method().encode({"text": ["the cat"]}))


def test_it_writes(run):
    from_run, from_model = (decode("contrastive_search", p, "the cat", max_new_tokens=5) for p in (run.path, run.path / "model"))
    assert from_run == from_model and isinstance(from_run[0], str)


def test_config_runs_again_and_makes_the_same_tokenizer(run, tmp_path):
    again = train_config(run.path / "config.yaml", out=tmp_path / "again")
    a, b = weights(run), weights(again)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (again.path / "model" / "tokenizer.json").read_bytes() == (run.path / "model" / "tokenizer.json").read_bytes()


def test_a_run_needs_its_data_no_more_and_its_tokenizer_is_its_own(run, tmp_path):
    moved = shutil.copytree(run.path, tmp_path / "moved")
    assert torch.equal(Run(moved).method().encode({"text": ["a song"]}), run.method().encode({"text": ["a song"]}))


def test_a_tokenizer_of_a_run_that_never_began_is_not_kept(texts, tmp_path):
    """Something died between the tokenizer and config.yaml; the next run in that folder is about other texts."""
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(json.dumps({"text": f"zebra {i} " * 5}) for i in range(40)))
    first = train("simctg", str(other), out=tmp_path / "r", **HOW)
    stale = (first.path / "model" / "tokenizer.json").read_text()
    for name in ("config.yaml", "metrics.jsonl"):
        (first.path / name).unlink()
    shutil.rmtree(first.path / "state")
    second = train("simctg", texts, out=tmp_path / "r", **HOW)
    assert (second.path / "model" / "tokenizer.json").read_text() != stale
    clean = train("simctg", texts, out=tmp_path / "clean", **HOW)
    assert all(torch.equal(weights(second)[k], v) for k, v in weights(clean).items())


def test_a_pretrained_model_goes_on(run, texts, tmp_path):
    more = train("simctg", texts, out=tmp_path / "more", **{**HOW, "encoder": f"hf:{run.path}", "lr": 1e-9})
    for name, weight in weights(run).items():
        torch.testing.assert_close(weights(more)[name], weight, rtol=0, atol=1e-6)
    assert more.settings.towers == {"model": f"hf:{run.path}"}


def test_a_step_that_was_kept_runs_again(run, tmp_path):
    place, method = run.path / "debug" / "step-00000000", run.method()
    batch = open_data(run.settings.data).train.take([0, 1, 2])
    dump(place, method, batch, Progress(), 3, {})
    assert replay(place)["loss"] == pytest.approx(float(method.loss(batch, Progress())["loss"].detach()))
    shutil.rmtree(place.parent)


def test_embedding_and_probing_texts(run, texts, tmp_path):
    for source in (run.path, run.path / "model"):
        table = pq.read_table(embed(source, texts, out=tmp_path / "e.parquet"))
        assert table.num_rows == Run(run.path).info.rows and len(table["feature"][0]) == 16
    found = probe(run.path, protocols=["ridge", "knn"])
    assert found["ridge"]["accuracy"] > 0.5
    with pytest.raises(NotanError, match="has no pictures"):
        probe(run.path, protocols=["finetune"])


def test_export(run, tmp_path):
    for form in ("safetensors", "hf"):
        place = export(run, to=form, out=tmp_path / form)
        assert AutoModelForCausalLM.from_pretrained(place).config.n_embd == 16 and (place / "tokenizer.json").exists()
    with pytest.raises(NotanError, match="does not export to onnx: a language model writes"):
        export(run, to="onnx", out=tmp_path / "o")


def test_parts_of_a_batch_are_refused_by_what_is_averaged(texts, tmp_path):
    with pytest.raises(NotanError, match="mean over tokens and pairs of tokens"):
        train("simctg", texts, out=tmp_path / "r", accumulate=2, **HOW)


def test_a_report_of_one_run(run):
    assert "simctg" in write_single(run).read_text()


def test_a_picture_encoder_is_no_language_model(texts, tmp_path):
    with pytest.raises(NotanError, match="no language model 'vit'"):
        train("simctg", texts, out=tmp_path / "r", **{**HOW, "encoder": "vit"})


def test_comparing_on_texts(texts, tmp_path):
    console = Console(file=(tmp_path / "said").open("w"), width=100)
    study = compare(["simctg", "simctg:rho=0"], texts, out=tmp_path / "c", seeds=1, steps=4, batch=8, threads=1,
                    encoder=SPEC, console=console)
    assert [row["arm"] for row in study["rows"]] == ["bag of words", "simctg", "simctg:rho=0", f"random weights ({SPEC})"]
    assert study["rows"][0]["metrics"][study["metrics"][0]] == [1.0]
    assert study["verdict"][0].startswith("simctg: ") and "bag of words" in study["verdict"][0]
    assert study["rows"][1]["params"] > 5000 and (tmp_path / "c" / "report.html").exists()
    assert load(tmp_path / "c" / "encoders" / "simctg").dim == 16
