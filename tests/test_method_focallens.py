"""FocalLens: what an instruction does to a picture's vector, what learns of it, and which rows come together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_nets_dual import saved_hub

from notan.data import keys
from notan.errors import NotanError
from notan.methods import focallens
from notan.methods._asked import together
from notan.methods._contrast import both_ways, both_ways_by_label
from notan.methods._example import images, texts, tiny_dual_encoder, tiny_text_encoder
from notan.methods._pairs import whole
from notan.methods._progress import Progress
from notan.methods.focallens import FocalLens
from notan.nets import vit
from notan.nets.convnet import ConvNet
from notan.nets.dual import Dual, head, released
from notan.nets.vit import ViT

NOW = Progress(step=1, steps=2, epoch=0, epochs=1)
X = images(6)["image"] / 255.0
ASKED = ["what is it", "how many", "which colour is it", "what is it", "how many", "where is it"]


def made(which: str, folder, **settings) -> FocalLens:
    if which == "clip":
        saved_hub(folder)
        model = released(str(folder))
    else:
        torch.manual_seed(0)
        model = tiny_dual_encoder()
    torch.manual_seed(1)
    return FocalLens(model, **settings).double().eval()


def hides_last(monkeypatch, count: int) -> None:
    """No token sees the last `count` of a longer sequence, the condition tokens."""
    whole = vit.attention

    def attention(q, k, v, dropout=0.0, *, causal=False, shown=None):
        cut = k.shape[2] - (0 if causal else count)
        return whole(q, k[:, :, :cut], v[:, :, :cut], dropout, causal=causal, shown=shown)

    monkeypatch.setattr(vit, "attention", attention)


# ---- what an instruction does ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("which", ["ours", "clip"])
def test_without_an_instruction_it_is_the_model_bit_for_bit(which, tmp_path):
    method = made(which, tmp_path)
    batch = {"image": (X * 255).round().to(torch.uint8), "row": torch.arange(6)}
    x = whole(batch, 16)
    assert torch.equal(method.encode(batch)["image"], method.model.image(x)) and set(method.encode(batch)) == {"image"}
    both = method.encode({**batch, "instruction": ASKED, "text": texts(6)["text"]})
    assert (both["image"] - method.model.image(x)).abs().max() > 1e-6
    assert torch.equal(both["text"], method.model.text(texts(6)["text"]))
    assert torch.equal(method.encode({"answer": ASKED, "text": texts(6)["text"]})["text"], method.model.text(ASKED))


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_condition_that_nothing_sees_changes_nothing(monkeypatch, pool):
    torch.manual_seed(0)
    model = Dual(ViT(16, patch=4, dim=32, depth=3, heads=2, pool=pool), tiny_text_encoder(), head(32, 8), head(32, 8), tau=0.1)
    method = FocalLens(model, conditions=3).double().eval()
    plain, seen = model.image(X.double()), method.focused(X.double(), ASKED)
    assert (seen - plain).abs().max() > 1e-5
    c = method.tokens(ASKED)
    hides_last(monkeypatch, 3)
    torch.testing.assert_close(model.image(X.double(), None, (c,)), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["ours", "clip"])
def test_it_depends_on_the_instruction_and_on_the_picture(which, tmp_path):
    method = made(which, tmp_path)
    x = X.double()
    same = [method.focused(x, [text] * 6) for text in ("what is it", "how many", "what is it")]
    assert torch.equal(same[0], same[2])
    assert (same[0] - same[1]).abs().amax(1).min() > 1e-6
    swapped = method.focused(x, [*ASKED[1:3], ASKED[0], *ASKED[3:]])
    kept = (swapped - method.focused(x, ASKED)).abs().amax(1) < 1e-9
    assert kept.tolist() == [False] * 3 + [True] * 3                    # each row has its own
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    torch.testing.assert_close(method.focused(x[order], ["how many"] * 6), same[1][order], rtol=1e-9, atol=1e-9)
    assert (same[1] - same[1].roll(1, 0)).abs().amax(1).min() > 1e-6
    with torch.no_grad():
        method.condition.weight.zero_()                                 # W = 0: every instruction is b
    torch.testing.assert_close(method.focused(x, ASKED), method.focused(x, ["how many"] * 6), rtol=0, atol=0)


def test_an_instruction_is_no_patch():
    method = made("ours", None, conditions=2)
    encoder = method.model.image_encoder
    with torch.no_grad():
        encoder.pos_embed.zero_()
    patches = X.double().unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)  # (B, C, N, 4, 4)
    moved = patches[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(0))].unflatten(2, (4, 4))
    moved = moved.permute(0, 1, 2, 4, 3, 5).reshape(6, 3, 16, 16)
    assert (moved - X).abs().max() > 0.1
    torch.testing.assert_close(method.focused(moved, ASKED), method.focused(X.double(), ASKED), rtol=1e-9, atol=1e-9)
    c = method.tokens(ASKED)
    assert encoder.states(X.double(), None, (c,)).shape[1] == 1 + 16 + 2 == encoder.states(X.double()).shape[1] + 2
    for block in encoder.blocks:                                        # blocks that add nothing: tokens stay where they are
        for linear in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
    states = encoder.states(X.double(), None, (c,))
    torch.testing.assert_close(states[:, 0], encoder.norm(encoder.cls_token[:, 0].expand(6, -1)))
    torch.testing.assert_close(states[:, -2:], encoder.norm(c))


# ---- what learns -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("which", ["ours", "clip"])
def test_the_picture_side_learns_and_the_text_side_does_not(which, tmp_path):
    method = made(which, tmp_path)
    batch = {"image": X.double(), "instruction": ASKED, "answer": texts(6)["text"]}
    method.loss(batch, NOW)["loss"].backward()
    for name, p in method.named_parameters():
        if name.startswith(("model.image_", "condition.", "log_scale")):
            assert p.requires_grad and p.grad is not None, name
        else:
            assert not p.requires_grad and p.grad is None, name
    assert method.condition.weight.grad.abs().max() > 0 and method.condition.bias.grad.abs().max() > 0
    assert method.model.image_head.weight.grad.abs().max() > 0 and method.log_scale.grad.abs() > 0


def test_vectors_have_unit_length_in_the_loss():
    method, batch = focallens.example(8, torch.float64)
    before = method.loss(batch, NOW)["loss"]
    z = method.focused(batch["image"].double() / 255, batch["instruction"])
    with torch.no_grad():
        method.model.image_head.weight.mul_(7)
        method.model.text_head.weight.mul_(3)
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], before)
    assert (method.focused(batch["image"].double() / 255, batch["instruction"]) / z - 7).abs().max() < 1e-6
    assert (method.words(["a", "b"]).norm(dim=1) - 1).abs().max() < 1e-12


def test_the_loss_is_a_cross_entropy_with_equal_answers_sharing_the_target():
    method, batch = focallens.example(8, torch.float64)
    batch["answer"] = ["Yes.", "a dog", "yes", "two", "A dog!", " YES ", "no", "red"]
    z = F.normalize(method.focused(batch["image"].double() / 255, batch["instruction"]), dim=1)
    u = method.words(batch["answer"])
    kind = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])
    target = (kind[:, None] == kind).double()
    target = target / target.sum(1, keepdim=True)
    s = z @ u.T / method.tau
    wanted = (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], wanted)
    method.equal_answers = False
    own = torch.arange(8)
    torch.testing.assert_close(method.loss(batch, NOW)["loss"], (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2)


def test_what_collapsed_vectors_cost():
    u, one = torch.eye(8, dtype=torch.float64), torch.ones(8, 8, dtype=torch.float64)
    apart, together_ = torch.arange(8), torch.zeros(8, dtype=torch.long)
    for loss in (both_ways(one, u, tau=0.1), both_ways_by_label(one, u, apart, tau=0.1)):
        assert loss.item() == pytest.approx(math.log(8))                # all z equal, all answers distinct
    z = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert both_ways_by_label(one, one, together_, tau=0.1).item() == pytest.approx(math.log(8))
    assert both_ways_by_label(z, u, together_, tau=0.1).item() > math.log(8) + 0.1      # equal answers, logits that differ
    torch.testing.assert_close(both_ways_by_label(z, u, apart, tau=0.1), both_ways(z, u, tau=0.1), rtol=1e-12, atol=1e-12)


def test_the_temperature_begins_where_the_model_is_and_has_an_end():
    method, _ = focallens.example(4, torch.float64)
    assert method.tau.item() == pytest.approx(0.1)
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    assert method.tau.item() == pytest.approx(0.01)
    model = tiny_dual_encoder()
    model.log_scale.data.fill_(7.0)
    method = FocalLens(model)
    assert method.tau.item() == pytest.approx(0.01) and method.log_scale.item() == pytest.approx(math.log(100))  # not stuck


def test_the_condition_learns_at_its_own_pace_and_begins_the_same():
    tokens = {}
    for pace in (1.0, 10.0):
        method = made("ours", None, pace=pace)
        before = method.tokens(ASKED).detach()
        optimiser = torch.optim.Adam(method.parameters(), lr=1e-4)
        method.loss({"image": X.double(), "instruction": ASKED, "answer": texts(6)["text"]}, NOW)["loss"].backward()
        optimiser.step()
        tokens[pace] = before, method.tokens(ASKED).detach() - before
    torch.testing.assert_close(tokens[1.0][0], tokens[10.0][0])
    torch.testing.assert_close(10 * tokens[1.0][1], tokens[10.0][1], rtol=1e-3, atol=1e-9)


def test_odd_ones_are_refused():
    conv = Dual(ConvNet(image_size=16, channels=3), tiny_text_encoder(), head(256, 8), head(32, 8), tau=0.1)
    with pytest.raises(NotanError, match="ConvNet, which has no tokens"):
        FocalLens(conv)
    for setting in ("conditions", "turns"):
        with pytest.raises(NotanError, match=f"{setting} = 0"):
            FocalLens(tiny_dual_encoder(), **{setting: 0})
    with pytest.raises(NotanError, match=r"pace = 0"):
        FocalLens(tiny_dual_encoder(), pace=0.0)


# ---- which rows come together ----------------------------------------------------------------------------------------------

def mates(plan: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """How many rows of each batch show a picture that another of its rows shows."""
    return np.array([(np.unique(picture[rows], return_inverse=True, return_counts=True)[2][
        np.unique(picture[rows], return_inverse=True)[1]] > 1).sum() for rows in plan])


@pytest.mark.parametrize(("counts", "turns", "batch"), [([4] * 50, 2, 20), ([6] * 30, 3, 18), ([5] * 40, 2, 16),
                                                          ([1, 2, 3, 7] * 20, 2, 15), ([3] * 9, 3, 4)])
def test_rows_of_a_picture_come_in_groups(counts, turns, batch):
    picture = np.repeat(np.arange(len(counts)) * 7 - 20, counts)[keys.shuffle(5, 0, sum(counts))]
    plans = [together(picture, batch, turns, seed=3, epoch=epoch) for epoch in range(3)]
    groups = sum(c // turns for c in counts)
    k = max(min(batch * groups // len(picture), batch // turns), 1)
    for plan in plans:
        assert plan.shape == plans[0].shape and plan.shape[1] == batch and len(np.unique(plan)) == plan.size
        assert (mates(plan, picture) >= k * turns).all()
        grouped = picture[plan[:, : k * turns]].reshape(len(plan), k, turns)
        assert (grouped == grouped[..., :1]).all()
    assert not np.array_equal(plans[0], plans[1])
    assert np.array_equal(plans[0], together(picture, batch, turns, seed=3, epoch=0))
    if set(counts) == {4}:
        assert len(plans[0]) == 10 and all(np.array_equal(np.sort(p.ravel()), np.arange(200)) for p in plans)


def test_without_pictures_to_tell_rows_fall_as_they_do():
    method, _ = focallens.example(4, torch.float32)
    rows = {"row": np.arange(40)}
    plan = method.batches(rows, 8, 0, 1)
    assert plan.shape == (5, 8) and np.array_equal(np.sort(plan.ravel()), np.arange(40))
    single = np.arange(40)                                              # every picture once
    assert together(single, 8, 2, 0, 1).shape == (5, 8)
    asked = method.batches({**rows, "picture_id": np.arange(40) // 4}, 8, 0, 1)
    assert (mates(asked, np.arange(40) // 4) == 8).all()
    method.turns = 1
    assert np.array_equal(method.batches({**rows, "picture_id": np.arange(40) // 4}, 8, 0, 1), plan)
    with pytest.raises(NotanError, match="a batch of 1 rows for 2 rows of a picture"):
        together(single, 1, 2, 0, 0)
