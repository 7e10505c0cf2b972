"""Conditional retrieval, galleries of a query's own, and a caption or its false twin: by hand, by scikit-learn, end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from test_data_instructions import COLOUR, coloured

from notan import cli, train
from notan.data import Rows
from notan.data.instructions import Question, instructed, write
from notan.errors import NotanError
from notan.probes.conditional import both_of_two, own_gallery, same_value, true_or_false
from notan.runs.conditional import conditional

HEIGHT = Question(("how high is it?", "name its height"), ("low", "middle", "high"))


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- retrieval of equal values -----------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(4, 12))
def test_the_average_precision_is_scikit_learns(seed, n):
    z, values = randn(n, 5, seed=seed), torch.arange(n) % 3 // 2        # two of three are 0
    found = same_value(z, values)
    s = torch.nn.functional.normalize(z.double(), dim=1)
    s = s @ s.T
    wanted, shares = [], []
    for i in range(n):
        others = torch.arange(n) != i
        right = values[others] == values[i]
        if right.any():
            wanted.append(average_precision_score(right.numpy(), s[i, others].numpy()))
            shares.append(float(right.double().mean()))
    assert found["map"] == pytest.approx(np.mean(wanted)) and found["chance"] == pytest.approx(np.mean(shares))
    assert found["n"] == len(wanted)


def test_separate_values_give_one_and_equal_features_find_the_last():
    values = torch.arange(12) % 3
    found = same_value(torch.eye(3)[values] + 0.01 * randn(12, 3), values)
    assert found["map"] == found["scaled"] == 1 and found["chance"] == pytest.approx(3 / 11)
    lost = same_value(torch.ones(12, 4), values)                        # 8 others come first
    assert lost["map"] == pytest.approx(np.mean([1 / 9, 2 / 10, 3 / 11])) and lost["scaled"] < 0
    noise = same_value(randn(3000, 16), torch.arange(3000) % 5)
    assert abs(noise["scaled"]) < 0.01
    many = same_value(randn(1100, 8, seed=3).repeat_interleave(2, 0)[:1100], torch.arange(1100) // 2)   # more than a block
    assert many["map"] == pytest.approx(1) and many["n"] == 1100


def test_some_rows_may_look_among_all():
    z, values = randn(40, 4), torch.arange(40) % 4
    some = torch.arange(40) % 5 == 0
    found = same_value(z, values, queries=some)
    parts = [same_value(z, values, queries=torch.arange(40) == i)["map"] for i in range(0, 40, 5)]
    assert found["map"] == pytest.approx(np.mean(parts)) and found["n"] == 8
    assert same_value(z, values, queries=torch.ones(40, dtype=torch.bool))["map"] == same_value(z, values)["map"]


def test_unknown_values_take_no_part():
    z, values = randn(9, 4), torch.tensor([0, 0, 1, 1, -1, -1, 2, 0, 1])
    known = values >= 0
    a, b = same_value(z, values), same_value(z[known], values[known])
    assert a["map"] == b["map"] and a["n"] == b["n"] == 6               # the one of value 2 has nobody to find


@pytest.mark.parametrize("values", [torch.arange(5), torch.zeros(5, dtype=torch.long), torch.full((5,), -1)])
def test_nothing_to_find_is_refused(values):
    with pytest.raises(NotanError, match="two values or more"):
        same_value(randn(5, 3), values)
    with pytest.raises(NotanError, match="4 values"):
        same_value(randn(5, 3), torch.arange(4))


# ---- a gallery of one's own, and two captions --------------------------------------------------------------------------------

def test_a_gallery_of_ones_own_by_hand():
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]).expand(3, 3, 2)
    found = own_gallery(queries, gallery, torch.tensor([0, 1, 0]))
    assert (found["r1"], found["r2"], found["r3"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert found["chance"] == pytest.approx(1 / 3) and found["n"] == 3
    equal = own_gallery(torch.ones(4, 2), torch.ones(4, 5, 2), torch.arange(4), at=(1, 4, 5))
    assert (equal["r1"], equal["r4"], equal["r5"]) == (0, 0, 1)
    with pytest.raises(NotanError, match="two or more each"):
        own_gallery(queries, gallery[:, :1], torch.zeros(3, dtype=torch.long))


def test_the_nearer_caption_by_hand():
    z, true = torch.eye(4), torch.eye(4) * 3
    false = torch.eye(4).roll(1, 0)
    false[3] = 5 * true[3]                                              # as near: wrong
    assert true_or_false(z, true, false)["accuracy"] == 0.75
    found = true_or_false(z, true, false, ["swap", "swap", "add", "add"])
    assert found["by_group"] == {"swap": 1.0, "add": 0.5} and found["accuracy"] == 0.75
    assert true_or_false(z, true, false, ["a", "a", "a", "b"])["accuracy"] == 0.5       # the mean over groups
    assert true_or_false(z, z, z)["accuracy"] == 0
    with pytest.raises(NotanError, match="false caption features"):
        true_or_false(z, z, z[:3])


def test_a_pair_counts_where_both_texts_pick_their_picture():
    z = torch.eye(4).unflatten(0, (2, 2))                               # two pairs of pictures
    found = both_of_two(z, z)
    assert found["accuracy"] == 1 and found["chance"] == 0.25 and found["n"] == 2
    half = torch.stack([z[0, 0], 0.9 * z[0, 0] + 0.1 * z[0, 1]])[None]  # both texts pick the first picture
    assert both_of_two(z[:1], half)["accuracy"] == 0
    assert both_of_two(z, z.flip(1))["accuracy"] == 0 and both_of_two(torch.ones(2, 2, 4), z)["accuracy"] == 0  # ties
    texts = torch.cat([z[:1], z[1:].flip(1)])
    found = both_of_two(z, texts, ["number", "colour"])
    assert found["by_group"] == {"number": 1.0, "colour": 0.0} and found["accuracy"] == 0.5
    many = both_of_two(torch.randn(4000, 2, 8, generator=torch.Generator().manual_seed(0)), randn(4000, 2, 8, seed=1))
    assert abs(many["accuracy"] - 0.25) < 0.03
    with pytest.raises(NotanError, match=r"text features of shape \(2, 4\)"):
        both_of_two(z, z[0])
    with pytest.raises(NotanError, match="1 groups for 2 rows"):
        both_of_two(z, z, ["a"])


# ---- encoders that listen, and those that do not -----------------------------------------------------------------------------

def oracle(kind: str):
    """Features of the coloured pictures: what is asked for, all of it, or the instruction's own words."""
    def encode(batch):
        image = batch["image"].float() / 255
        colour = torch.nn.functional.one_hot(image[:, :, -1, -1].argmax(1), 3).float()
        height = torch.nn.functional.one_hot((image[:, :, :, 0].min(1).values == 1).sum(1).div(2).long() - 1, 3).float()
        said = (batch.get("instruction") or [""])[0]
        if kind == "listens":
            return {"image": height if "high" in said or "height" in said else colour, "text": colour}
        if kind == "deaf":
            return torch.cat([colour, height], 1)
        return torch.ones(len(image), 2) * len(said)                    # blind: knows the question and no picture
    return encode


