"""Hydra: gated similarities, pairs of classes, the momentum form, and the map of its gates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contracts import HALFWAY, ROWS, loss_of, rows_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from notan import cli
from notan.data import DataInfo
from notan.errors import NotanError
from notan.inspectors import gates
from notan.inspectors._example import Gated, pictures
from notan.losses.gated import flat, paired, renormed
from notan.losses.info_nce import info_nce
from notan.methods import hydra, hydra_momentum
from notan.methods._contrast import one_way
from notan.methods.hydra import Hydra, partners
from notan.nets.gate import PairGate
from notan.nets.vit import ViT

FORMS = [renormed, flat]


def waves(*shape: int, a: float, b: float = 0.0) -> Tensor:
    return torch.sin(a * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) + b).view(shape)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(n=6, m=9, d=5, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    own, other, keys = (torch.randint(0, classes, (k,), generator=g) for k in (n, n, m))
    return drawn(n, d, seed=seed), drawn(m, d, seed=seed + 1), torch.sigmoid(drawn(n, d, seed=seed + 2)), own, other, keys


def by_rows(q, k, g, own, other, keys, tau, similarity):
    """The definition, a row and a positive at a time."""
    s = similarity(q, k, g) / tau
    sums = []
    for b in range(len(q)):
        away = s[b, (keys != own[b]) & (keys != other[b])]
        sums.append(sum((torch.logsumexp(torch.cat([l[None], away]), 0) - l for l in s[b, keys == other[b]]), s.new_zeros(())))
    return torch.stack(sums)


# ---------------------------------------------------------------------------------------------------------------- loss

@pytest.mark.parametrize("similarity,value", [(renormed, 6.9602142665), (flat, 2.8704034779)])
def test_golden_values(similarity, value):
    q, k, g = waves(6, 4, a=0.37), waves(8, 4, a=0.53, b=1), torch.sigmoid(waves(6, 4, a=0.71, b=0.5))
    y1, y2, keys = (torch.tensor(y) for y in ([0, 0, 1, 1, 2, 2], [1, 2, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2, 3, 3]))
    sums, counts = paired(q, k, g, y1, y2, keys, tau=0.1, similarity=similarity)
    assert counts.tolist() == [2] * 6
    assert float((sums / (counts.double() + 1e-6)).mean()) == pytest.approx(value, abs=1e-9)   # the released code has the 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 10), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.integers(1, 30))
def test_any_pairs_in_tiles_of_any_size(n, m, d, classes, seed, tile):
    x = case(n, m, d, classes, seed)
    for similarity in FORMS:
        sums, counts = paired(*x, tau=0.3, similarity=similarity, tile=tile)
        torch.testing.assert_close(sums, by_rows(*x, 0.3, similarity))
        assert counts.tolist() == [(x[5] == other).sum().item() for other in x[4]]


@pytest.mark.parametrize("similarity", FORMS)
def test_without_the_large_tensor_it_is_the_same(similarity):
    q, k, g, *_ = case(d=7)
    if similarity is renormed:
        whole = F.cosine_similarity(g[:, None] * q[:, None], g[:, None] * k[None], dim=2)
    else:
        whole = torch.einsum("bd,bd,nd->bn", g.square(), F.normalize(q, dim=1), F.normalize(k, dim=1))
    torch.testing.assert_close(similarity(q, k, g), whole)


@pytest.mark.parametrize("similarity", FORMS)
def test_gradients(similarity):
    q, k, g, own, other, keys = case(5, 6, 3)
    q, k, g = (x.requires_grad_() for x in (q, k, g))

    def loss(*x):
        return paired(*x, own, other, keys, tau=0.5, similarity=similarity, tile=12)[0]

    assert torch.autograd.gradcheck(loss, (q, k, g))


def test_the_scale_of_a_gate_counts_in_one_form_alone():
    q, k, g, *_ = case()
    torch.testing.assert_close(renormed(q, k, 0.3 * g), renormed(q, k, g))
    assert not torch.allclose(flat(q, k, 0.3 * g), flat(q, k, g))
    assert (flat(q, k, g).abs() <= g.square().amax(1, keepdim=True) + 1e-12).all()


@pytest.mark.parametrize("similarity", FORMS)
def test_a_closed_dimension_is_not_there(similarity):
    q, k, g, *_ = case()
    g[:, 2] = 0
    q, k = F.normalize(q, dim=1).requires_grad_(), F.normalize(k, dim=1).requires_grad_()
    if similarity is renormed:
        for grad in torch.autograd.grad(similarity(q, k, g).square().sum(), (q, k)):
            assert (grad[:, 2] == 0).all()
    else:                                                               # lengths are taken before the gate
        torch.testing.assert_close(similarity(q, k, g), (q * g.square())[:, [0, 1, 3, 4]] @ k[:, [0, 1, 3, 4]].T)


def test_constant_logits_cost_the_log_of_the_negatives():
    own, other, keys = torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0, 1, 1, 2, 3, 3])
    sums, counts = paired(torch.ones(2, 3), torch.ones(6, 3), torch.ones(2, 3), own, other, keys, tau=0.1)
    assert counts.tolist() == [2, 1]                                    # negatives: (2, 3, 3), and (0, 3, 3)
    torch.testing.assert_close(sums, torch.tensor([2 * math.log(4), math.log(4)]))


def test_an_open_gate_and_own_classes_that_all_differ_is_info_nce():
    q, k, _, *_ = case(6, 6)
    y = torch.arange(6)
    sums, counts = paired(q, k, torch.ones_like(q), y, y, y, tau=0.2)
    torch.testing.assert_close(sums, info_nce(q, k, tau=0.2, positive=y))
    assert (counts == 1).all()


def test_keys_of_the_own_class_are_left_alone():
    q, k, g, *_ = case(1, 6)
    k.requires_grad_()
    sums, _ = paired(q, k, g, torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 0, 1, 1, 2, 3]), tau=0.2)
    grad, = torch.autograd.grad(sums.sum(), k)
    assert (grad[:2] == 0).all() and (grad[2:] != 0).any(1).all()


@pytest.mark.parametrize("similarity", FORMS)
def test_no_negatives_no_positives_and_zero_vectors_are_finite(similarity):
    q, k, g, *_ = case(2, 4)
    q[0], k[0] = 0, 0
    for own, other, keys in (([0, 1], [1, 0], [0, 1, 0, 1]), ([0, 1], [3, 3], [0, 1, 2, 2])):
        x = [v.clone().requires_grad_() for v in (q, k, g)]
        sums, _ = paired(*x, torch.tensor(own), torch.tensor(other), torch.tensor(keys), tau=0.1, similarity=similarity)
        assert torch.equal(sums.detach(), torch.zeros(2, dtype=torch.float64))
        assert all(torch.isfinite(v).all() for v in torch.autograd.grad(sums.sum(), x))
    sums, _ = paired(q.requires_grad_(), k, g, *(torch.tensor(y) for y in ([0, 1], [1, 2], [0, 1, 2, 3])), tau=0.1,
                     similarity=similarity)
    assert torch.isfinite(torch.autograd.grad(sums.sum(), q)[0]).all()


@pytest.mark.parametrize("similarity", FORMS)
def test_nan_is_not_hidden_and_a_constant_of_a_row_cancels(similarity):
    q, k, g, *y = case()
    whole = paired(q, k, g, *y, tau=0.2, similarity=similarity)[0]
    torch.testing.assert_close(paired(q, k, g, *y, tau=0.2, similarity=lambda *x: similarity(*x) + torch.arange(6.0)[:, None])[0],
                               whole)
    for broken in (0, 1, 2):
        x = [v.clone() for v in (q, k, g)]
        x[broken][0, 0] = torch.nan
        assert paired(*x, *y, tau=0.2, similarity=similarity)[0].isnan().any()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor holds that is made meanwhile."""

    size = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        out = call(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            self.size = max(self.size, x.numel() if isinstance(x, Tensor) else 0)
        return out


@pytest.mark.parametrize("similarity", FORMS)
def test_no_tensor_is_larger_than_a_tile(similarity):
    n, d, y = 1000, 8, torch.arange(1000) % 10
    q, k, g = (torch.rand(n, d).requires_grad_() for _ in range(3))
    with Largest() as made:
        sums, counts = paired(q, k, g, y, (y + 1) % 10, y, tau=0.1, similarity=similarity, tile=20_000)
        (sums.sum() / counts.sum()).backward()
    assert made.size == 20_000 and (counts == 100).all()


def test_half_precision_is_computed_in_single():
    x = case()
    whole = paired(*x, tau=0.1)[0]
    half = paired(*(v.to(torch.bfloat16) for v in x[:3]), *x[3:], tau=0.1)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0.1, atol=0.3)


