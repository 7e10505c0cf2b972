"""Each alarm fires on a method that is sick in its way, and a healthy one is left in peace."""

from __future__ import annotations

import pytest
import torch
import toy
from torch import nn

from notan.errors import NotanError
from notan.methods.simclr import SimCLR
from notan.runs.dump import replay
from notan.runs.folder import Run
from notan.runs.health import Health, effective_rank, spread, teacher_pairs
from notan.runs.train import train

toy.register()


def alarms(run: Run) -> dict[str, str]:
    return {r["alarm"]: r["message"] for r in run.metrics() if "alarm" in r}


def sick(folder, **settings) -> dict[str, str]:
    return alarms(train("toy", toy.data(), out=folder, steps=40, threads=1, settings=settings))


def test_a_healthy_method_is_left_in_peace(tmp_path):
    assert sick(tmp_path / "r") == {}


def test_collapse(tmp_path):
    found = sick(tmp_path / "r", sick="collapse")
    assert "effective rank 0.0" in found["collapse"] and "stop-gradient" in found["collapse"]


@pytest.mark.parametrize(("slug", "collapses"), [("simclr", True), ("mae", False)])
def test_a_vit_that_only_aligns_views_has_collapsed_and_one_that_paints_has_not(monkeypatch, tmp_path, slug, collapses):
    """Both have features that are nearly alike at first; only one of them carries less with every step."""
    def align(self, batch, progress):
        a, b = (nn.functional.normalize(self.encoder.features(self.view(batch, which)), dim=1) for which in (1, 2))
        return {"loss": (a - b).square().sum(1).mean() + 0 * sum(p.sum() for p in self.parameters())}

    if collapses:
        monkeypatch.setattr(SimCLR, "loss", align)
    run = train(slug, "digits", out=tmp_path / "r", steps=60, batch=128, threads=1,
                encoder={"name": "vit", "dim": 64, "depth": 2, "heads": 2, "patch": 2})
    assert ("collapse" in alarms(run)) == collapses


def test_dead_parameters_are_named(tmp_path, capsys):
    found = sick(tmp_path / "r", sick="dead")
    assert found.keys() == {"dead parameters"}
    assert "2 of 50 parameters" in found["dead parameters"] and "idle.bias, idle.weight" in found["dead parameters"]
    assert "dead parameters" in capsys.readouterr().err


def test_a_temperature_at_its_clamp(tmp_path):
    found = sick(tmp_path / "r", sick="tau")
    assert found.keys() == {"saturated temperature"} and "tau = 0.1 does not move" in found["saturated temperature"]


@pytest.mark.parametrize(("decay", "kind"), [(0.0, "teacher = student"), (1.0, "teacher stands still")])
def test_teachers(tmp_path, decay, kind):
    assert sick(tmp_path / "r", decay=decay).keys() == {kind}


def test_not_finite_stops_before_the_update_and_replays(tmp_path):
    with pytest.raises(NotanError, match=r"step 5 is not finite \(loss nan.*first bad gradient.*replay") as caught:
        train("toy", toy.data(), out=tmp_path / "r", steps=40, threads=1, settings={"sick": "nan"}, save_every=5)
    folder = tmp_path / "r" / "debug" / "step-00000005"
    assert str(folder) in str(caught.value)
    terms = replay(folder)
    assert terms["loss"] != terms["loss"]
    healthy = train("toy", toy.data(), out=tmp_path / "h", steps=5, threads=1)
    from safetensors.torch import load_file
    kept, before = load_file(folder / "weights.safetensors"), healthy.method().state_dict()
    assert all(torch.isfinite(v).all() for v in kept.values()) and kept.keys() == before.keys()


def test_a_replayed_step_is_the_step(tmp_path, monkeypatch):
    """The loss of a dumped step, dropout included, comes out the same to the last bit."""
    from notan.runs import step
    seen = {}
    real = torch.isfinite

    def picky(x):
        finite = real(x)
        if x.ndim == 0:
            seen["calls"] = seen.get("calls", 0) + 1
            return finite & (seen["calls"] != 4)
        return finite

    monkeypatch.setattr(step.torch, "isfinite", picky)
    with pytest.raises(NotanError, match=r"step 3 is not finite \(loss (?P<loss>[\d.]+)"):
        train("toy", toy.data(), out=tmp_path / "r", steps=100, threads=1, log_every=1)
    monkeypatch.undo()
    import json
    folder = tmp_path / "r" / "debug" / "step-00000003"
    told = {k: float(v) for k, v in json.loads((folder / "step.json").read_text())["terms"].items()}
    again = replay(folder)
    assert again["loss"] == told["loss"] and again["grad_norm"] == pytest.approx(told["grad_norm"], rel=1e-6)


def test_effective_rank_and_spread_on_known_features():
    torch.manual_seed(0)
    full = torch.linalg.qr(torch.randn(64, 8))[0]
    full = torch.linalg.qr(full - full.mean(0))[0]                      # orthonormal and centred
    assert effective_rank(full) == pytest.approx(8)
    assert effective_rank(full[:, :1] @ torch.randn(1, 8)) == pytest.approx(1)
    assert effective_rank(torch.ones(64, 8)) == 0 and spread(torch.ones(64, 8)) == pytest.approx(0, abs=1e-12)
    assert spread(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    assert spread(torch.zeros(64, 8)) == 0


def test_teachers_are_found_by_their_shape():
    method = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), "head": nn.Linear(2, 5)})
    method["target"] = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).requires_grad_(False)
    method["text"] = nn.Linear(7, 7).requires_grad_(False)              # a frozen tower, no teacher
    assert list(teacher_pairs(method)) == [(method["target"], method["encoder"])]


def test_an_alarm_needs_several_looks_in_a_row_and_is_told_once():
    method = nn.Linear(2, 2)
    health = Health(method)
    for look in range(6):
        method.weight.grad, method.bias.grad = torch.zeros(2, 2), torch.ones(2) * (look != 1)
        found = health.gradients()
        assert [a.kind for a in found] == (["dead parameters"] if look == 2 else [])


def test_features_that_are_not_finite_are_told():
    _, found = Health(nn.Linear(2, 2)).features(torch.full((8, 4), float("nan")))
    assert [a.kind for a in found] == ["not finite"]
