"""The contrastive gap: golden numbers, what total collapse and the widest gap give, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from notan.errors import NotanError
from notan.methods import clip
from notan.methods._progress import Progress
from notan.methods.contrastive_gap import ContrastiveGap, example, gap_terms

NOW = Progress(step=1, steps=2, epoch=0, epochs=1)
ALL = {"contrast", "uniformity", "alignment", "cross"}


def terms(a, b, tau=0.01):
    return {name: value.item() for name, value in gap_terms(a, b, tau, ALL).items()}


def test_golden_numbers():
    """Of the authors' code."""
    torch.manual_seed(0)
    a, b = torch.randn(12, 8), torch.randn(12, 8)
    found = terms(a, b)
    assert found["contrast"] == pytest.approx(55.1211, abs=1e-3) and found["alignment"] == pytest.approx(2.0435, abs=1e-4)
    assert found["uniformity"] == pytest.approx(-3.1997, abs=1e-4) and found["cross"] == pytest.approx(-3.1899, abs=1e-4)


def test_total_collapse_and_the_widest_gap():
    u = F.normalize(torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1).expand(12, 8)
    assert terms(u, u) == pytest.approx({"contrast": math.log(12), "uniformity": 0, "alignment": 0, "cross": 0}, abs=1e-9)
    assert terms(u, -u) == pytest.approx({"contrast": math.log(12), "uniformity": 0, "alignment": 4, "cross": -8}, abs=1e-9)


def test_alignment_is_the_cosine_and_an_orthogonal_map_of_both_changes_nothing():
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(9, 5, dtype=torch.float64, generator=g) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=g))[0]
    found = terms(a, b)
    assert found["alignment"] == pytest.approx(2 - 2 * F.cosine_similarity(a, b).mean().item())
    assert terms(a @ turn, b @ turn) == pytest.approx(found) and terms(a.flip(0), b.flip(0)) == pytest.approx(found)
    one_sided = terms(a @ turn, b)
    assert one_sided["uniformity"] == pytest.approx(found["uniformity"]) and one_sided["cross"] != pytest.approx(found["cross"])
    two = terms(a[:2], b[:2])                                           # of two pairs there are two terms
    x, y = F.normalize(a[:2], dim=1), F.normalize(b[:2], dim=1)
    far = torch.stack([(x[0] - y[1]).square().sum(), (x[1] - y[0]).square().sum()])
    assert two["cross"] == pytest.approx((-2 * far).exp().mean().log().item())


def test_without_the_terms_it_is_clip_bit_for_bit_and_gradients_are_finite_where_pairs_coincide():
    method, batch = example(8, torch.float64)
    plain = ContrastiveGap(method.image_encoder, method.text_encoder, dim=16, uniformity=0, align=0, cross=0).double()
    plain.load_state_dict(method.state_dict())
    same = clip.CLIP(method.image_encoder, method.text_encoder, tau=0.01, dim=16).double()
    same.image_head, same.text_head = plain.image_head, plain.text_head
    a, b = plain.loss(batch, NOW)["loss"], same.loss(batch, NOW)["loss"]
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)              # its tau is exp(log 100)
    assert torch.equal(a, method.loss(batch, NOW)["contrast"])
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(torch.stack(list(gap_terms(z, z, 0.01, ALL).values())).sum(), z)
    assert g.isfinite().all()


def test_what_widens_the_gap_is_refused():
    method, _ = example(4, torch.float64)
    with pytest.raises(NotanError, match="without alignment"):
        ContrastiveGap(method.image_encoder, method.text_encoder, align=0)
    with pytest.raises(NotanError, match="none below 0"):
        ContrastiveGap(method.image_encoder, method.text_encoder, align=-1)
