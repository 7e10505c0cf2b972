"""MCL: codes, batches of one code, stages side by side; and that a run in rounds is a run like any other."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from notan.data import DataInfo, Loader
from notan.errors import NotanError
from notan.losses.info_nce import info_nce
from notan.losses.supcon import multi_positive
from notan.methods import mcl
from notan.methods._progress import Progress
from notan.methods.mcl import MCL, join, k_means, pure
from notan.methods.simclr import SimCLR
from notan.nets.stages import Stages
from notan.nets.vit import ViT
from notan.runs import checkpoint
from notan.runs import rounds as rounding
from notan.runs.dump import replay
from notan.runs.folder import Run
from notan.runs.train import Stopped, train

HERE = Path(__file__).parent
TINY = {"name": "vit", "patch": 4, "dim": 16, "depth": 1, "heads": 2}
BASE = "simclr:hidden=16,dim=8"
OPTIONS = {"encoder": TINY, "batch": 16, "steps": 9, "threads": 1, "precision": "fp32", "log_every": 1,
           "settings": {"base": BASE, "extra": 2, "clusters": 3}}


def weights(folder):
    return load_file(max((Path(folder) / "state").glob("step-*")) / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def method(**options):
    torch.manual_seed(0)
    data = DataInfo("blobs", 128, ("image", "label"), 8, 1, classes=("a", "b"))
    return MCL(ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2), data=data, **{"base": BASE, **options})


# --------------------------------------------------------------------------------------------------- codes and batches

@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_batches_have_one_code_and_every_row_once(codes, size, epoch):
    codes = np.unique(codes, return_inverse=True)[1]
    count = np.bincount(codes)
    if count.max() < size:
        with pytest.raises(NotanError, match=f"has {count.max()} rows, a batch {size}"):
            pure(codes, size, 0, epoch)
        return
    batches = pure(codes, size, 0, epoch)
    assert all(len(set(codes[b])) == 1 for b in batches)
    assert len(np.unique(batches)) == batches.size == len(codes) - (count % size).sum()
    turns = [int(codes[b[0]]) for b in batches[: (count >= size).sum()]]
    assert turns == [c for c in range(len(count)) if count[c] >= size], "the codes take turns"


def test_batches_differ_by_epoch_and_number_as_many():
    codes = np.repeat([0, 1, 2], [40, 17, 3])
    a, b = (pure(codes, 8, 0, epoch) for epoch in (0, 1))
    assert a.shape == b.shape == (7, 8) and not np.array_equal(a, b)
    assert np.array_equal(a, pure(codes, 8, 0, 0))


def test_rows_share_a_code_where_they_shared_every_cluster():
    a, b = np.array([0, 0, 1, 1, 0]), np.array([1, 0, 1, 0, 1])
    codes = join(join(np.zeros(5, dtype=np.int64), a), b)
    assert [[int(x == y) for y in codes] for x in codes] == [[int(p == q) for q in zip(a, b)] for p in zip(a, b)]
    assert sorted(set(codes)) == [0, 1, 2, 3]


def test_clusters_are_by_direction_and_repeat():
    g = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(3, 8, generator=g), dim=1)[torch.arange(90) % 3] * torch.rand(90, 1, generator=g).add(0.1)
    found = k_means(z, 3, seed=1)
    assert all(len(set(found[i::3])) == 1 for i in range(3)) and len(set(found)) == 3
    assert np.array_equal(found, k_means(z, 3, seed=1))


def test_rows_that_are_all_equal_are_one_cluster_and_zeros_are_fine():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for z in (torch.ones(20, 4), torch.zeros(20, 4)):
            assert len(set(k_means(z, 5, seed=0))) == 1


def test_a_feature_that_explains_the_clusters_does_not_vary_within_a_batch():
    planted = torch.arange(64) % 2
    z = torch.cat([10 * F.one_hot(planted, 2), torch.randn(64, 6, generator=torch.Generator().manual_seed(0))], 1)
    codes = join(np.zeros(64, dtype=np.int64), k_means(z, 2, seed=0))
    assert all(planted[b].float().var() == 0 for b in pure(codes, 8, 0, 0))


# ------------------------------------------------------------------------------------------------ the restricted softmax

def test_one_code_in_a_batch_is_the_masked_loss_of_a_mixed_one():
    """A mixed batch with other codes masked out: the mean over rows of the loss within each code, and no gradient beyond."""
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(12, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    codes = torch.arange(12) % 3
    alike = codes[:, None] == codes
    masked, valid = multi_positive(q, k, torch.eye(12, dtype=torch.bool), tau=0.2, counted=alike)
    apart = torch.cat([info_nce(q[codes == c], k[codes == c], tau=0.2, positive=torch.arange(4)) for c in range(3)])
    assert valid.all()
    torch.testing.assert_close(masked.mean(), apart.mean())
    grad, = torch.autograd.grad(masked[0], k)
    assert (grad[codes != 0] == 0).all() and (grad[codes == 0] != 0).any(1).all()


def test_equal_rows_cost_log_b_whatever_the_code():
    z = torch.ones(8, 4, dtype=torch.float64)
    loss = info_nce(z, z, tau=0.1, positive=torch.arange(8))
    torch.testing.assert_close(loss, torch.full((8,), math.log(8), dtype=torch.float64))


# -------------------------------------------------------------------------------------------------------------- stages

def test_the_first_stage_is_the_base_method():
    m = method()
    torch.manual_seed(0)
    base = SimCLR(ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2), hidden=16, dim=8)
    rows = toy.data().train
    batch = Loader(rows, batch_size=16, seed=0, batches=m.batches).batch(3)
    assert torch.equal(batch["row"], Loader(rows, batch_size=16, seed=0).batch(3)["row"])
    assert torch.equal(m.loss(batch, Progress())["loss"], base.loss(batch, Progress())["loss"])
    assert torch.equal(m.eval().encode(batch), base.eval().encode(batch))


def test_features_stand_side_by_side():
    m = method(extra=2).eval()
    pixels = torch.rand(4, 1, 8, 8)
    alone = [stage.encoder.features(pixels) for stage in m.stages]
    assert [a.shape for a in alone] == [(4, 16)] * 3 and not torch.equal(alone[0], alone[1])
    for n in (1, 2, 3):
        m.enter(n - 1, None)
        assert m.encoder.dim == 16 * n
        assert torch.equal(m.encoder.features(pixels), torch.cat(alone[:n], 1))
    z = F.normalize(torch.cat([F.normalize(a, dim=1) for a in alone], 1), dim=1)
    cosines = sum(F.normalize(a, dim=1) @ F.normalize(a, dim=1).T for a in alone) / 3
    torch.testing.assert_close(z @ z.T, cosines)                        # stages of equal length: the mean of their cosines


def test_only_the_stage_that_learns_has_gradients():
    m = method(extra=1)
    batch = Loader(toy.data().train, batch_size=16, seed=0).batch(0)
    m.enter(1, None)
    m.loss(batch, Progress())["loss"].backward()
    assert all(p.grad is None for p in m.stages[0].parameters())
    assert any(p.grad is not None for p in m.stages[1].parameters())


@pytest.mark.parametrize("init", ["fresh", "base", "prev"])
def test_where_a_later_stage_begins(init):
    m = method(extra=1, init=init, clusters=2)
    first = {k: v.clone() for k, v in m.stages[0].state_dict().items()}
    with torch.no_grad():
        for p in m.stages[0].parameters():
            p.add_(0.1)                                                 # it has learned
    m.enter(1, lambda encode: torch.randn(128, 16, generator=torch.Generator().manual_seed(0)))
    later = m.stages[1].state_dict()
    assert same(later, first) is (init == "base")
    assert same(later, m.stages[0].state_dict()) is (init == "prev")


@pytest.mark.parametrize("base,message", [
    ("moco", "against each other"), ("temperature", "keys of earlier batches"), ("mae", "against each other"),
    ("mcl", "against each other"), ("simclr:tua=0.1", "no setting 'tua'"), ("simcrl", "no method"), ("simclr:tau=0", "above 0"),
])
def test_a_base_that_cannot_be_is_named(base, message):
    with pytest.raises(NotanError, match=message):
        method(base=base)


def test_a_base_that_needs_labels_says_so():
    data = DataInfo("blobs", 128, ("image",), 8, 1)
    with pytest.raises(NotanError, match="needs the column 'label'"):
        MCL(ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2), data=data, base="supcon")


@pytest.mark.parametrize("base", ["supcon:hidden=16,dim=8", "temperature:negatives=batch,dim=8", "cmim", "pixpro"])
def test_it_stands_on_other_contrasts(base):
    try:
        m = method(base=base, extra=1, clusters=2)
    except NotanError as refused:
        assert "against each other" in str(refused) or "Encoder" in str(refused), base
        return
    batch = Loader(toy.data().train, batch_size=16, seed=0).batch(0)
    m.enter(1, lambda encode: encode(toy.data().train.take(np.arange(128))).detach())
    assert torch.isfinite(m.loss(batch, Progress(0, 10, 0, 1))["loss"]) and len(set(m.codes.tolist())) == 2


@pytest.mark.parametrize("options,message", [
    ({"extra": -1}, "extra"), ({"clusters": 0}, "clusters"), ({"clusters": 129}, "clusters")])
def test_numbers_that_cannot_be_are_named(options, message):
    with pytest.raises(NotanError, match=message):
        method(**options)


# -------------------------------------------------------------------------------------------------------- a run in rounds

def test_shares_of_the_steps():
    m = method(extra=2)
    assert [(r.first, r.last) for r in rounding.rounds(m, 10, 5)] == [(0, 3), (3, 7), (7, 10)]
    assert len({r.seed for r in rounding.rounds(m, 10, 5)}) == 3 and rounding.rounds(m, 10, 5)[0].seed == 5
    assert [tuple(r[:3]) for r in rounding.rounds(object(), 10, 5)] == [(0, 0, 10)]
    assert rounding.round_at(rounding.rounds(m, 10, 5), 3).number == 1
    with pytest.raises(NotanError, match="2 steps for 3 rounds"):
        rounding.rounds(m, 2, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train("mcl", toy.data(), out=tmp_path_factory.mktemp("mcl") / "whole", save_every=1, **OPTIONS)


def test_a_run_in_rounds_has_every_stage_and_its_codes(whole):
    m = whole.method()
    assert int(m.encoder.learned) == 3 and m.encoder.dim == 48 and 1 < len(set(m.codes.tolist())) <= 9
    pixels = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(whole.encoder().features(pixels), m.encoder.features(pixels))
    rates = [r["lr"] for r in whole.metrics() if "loss" in r]
    assert rates[0:3] == rates[3:6] == rates[6:9], "each round has a learning rate of its own"
    assert [r["step"] for r in whole.metrics() if "loss" in r] == list(range(1, 10))


def test_it_leaves_as_onnx(whole, tmp_path):
    from notan.runs.export import export

    assert (export(whole, to="onnx", out=tmp_path / "out") / "model.onnx").stat().st_size > 1000


@pytest.mark.parametrize("at", [1, 3, 4, 6, 8])
def test_killed_in_any_round_ends_as_undisturbed(whole, tmp_path, at):
    """At 3 and 6 a round ends: what is saved there has begun the next."""
    class Crash(Exception):
        pass

    def dies(record):
        if record["step"] == at + 1:
            raise Crash

    with pytest.raises(Crash):
        train("mcl", toy.data(), out=tmp_path / "r", save_every=1, log=dies, **OPTIONS)
    assert max((tmp_path / "r" / "state").glob("step-*")).name == f"step-{at:08d}"
    assert Run(tmp_path / "r").method().encoder.dim == 16 * (1 + at // 3)
    again = train("mcl", toy.data(), out=tmp_path / "r", save_every=1, **OPTIONS)
    assert same(weights(whole.path), weights(again.path))
    assert [r["loss"] for r in again.metrics() if "loss" in r] == [r["loss"] for r in whole.metrics() if "loss" in r]


@pytest.mark.parametrize("at", [3, 5])
def test_stopped_where_a_round_ends_or_within_it(whole, tmp_path, at):
    def stops(record):
        if record["step"] == at:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match=r"saved at step \d of 9"):
        train("mcl", toy.data(), out=tmp_path / "r", log=stops, **OPTIONS)
    assert same(weights(whole.path), weights(train("mcl", toy.data(), out=tmp_path / "r", **OPTIONS).path))


def test_earlier_stages_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEPT", 99)
    run = train("mcl", toy.data(), out=tmp_path / "r", save_every=1, **OPTIONS)
    states = {int(p.name[5:]): load_file(p / "model.safetensors") for p in (run.path / "state").glob("step-*")}
    for stage, end in enumerate((3, 6)):
        moved = {k.split(".")[1] for k in states[9] if k.startswith("stages.") and not torch.equal(states[end][k], states[9][k])}
        assert moved == {str(i) for i in range(stage + 1, 3)}, "what has ended stays, what comes learns"


def test_a_step_that_is_not_finite_in_a_later_round_runs_again(tmp_path, monkeypatch):
    made, sick, build, real = [], [True], mcl.base_method, SimCLR.loss

    def base_method(*args):
        made.append(build(*args))
        return made[-1]

    def loss(self, batch, progress):
        out = real(self, batch, progress)
        return {"loss": out["loss"] * float("nan")} if sick[0] and self is made[1] and progress.step == 1 else out

    monkeypatch.setattr(SimCLR, "loss", loss)
    monkeypatch.setattr(mcl, "base_method", base_method)
    with pytest.raises(NotanError, match="step 4 is not finite"):
        train("mcl", toy.data(), out=tmp_path / "r", **OPTIONS)
    sick[0] = False
    assert math.isfinite(replay(tmp_path / "r" / "debug" / "step-00000004")["grad_norm"])


def test_no_code_with_a_batch_of_rows_names_the_way_out(tmp_path):
    options = {**OPTIONS, "batch": 100, "settings": {"base": BASE, "extra": 1, "clusters": 8}}
    with pytest.raises(NotanError, match=r"a batch 100.*a smaller --batch, fewer --clusters"):
        train("mcl", toy.data(), out=tmp_path / "r", **options)


def test_parts_of_a_batch_are_the_whole(tmp_path, whole):
    run = train("mcl", toy.data(), out=tmp_path / "r", micro_batch=4, save_every=1, **OPTIONS)
    assert torch.equal(weights(whole.path)["codes"], weights(run.path)["codes"])
    losses = [[r["loss"] for r in r.metrics() if "loss" in r] for r in (whole, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_one(tmp_path):
    def start(name, *launcher):
        script = tmp_path / f"{name}.py"
        script.write_text(f"""
import toy
from notan.runs import train as t
build = t.build_method
t.build_method = lambda *a: build(*a).double()
t.train("mcl", toy.data(), out={str(tmp_path / name)!r}, **{ {**OPTIONS, "batch": 15}!r})
""")
        env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *launcher, str(script)], env=env, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    two = start("two", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    one = start("one")
    for process in (one, two):
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=1e-8, msg=name)


def test_stages_are_built_again_from_their_config():
    from notan.nets.build import build_encoder

    made = build_encoder(Stages([ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2)] * 1).config)
    assert isinstance(made, Stages) and made.dim == 16 and made.image_size == 8
