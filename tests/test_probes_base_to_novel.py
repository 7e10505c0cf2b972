"""Base to novel: which classes are which, among which names a picture is sought, and what a run says beside its frozen model."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from test_method_disa import TOWER, drawn

from notan import train
from notan.cli import main
from notan.errors import NotanError
from notan.methods._pairs import whole
from notan.probes.base_to_novel import base_to_novel, harmonic
from notan.probes.zero_shot import class_features, zero_shot
from notan.runs.probe import print_results, probe
from notan.runs.words import learned


def test_the_harmonic_mean_of_the_literature():
    assert harmonic(84.21, 71.79) == pytest.approx(77.51, abs=0.005)
    assert harmonic(69.34, 74.22) == pytest.approx(71.70, abs=0.005)
    assert harmonic(0.0, 0.0) == 0.0 and harmonic(1.0, 0.0) == 0.0


def test_each_half_is_sought_among_its_own_names():
    """Five classes: three base, two novel. Every picture is nearest to a class of the other half, which does not count."""
    classes = torch.eye(6, dtype=torch.float64)[:5]
    labels = torch.tensor([0, 1, 2, 0, 3, 4, 4, 3])
    images = classes[labels].clone()
    images[:4] += 5 * classes[4]
    images[4:] += 5 * classes[0]
    images[3] += 2 * classes[1]                                         # wrong among base
    images[7] += 2 * classes[4]                                         # wrong among novel
    assert zero_shot(images, labels, classes)["accuracy"] == 0
    found = base_to_novel(images, labels, classes)
    assert (found["base"], found["novel"], found["base_n"], found["novel_n"], found["n"]) == (0.75, 0.75, 4, 4, 8)
    assert found["harmonic"] == pytest.approx(0.75)
    assert "nearest of the 3 base or 2 novel classes" in str(found["protocol"])
    images[3] -= 2 * classes[1]
    assert base_to_novel(images, labels, classes)["harmonic"] == pytest.approx(2 * 0.75 / 1.75)


def test_what_has_no_halves_is_refused():
    classes = images = torch.eye(4, dtype=torch.float64)
    with pytest.raises(NotanError, match="2 classes"):
        base_to_novel(images[:2], torch.tensor([0, 1]), classes[:2])
    with pytest.raises(NotanError, match="no picture of the novel classes"):
        base_to_novel(images, torch.tensor([0, 1, 1, 0]), classes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place, options = tmp_path_factory.mktemp("novel"), {"steps": 3, "batch": 4, "encoder": TOWER, "threads": 1}
    return {slug: train(slug, drawn(), out=place / slug, settings={"shots": 2, "classes": "base", **more}, **options)
            for slug, more in (("disa", {}), ("coop", {"prompts": 4}))}


@pytest.mark.parametrize("slug", ["disa", "coop"])
def test_a_run_stands_beside_its_frozen_model(slug, runs):
    data = drawn()
    found = probe(runs[slug].path, data, protocols=["basetonovel", "zeroshot"])
    assert list(found) == ["zero-shot", "base to novel", "base to novel, frozen"]
    method = runs[slug].method()
    batch = data.test.take(np.arange(len(data.test)))
    y = batch["label"]
    for name, model, prompt in (("base to novel", method.model, "{}"),
                                ("base to novel, frozen", method.model.base, "a photo of a {}.")):
        with torch.no_grad():
            classes = class_features(model.text, data.info.classes, [prompt])
            wanted = base_to_novel(model.image(whole(batch, 16)), y, classes)
        assert {k: found[name][k] for k in ("base", "novel", "harmonic")} == {k: wanted[k] for k in ("base", "novel", "harmonic")}
        assert f"prompts '{prompt}'" in found[name]["protocol"]
    print_results(found, Console(file=(said := io.StringIO()), width=200))
    assert "base to novel, frozen: base 0." in said.getvalue() and "harmonic mean" in said.getvalue()


def test_learned_prompts_meet_the_classes_of_other_data(runs):
    data = drawn()
    other = replace(data, info=replace(data.info, name="other", classes=("tree", "bell", "key", "a cup")))
    found = probe(runs["disa"].path, other, protocols=["zeroshot"])["zero-shot"]
    method, batch = runs["disa"].method(), data.test.take(np.arange(len(data.test)))
    z = method.encode({"image": batch["image"], "text": list(other.info.classes)})
    right = (torch.nn.functional.normalize(z["image"]) @ torch.nn.functional.normalize(z["text"]).T).argmax(1) == batch["label"]
    assert found["accuracy"] == pytest.approx(right.double().mean().item()) and "prompts '{}'" in found["protocol"]
    asked = probe(runs["disa"].path, other, protocols=["zeroshot"], prompts=["my {}"])["zero-shot"]
    assert "prompts 'my {}'" in asked["protocol"]
    saved = probe(runs["disa"].path / "model", other, protocols=["zeroshot"])["zero-shot"]
    assert saved["accuracy"] == found["accuracy"] and learned(runs["disa"].path / "model").config["texts"] == 4


def test_the_command_knows_it(capsys):
    with pytest.raises(SystemExit):
        main(["probe", "--help"])
    assert "basetonovel" in capsys.readouterr().out
