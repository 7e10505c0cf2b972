"""CoOp: a context that begins as words, that alone learns, and that classes not seen in training are read with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_method_disa import INFO, TOWER, drawn
from test_nets_dual import saved_hub

from notan import train
from notan.errors import NotanError
from notan.methods import coop
from notan.methods._example import images, tiny_dual_encoder, tiny_text_encoder
from notan.methods._pairs import cropped, whole
from notan.methods.coop import CoOp
from notan.nets.convnet import ConvNet
from notan.nets.dual import Dual, head, released
from notan.nets.prompted import word_vectors

NAMES = list(INFO.classes)


@pytest.mark.parametrize("which", ["ours", "clip", "conv"])
def test_it_begins_at_the_sentence_and_only_the_context_learns(which, tmp_path):
    if which == "clip":
        saved_hub(tmp_path)
    heads = head(256, 16), head(32, 16)
    made = {"ours": tiny_dual_encoder, "clip": lambda: released(str(tmp_path)),
            "conv": lambda: Dual(ConvNet(image_size=16, channels=3), tiny_text_encoder(), *heads, tau=0.1)}
    base = made[which]().double().eval()
    context = len(word_vectors(base.text_encoder, "a b of"))
    method, batch = CoOp(base, data=INFO, prompts=context, template="a b of {}.", crop=0.5).double(), images(8)
    x = cropped(batch, 16, scale=0.5, flip=0.5).double()
    f, g = F.normalize(base.image(x), dim=1), F.normalize(base.text([f"a b of {name}." for name in NAMES]), dim=1)
    out = method.loss(batch, None)
    torch.testing.assert_close(out["loss"], F.cross_entropy(f @ g.T / base.tau, batch["label"]), rtol=1e-6, atol=1e-9)
    assert out["accuracy"] == ((f @ g.T).argmax(1) == batch["label"]).double().mean()
    out["loss"].backward()
    moved = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    assert list(moved) == ["model.text_prompts.0"] and moved["model.text_prompts.0"].shape == (1, context, base.text_encoder.dim)


def test_the_paper_s_context_is_sixteen_vectors_for_all_classes():
    method, _ = coop.example(8, torch.float32)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 4 * 32
    wide = CoOp(tiny_dual_encoder(), data=INFO, template="a {}")
    with pytest.raises(NotanError, match="places of 16 tokens"):
        wide.loss(images(8), None)                                      # 16 vectors, and room for 14 tokens
    with pytest.raises(NotanError, match="prompts"):
        CoOp(tiny_dual_encoder(), data=INFO, prompts=0)


def test_the_context_stands_before_new_names():
    method, _ = coop.example(8, torch.float32)
    z = method.encode({"text": ["a bird", "cat"]})["text"]
    with torch.no_grad():
        method.model.text_prompts[0].normal_(generator=torch.Generator().manual_seed(0))
    moved = method.encode({"text": ["a bird", "cat"]})["text"]
    assert (moved - z).abs().amax(1).min() > 1e-3
    assert torch.equal(method.encode({"image": images(3)["image"]})["image"], method.model.base.image(whole(images(3), 16)))


def test_a_run_fits_its_classes(tmp_path):
    run = train("coop", drawn(), out=tmp_path / "run", steps=40, batch=24, lr=0.2, encoder=TOWER, threads=1, log_every=1,
                settings={"prompts": 4, "crop": 0.8, "flip": 0.0})
    losses = [r["loss"] for r in run.metrics() if "loss" in r]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.1
    moved, still = run.method().model, train("coop", drawn(), out=tmp_path / "still", steps=0, batch=24, encoder=TOWER, threads=1,
                                             settings={"prompts": 4, "crop": 0.8, "flip": 0.0}).method().model
    assert all(torch.equal(p, q) for p, q in zip(moved.base.parameters(), still.base.parameters()))
    assert not torch.equal(moved.text_prompts[0], still.text_prompts[0])
