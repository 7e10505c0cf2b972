"""Strategies side by side on benchmark files: the references, what the figures are, going on, and bad input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_runs_decode import WORDS, saved
from test_runs_prompts import model as seeing  # noqa: F401
from test_runs_prompts import picture
from test_strategies import made

from notan.cli import main
from notan.errors import NotanError
from notan.runs import side_by_side
from notan.runs.decode import first_scores
from notan.runs.prompts import given_with
from notan.runs.reader import load
from notan.runs.side_by_side import compare_decoding
from notan.runs.tasks import Settings, sum_yes_no
from notan.strategies._reference import Reference, references
from notan.strategies._strategy import plausible

SPEAKS = ["yes" if w == "w3" else "no" if w == "w4" else w for w in WORDS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("models") / "speaks", words=SPEAKS)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


# -------------------------------------------------------------------------------------------------------------- references

def test_every_head_and_every_sum_has_its_row():
    strategies = {"vcd": made("vcd"), "ritual": made("ritual"), "icd": made("icd"), "lqcd": made("lqcd", beta=0.3),
                  "contrastive_search": made("contrastive_search"), "dola": made("dola", beta=0.0)}
    rows = references(strategies)
    assert list(rows) == ["model", "head 0.1", "head 0.1, T = 1/4", "head 0.1, uniform", "head 0.3", "lqcd's main stream alone",
                          "all tokens, uniform"]
    z = torch.randn(2, 9)
    assert torch.equal(rows["model"].combine([z], 0), z)
    cold = rows["head 0.1, T = 1/4"].combine([z], 0)
    torch.testing.assert_close(cold.softmax(1), (4 * z).masked_fill(~plausible(z, 0.1), -torch.inf).softmax(1))
    flat = rows["head 0.1, uniform"].combine([z], 0).softmax(1)
    torch.testing.assert_close(flat, plausible(z, 0.1) / plausible(z, 0.1).sum(1, keepdim=True))


# --------------------------------------------------------------------------------------------------------------- yes or no

def test_the_distribution_of_the_first_token_is_the_models(model):
    loaded, tokenizer = load(model)
    given = given_with(["w1 w2", "w7 w8 w9 w5"], None, 0)
    s = first_scores(Reference(), {"main": (loaded, tokenizer)}, given)
    for c, row in zip(given, s):
        with torch.no_grad():
            z = loaded(**tokenizer(c.prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
        torch.testing.assert_close(row, z, atol=1e-5, rtol=1e-5)


def test_the_figures_of_yes_and_no():
    rows = [{"truth": t, "yes": q, "said": 0.5, "drawn": q if t else 1 - q} for t, q in ((True, 0.9), (True, 0.2), (False, 0.4))]
    found = sum_yes_no(rows, Settings())
    assert found["accuracy, best"] == pytest.approx(2 / 3) and found["accuracy, drawn"] == pytest.approx((0.9 + 0.2 + 0.6) / 3)
    assert found["F1, best"] == pytest.approx(2 / 3) and found["yes, drawn"] == pytest.approx(0.5)
    assert found["yes, best"] == pytest.approx(1 / 3) and found["says yes or no"] == 0.5
    led = [r | {"neutral": r["yes"], "yes": q} for r, q in zip(rows, (0.1, 0.2, 0.6))]
    found = sum_yes_no(led, Settings())
    assert found["accuracy, neutral"] == pytest.approx(2 / 3) and found["accuracy, best"] == 0
    mute = [{"truth": t, "yes": math.nan, "said": 0.0, "drawn": 0.0} for t in (True, False)]
    assert sum_yes_no(mute, Settings())["accuracy, best"] == sum_yes_no(mute, Settings())["accuracy, drawn"] == 0
    assert found["introduced"] == 1 and found["corrected"] == 0 and found["changed"] == pytest.approx(2 / 3)


def test_pictures_are_asked_about_and_the_call_goes_on(seeing, tmp_path, monkeypatch, capsys):  # noqa: F811
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    words = seeing / "tokenizer.json"
    words.write_text(words.read_text().replace('"w3"', '"yes"').replace('"w4"', '"no"'))
    rows = [{"image": f"{i % 2}.png", "text": f"w{i + 6} w1", "label": "yes" if i % 3 else "no"} for i in range(5)]
    file = write(tmp_path / "pope.jsonl", rows)
    command = ["compare", "--decode", "vcd", "ritual:alpha=1", "--model", str(seeing), "--data", str(file), "--batch", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert all(row in said for row in ("model", "head 0.1", "T = 1/2", "vcd", "accuracy")) and "nan" not in said
    whole = json.loads((tmp_path / "out" / "decoding.json").read_text())
    assert whole["references"] == ["model", "head 0.1", "head 0.1, T = 1/2"] and whole["differences"]["model"] == [0, 0, 0]
    answers = tmp_path / "out" / "answers" / "vcd.jsonl"
    kept = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(kept[:3]) + kept[3][:9])                 # it was killed while it wrote the fourth
    asked = []
    measure = side_by_side.open_benchmark(file)[0].measure
    monkeypatch.setattr(side_by_side, "open_benchmark", lambda *a: _counted(asked, measure, file))
    again = compare_decoding(["vcd", "ritual:alpha=1"], file, str(seeing), out=tmp_path / "out", batch=2)
    for name, figures in again["figures"].items():
        assert figures == pytest.approx(whole["figures"][name], abs=1e-6)
    assert asked == [2] and len(answers.read_text().splitlines()) == 5


def _counted(asked, measure, file):
    from dataclasses import replace

    from notan.runs.questions import open_benchmark

    task, items = open_benchmark(file)
    return replace(task, measure=lambda s, r, some, how: asked.append(len(some)) or measure(s, r, some, how)), items


# ----------------------------------------------------------------------------------------------- given answers, open text

def test_truthfulqa_and_factor_as_they_come(model, tmp_path):
    csv = tmp_path / "truthful.csv"
    csv.write_text("Question,Best Answer,Correct Answers,Incorrect Answers\nw1 w2,w5.,w5.; w6.,w7.; w8.\nw2,w9.,w9.,w5.\n")
    found = compare_decoding(["icd", "lol"], csv, str(model), out=tmp_path / "a")
    assert found["task"].startswith("TruthfulQA") and set(found["figures"]["icd"]) >= {"MC1", "MC2 renormalised"}
    assert "lol's main stream alone" in found["references"] and 0 <= found["figures"]["model"]["MC2"] <= 1
    assert found["figures"]["model"]["MC2"] == pytest.approx(found["figures"]["model"]["MC2 renormalised"], abs=1e-5)
    csv = tmp_path / "factor.csv"
    csv.write_text("turncated_prefixes,completion,contradiction_0,contradiction_1,contradiction_2\nw1 w2 ,w5,w6,w7,w8\n")
    found = compare_decoding(["dola"], csv, str(model), out=tmp_path / "b")["figures"]["dola"]
    assert set(found) == {"mean", "sum", "mean renormalised", "sum renormalised"}


def test_open_text_with_a_judge(model, tmp_path):
    file = write(tmp_path / "prompts.jsonl", [{"prompt": "w1 w2"}, {"prompt": "w8 w6 w5"}])
    found = compare_decoding(["contrastive_search", "icd"], file, str(model), out=tmp_path / "out", judge=str(model),
                             max_new_tokens=12)
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers" / "contrastive_search.jsonl").read_text().splitlines()]
    assert [r["prompt"] for r in rows] == ["w1 w2", "w8 w6 w5"] and all(r["best"] == r["drawn"] for r in rows)
    assert found["figures"]["icd"]["words, best"] > 0 and found["figures"]["model"]["coherence, best"] < 0


# ---------------------------------------------------------------------------------------------------------------- bad input

def test_what_cannot_be_compared_is_named(model, tmp_path, capsys):
    file = write(tmp_path / "pope.jsonl", [{"image": "none.png", "text": "w1", "label": "yes"}])
    with pytest.raises(NotanError, match=r"item 1 is about none.png"):
        compare_decoding(["vcd"], file, str(model), out=tmp_path / "a")
    with pytest.raises(NotanError, match="no strategy 'vdc'"):
        compare_decoding(["vdc"], file, str(model), out=tmp_path / "a")
    with pytest.raises(NotanError, match="no setting 'alpah'"):
        compare_decoding(["vcd:alpah=2"], file, str(model), out=tmp_path / "a")
    with pytest.raises(NotanError, match="none was given"):
        compare_decoding(["contrastive_decoding"], file, str(model), out=tmp_path / "a")
    with pytest.raises(NotanError, match="has the keys a"):
        compare_decoding(["icd"], write(tmp_path / "x.jsonl", [{"a": 1}]), str(model), out=tmp_path / "a")
    assert main(["compare", "--decode", "icd", "--data", str(file)]) == 1 and "no model" in capsys.readouterr().err
    texts = write(tmp_path / "p.jsonl", [{"prompt": "w1"}])
    compare_decoding(["icd"], texts, str(model), out=tmp_path / "b", max_new_tokens=3)
    with pytest.raises(NotanError, match="answers of another call: its max_new_tokens is 3, now 4"):
        compare_decoding(["icd"], texts, str(model), out=tmp_path / "b", max_new_tokens=4)
    file = write(tmp_path / "yes.jsonl", [{"image": None, "query": "w1", "leading": "w2", "answer": "yes"}])
    with pytest.raises(NotanError, match="items 1 to 1: ContrastiveSearch chooses by looking ahead"):
        compare_decoding(["contrastive_search"], file, str(model), out=tmp_path / "c")
    with pytest.raises(NotanError, match="no token that says 'yes'"):
        compare_decoding(["icd"], file, str(saved(tmp_path / "mute")), out=tmp_path / "d")


def test_numbers_out_of_range_and_a_missing_preamble_are_named(model, tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1"}])
    for name, value in (("limit", 0), ("limit", -1), ("batch", 0), ("batch", -1), ("max_new_tokens", 0)):
        with pytest.raises(NotanError, match=f"{name} = {value}. Wanted: {name} of at least 1"):
            compare_decoding(["icd"], file, str(model), out=tmp_path / "a", **{name: value})
    assert not (tmp_path / "a").exists()
    command = ["compare", "--decode", "icd", "--model", str(model), "--data", str(file), "--out", str(tmp_path / "a")]
    assert main([*command, "--before", str(tmp_path / "none.txt")]) == 1 and "none.txt" in capsys.readouterr().err
    assert main([*command, "--batch", "0"]) == 1 and "batch = 0" in capsys.readouterr().err


def test_a_damaged_folder_is_named(model, tmp_path):
    file, out = write(tmp_path / "p.jsonl", [{"prompt": "w1"}]), tmp_path / "out"
    compare_decoding(["icd"], file, str(model), out=out, max_new_tokens=3)
    answers, kept = out / "answers" / "icd.jsonl", (out / "decoding.json").read_text()
    for damaged in ("{", "7\n", "[]\n", "\xff"):
        answers.write_bytes(damaged.encode("latin-1") + b"\n")
        with pytest.raises(NotanError, match=r"icd\.jsonl is damaged"):
            compare_decoding(["icd"], file, str(model), out=out, max_new_tokens=3)
    answers.unlink()
    for damaged in (kept[:50], "7", ""):
        (out / "decoding.json").write_text(damaged)
        with pytest.raises(NotanError, match=r"decoding\.json is not a record"):
            compare_decoding(["icd"], file, str(model), out=out, max_new_tokens=3)


def test_what_is_not_known_is_a_dash(model, tmp_path, capsys):
    """One item has no interval, and a text of three words no repetition of four."""
    file = write(tmp_path / "p.jsonl", [{"prompt": "w1"}])
    command = ["compare", "--decode", "icd", "--model", str(model), "--data", str(file), "--max-new-tokens", "3"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "nan" not in capsys.readouterr().out