@pytest.mark.parametrize("form", ["triples", "attributes"])
def test_it_shows_who_listens(form, tmp_path):
    data = coloured(tmp_path, 540)
    asked = ["which colour?", "how high is it?"]
    data, said = (instructed(data, [COLOUR._replace(asked=asked[:1]), HEIGHT._replace(asked=asked[1:])]), []) \
        if form == "triples" else (data, asked)
    listens, deaf, blind = (conditional(oracle(kind), data, 300, said) for kind in ("listens", "deaf", "blind"))
    assert set(listens) == {*asked, "all instructions"}
    assert "another instruction: 'how high" in str(listens["which colour?"]["protocol"])
    assert listens["all instructions"]["scaled"] == 1 and listens["all instructions"]["wrong"] < 0.2
    assert listens["which colour?"]["without"] == 1 and listens["how high is it?"]["without"] < 0.2
    for name, r in deaf.items():
        assert r["scaled"] == r["wrong"] == r["without"] > 0.2, name
    assert blind["all instructions"]["scaled"] < 0 and blind["all instructions"]["scaled"] == blind["all instructions"]["wrong"]


def test_the_other_instruction_is_no_wording_of_the_same(tmp_path):
    data = instructed(coloured(tmp_path, 540), [COLOUR, HEIGHT])
    found = conditional(oracle("deaf"), data, 10_000)
    assert len(found) == 6
    for asked in (*COLOUR.asked, *HEIGHT.asked):
        others = HEIGHT.asked if asked in COLOUR.asked else COLOUR.asked
        assert any(repr(other) in str(found[asked]["protocol"]) for other in others)


def test_what_cannot_be_asked_is_refused(tmp_path):
    data = coloured(tmp_path, 60)
    with pytest.raises(NotanError, match="1 instructions for 2 attributes"):
        conditional(oracle("deaf"), data, 60, ["which colour?"])
    with pytest.raises(NotanError, match="has 0 instructions that 20 of 24"):
        conditional(oracle("deaf"), instructed(data, [COLOUR, HEIGHT]), 60)
    rows = Rows({"image": data.test.stores["image"]}, data.test.index)
    with pytest.raises(NotanError, match="instruction and answer"):
        conditional(oracle("deaf"), replace(data, test=rows, info=replace(data.info, columns=("image",))), 60)


def test_a_run_learns_to_listen_from_files_and_from_another_run(tmp_path, monkeypatch, capsys):
    """notan train clip; notan train focallens --model RUN; notan probe --protocol conditional."""
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "home"))
    data = coloured(tmp_path, 450)
    words = [f"a {COLOUR.answers[c]} one, {HEIGHT.answers[h]}" for c, h in data.train.stores["attributes"].astype(int).tolist()]
    pairs = Rows({"image": data.train.stores["image"], "text": words}, data.train.index)
    told = replace(data, train=pairs, test=pairs, info=replace(data.info, columns=("image", "text"), classes=()))
    towers = {"image_encoder": "vit:patch=4,dim=32,depth=2,heads=2", "text_encoder": "text:dim=32,depth=1,heads=2,context=12"}
    train("clip", told, out=tmp_path / "clip", steps=25, batch=48, lr=3e-3, encoder=towers, threads=1, settings={"dim": 32})
    folder = write(instructed(data, [COLOUR, HEIGHT]), tmp_path / "asked")
    run = tmp_path / "run"
    assert cli.main(["train", "focallens", "--data", str(folder), "--model", str(tmp_path / "clip"), "--steps", "150",
                     "--batch", "48", "--lr", "1e-3", "--threads", "1", "--out", str(run), "--precision", "fp32"]) == 0
    capsys.readouterr()
    assert cli.main(["probe", str(run), "--protocol", "conditional", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["all instructions"]
    assert found["scaled"] > 0.85 and found["wrong"] < found["scaled"] - 0.3 and found["without"] < 0.8, found
    assert cli.main(["probe", str(run), "--protocol", "conditional"]) == 0
    assert "all instructions: mAP" in capsys.readouterr().out