# ---------------------------------------------------------------------------------------------------------------- gate

def test_gates_are_symmetric_between_0_and_1_and_teach_classes_that_are_there():
    torch.manual_seed(0)
    gate = PairGate(5, 6, embed=8, hidden=16)
    a, b = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 2, 2, 0])
    g = gate(a, b)
    torch.testing.assert_close(gate(b, a), g)
    assert g.shape == (4, 6) and ((g > 0) & (g < 1)).all()
    g.square().sum().backward()
    assert (gate.embed.weight.grad[3:] == 0).all() and (gate.embed.weight.grad[:3] != 0).any(1).all()


# ------------------------------------------------------------------------------------------------------------- methods

def test_partners_are_functions_of_keys():
    _, batch = hydra.example(ROWS, torch.float32)
    y, key, order = batch["label"], batch["key"], torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    for pairs in ("arbitrary", "distinct", "identical"):
        other = partners(y, key, pairs, 3)
        assert torch.equal(partners(y[order], key[order], pairs, 3), other[order])
        assert bool((other == y).all()) is (pairs == "identical")
        assert pairs == "arbitrary" or bool((other != y).all()) is (pairs == "distinct")
    arbitrary = partners(y, key, "arbitrary", 3)
    assert sorted(arbitrary.tolist()) == sorted(y.tolist())
    assert not torch.equal(arbitrary, partners(y, key + 9, "arbitrary", 3))
    drawn = torch.cat([partners(y, key + i, "distinct", 3) for i in range(300)]).view(300, ROWS)
    shares = F.one_hot((drawn - y) % 3, 3).double().mean((0, 1))
    assert shares[0] == 0 and (shares[1] - 0.5).abs() < 0.05


def test_without_a_gate_and_of_each_form_it_learns():
    data = DataInfo("example", ROWS, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    for options in ({"gate": False}, {"similarity": "flat"}, {"pairs": "distinct"}, {"pairs": "identical"}):
        torch.manual_seed(0)
        method = Hydra(ViT(image_size=16, patch=4, dim=32, depth=1, heads=2), data=data, hidden=16, dim=8, **options)
        out = loss_of(method, hydra.example(ROWS, torch.float32)[1])
        out["loss"].backward()
        assert torch.isfinite(out["loss"]) and method.projector[1].weight.grad.abs().sum() > 0
        assert (float(out["open"]) == 1) is ("gate" in options)


@pytest.mark.parametrize("module", [hydra, hydra_momentum])
def test_too_few_classes_and_rows_without_one(module):
    method, batch = module.example(ROWS, torch.float32)
    tower = ViT(image_size=16, patch=4, dim=32, depth=1, heads=2)
    for classes in ((), ("a",), ("a", "b")):
        with pytest.raises(NotanError, match=f"has {len(classes)} classes"):
            type(method)(tower, data=DataInfo("d", 9, ("image", "label"), 16, 3, classes=classes))
    with pytest.raises(NotanError, match="1 rows of a batch have no label"):
        method.loss({**batch, "label": torch.tensor([-1] + [0] * (ROWS - 1))}, HALFWAY)
    with pytest.raises(NotanError, match=r"one value per channel|a batch of one row"):
        method.train().loss(rows_of(batch, slice(0, 1)), HALFWAY)
    with pytest.raises(NotanError, match="tau = 0"):
        type(method)(tower, data=DataInfo("d", 9, ("image", "label"), 16, 3, classes=("a", "b", "c")), tau=0.0)


def test_beta_0_is_moco_v3_and_keys_have_no_gradient():
    method, batch = hydra_momentum.example(ROWS, torch.float64)
    method.beta = 0.0
    loss = loss_of(method, batch)["loss"]
    x = torch.cat([method.view(batch, 1), method.view(batch, 2)])
    q1, q2 = method.predictor(method.projector(method.encoder.features(x))).chunk(2)
    k1, k2 = method.key_projector(method.key_encoder.features(x)).chunk(2)
    torch.testing.assert_close(loss, (one_way(q1, k2, tau=0.2) + one_way(q2, k1, tau=0.2)) / 2)
    loss.backward()
    assert all(p.grad is None for p in [*method.key_encoder.parameters(), *method.key_projector.parameters()])
    before = {n: p.clone() for n, p in method.key_projector.named_parameters()}
    with torch.no_grad():
        for p in method.projector.parameters():
            p.add_(1.0)
    method.after_step(None, HALFWAY)
    for n, p in method.key_projector.named_parameters():                # halfway m is between 0.99 and 1
        torch.testing.assert_close(p, before[n] + 0.005, atol=1e-9, rtol=0)


def test_a_single_batch_in_another_order_pairs_the_same():
    method, batch = hydra.example(ROWS, torch.float64)
    flipped = rows_of(batch, torch.arange(ROWS - 1, -1, -1))
    torch.testing.assert_close(loss_of(method.train(), flipped)["loss"], loss_of(method.train(), batch)["loss"])


# ----------------------------------------------------------------------------------------------------------- inspector

def test_gates_that_say_what_features_say():
    """Gates planted as the classes' mean features agree; all-equal ones have no contrast and no agreement."""
    model, data = Gated().double(), pictures()
    means, seen = gates.class_means(model, data, 3)
    planted = means - means.mean(0)

    class Planted(PairGate):
        def forward(self, a, b):
            return planted[a]

    model.gate = Planted(3, 6, embed=4, hidden=8)
    assert seen.all() and gates.measure(model, data)["agreement"] == pytest.approx(1)
    planted = torch.ones_like(means)
    found = gates.measure(model, data)
    assert found["agreement"] == 0 and found["contrast"] == pytest.approx(0, abs=1e-12)


def test_the_command_on_a_run(tmp_path, capsys):
    run = str(tmp_path / "run")
    small = ["--encoder", "convnet:widths=(4,8),strides=(2,2)", "--steps", "3", "--batch", "32"]
    assert cli.main(["train", "hydra", "--data", "digits", "--out", run, *small]) == 0
    assert cli.main(["inspect", "gates", run, "--data", "digits", "--out", str(tmp_path / "out")]) == 0
    assert "agreement" in capsys.readouterr().out and (tmp_path / "out" / "gates-map.png").stat().st_size > 5000
    assert cli.main(["train", "simclr", "--data", "digits", "--out", run + "2", *small]) == 0
    assert cli.main(["inspect", "gates", run + "2", "--data", "digits"]) == 1
    assert "SimCLR has no gates" in capsys.readouterr().err
    assert cli.main(["inspect", "gates", run, "--data", "digits", "--rows", "1"]) == 1
    assert "of at least three" in capsys.readouterr().err
