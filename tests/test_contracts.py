"""What every method owes, found by enumerating `methods/`: nothing here names one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from ranks import spawn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from notan import catalogue, world
from notan.data import Data, Rows, open_data
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.nets.build import load_encoder, save_encoder
from notan.nets.protocols import DualEncoder, SeeingModel
from notan.probes.ridge import ridge
from notan.runs import study
from notan.runs.train import Step, _check_accumulation, train
from notan.runs.watch import probed
from notan.views.geometry import floats, resize

SLUGS = [slug for slug in catalogue.methods() if slug != "toy"]            # other tests may have put theirs there
TRAINED = [slug for slug in SLUGS if catalogue.method(slug).card.get("trains", True)]
HALFWAY = Progress(step=5, steps=10, epoch=5, epochs=10)
ROWS = 8


def example(slug: str) -> Callable[[int, torch.dtype], tuple[nn.Module, dict]]:
    return importlib.import_module(f"notan.methods.{slug}").example


def rows_of(batch: dict, index: Tensor | slice) -> dict:
    """Some rows of a batch, in some order."""
    chosen = torch.arange(ROWS)[index]
    return {k: v[chosen] if isinstance(v, Tensor) else [v[i] for i in chosen] for k, v in batch.items()}


def loss_of(method: nn.Module, batch: dict) -> dict:
    torch.manual_seed(0)                                                # dropout is torch's own
    return method.loss(batch, HALFWAY)


@pytest.mark.parametrize("slug", SLUGS)
def test_card_is_complete(slug):
    entry = catalogue.method(slug)
    missing = {"title", "year", "arxiv", "needs", "task", "exports", "claim", "paper", "deviations"} - set(entry.card)
    assert not missing, f"{slug}: CARD lacks {missing}"
    assert "small" in entry.recipes and entry.doc
    known = {*(t.name for t in entry.towers), "optimiser", "batch", "epochs", "warmup", "method", "clip", "layer_decay"}
    for name, recipe in entry.recipes.items():
        assert set(recipe) <= known, f"{slug}: recipe {name} has unknown keys {set(recipe) - known}"
        assert set(recipe.get("method", {})) <= {f.name for f in entry.flags}, f"{slug}: recipe {name} sets unknown flags"
    if slug in TRAINED:
        assert {"data", "metric", "steps", "value", "random"} <= set(entry.card["floor"])


@pytest.mark.parametrize("slug", SLUGS)
def test_shapes_and_finite(slug):
    method, batch = example(slug)(ROWS, torch.float32)
    method.eval()
    with torch.no_grad():
        features = method.encode(batch)
    for z in features.values() if isinstance(features, dict) else [features]:
        assert z.shape[0] == ROWS and z.ndim == 2 and torch.isfinite(z).all()
    if "dense" in catalogue.method(slug).has:
        assert method.dense(batch).ndim == 4
    for name, picture in (method.pictures(batch) if "pictures" in catalogue.method(slug).has else {}).items():
        assert picture.ndim == 4 and picture.shape[0] == ROWS, name
        assert picture.shape[1] in (1, 3) and picture.min() >= 0 and picture.max() <= 1, name


@pytest.mark.parametrize("slug", TRAINED)
def test_loss_is_a_finite_scalar_and_changes_no_state(slug):
    method, batch = example(slug)(ROWS, torch.float64)
    method.train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    out = loss_of(method, batch)
    assert out["loss"].ndim == 0 and torch.isfinite(out["loss"])
    for k, v in method.state_dict().items():
        if "running_" not in k and "num_batches" not in k:
            assert torch.equal(v, before[k]), f"loss changed {k}"
    for v in out.get("keep", {}).values() if isinstance(out.get("keep"), dict) else []:
        assert not v.requires_grad, "what a step keeps must be detached"


@pytest.mark.parametrize("slug", TRAINED)
def test_every_parameter_that_should_learn_has_a_gradient(slug):
    """A gain that starts at zero hides what is before it, so a second step may show what the first could not."""
    method, batch = example(slug)(ROWS, torch.float64)
    method.train()
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    learned: set[str] = set()
    for _ in range(2):
        optimiser.zero_grad()
        loss_of(method, batch)["loss"].backward()
        for name, p in method.named_parameters():
            if p.requires_grad and p.grad is not None:
                assert torch.isfinite(p.grad).all(), name
                if p.grad.abs().max() > 0:
                    learned.add(name)
        optimiser.step()
    dead = {name for name, p in method.named_parameters() if p.requires_grad} - learned
    assert not dead, f"{slug}: no gradient reaches {sorted(dead)}"


@pytest.mark.parametrize("slug", TRAINED)
def test_the_order_of_rows_does_not_matter(slug):
    """Views and masks belong to rows, not to places in the batch."""
    method, batch = example(slug)(ROWS, torch.float64)
    method.eval()                                                       # dropout off
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    a = loss_of(method, batch)["loss"]
    b = loss_of(method, rows_of(batch, order))["loss"]
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("slug", TRAINED)
def test_the_same_keys_give_the_same_loss_and_new_keys_another(slug):
    method, batch = example(slug)(ROWS, torch.float64)
    method.eval()
    a, b = loss_of(method, batch)["loss"], loss_of(method, batch)["loss"]
    c = loss_of(method, {**batch, "key": batch["key"] + 12345})["loss"]
    assert torch.equal(a, b)
    keyed = catalogue.method(slug).card.get("keyed", True)              # False: it hides nothing and has no views
    assert torch.equal(a, c) is not keyed, "whether the loss depends on the rows' keys is not as its CARD says"


# ---- one process = N processes -----------------------------------------------------------------------------------------

SPLIT = [5, 3]


def _disable_dropout(method: nn.Module) -> nn.Module:
    for part in method.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    return method


def _one_step(method: nn.Module, batch: dict, distributed: bool) -> dict[str, Tensor]:
    """Gradients after one step of what the training loop trains, and the buffers after `after_step`."""
    step = Step(_disable_dropout(method.train()))
    model = DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True) if distributed else step
    out = model(batch, HALFWAY)
    out["loss"].backward()
    found = {f"grad {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    if hasattr(method, "after_step"):
        keep = {k: world.gather_plain(v) for k, v in (out.get("keep") or {}).items()}
        method.after_step(keep, HALFWAY)
    found |= {f"state {n}": v.clone() for n, v in method.state_dict().items() if v.is_floating_point()}
    return found | {"loss": out["loss"].detach()}


def _ranks(rank: int, size: int, slugs: list[str]) -> dict[str, dict[str, Tensor]]:
    start = sum(SPLIT[:rank])
    found = {}
    for slug in slugs:
        method, batch = example(slug)(ROWS, torch.float64)
        found[slug] = _one_step(method, rows_of(batch, slice(start, start + SPLIT[rank])), distributed=True)
    return found


@pytest.fixture(scope="module")
def two_ranks() -> list[dict]:
    return spawn(_ranks, 2, TRAINED)


@pytest.mark.parametrize("slug", TRAINED)
def test_two_uneven_ranks_equal_one(slug, two_ranks):
    alone = _one_step(*example(slug)(ROWS, torch.float64), distributed=False)
    for rank in two_ranks:
        assert set(rank[slug]) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(rank[slug][name], value, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{slug}: {n}: {m}")


@pytest.mark.parametrize("slug", TRAINED)
def test_parts_of_a_batch_are_refused_where_they_change_the_gradient(slug):
    method, batch = example(slug)(ROWS, torch.float64)
    _disable_dropout(method.train())
    grads = []
    for cuts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        method.zero_grad()
        for part in cuts:
            (loss_of(method, rows_of(batch, part))["loss"] / len(cuts)).backward()
        grads.append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
    if any((grads[1][n] - g).abs().max() > 1e-6 * (1e-3 + g.abs().max()) for n, g in grads[0].items()):
        with pytest.raises(NotanError, match=r"parts|rows against each other"):
            _check_accumulation(SimpleNamespace(method=slug, accumulate=2, batch=ROWS), method)


# ---- the run ------------------------------------------------------------------------------------------------------------

class Crash(Exception):
    """A process that dies between two states."""


@cache
def floor_data(slug: str) -> Data:
    """The data of the method's floor."""
    return open_data(catalogue.method(slug).card["floor"]["data"])


def small_towers(slug: str) -> dict:
    """The towers of the method's own example, for other data."""
    method, found = example(slug)(2, torch.float32)[0], {}
    for tower in catalogue.method(slug).towers:
        config = getattr(method, tower.name).config
        config = config.get("base", config.get("parts", [config])[0])   # what a method made of it is not the tower
        shape = {"channels", "mean", "std"} | ({"width", "centre", "spread"} if "centre" in config else set())
        found[tower.name] = {k: v for k, v in config.items() if k not in shape}
    return found


@pytest.mark.parametrize("slug", TRAINED)
def test_a_killed_run_ends_as_an_undisturbed_one(slug, tmp_path):
    """A state is saved after step 2, the process dies in step 3, and the same call goes on."""
    def dies(record: dict) -> None:
        if record["step"] == 3:
            raise Crash

    same = {"steps": 4, "batch": 16, "encoder": small_towers(slug), "threads": 1, "log_every": 1, "save_every": 2}
    data = floor_data(slug)
    whole = train(slug, data, out=tmp_path / "whole", **same)
    with pytest.raises(Crash):
        train(slug, data, out=tmp_path / "part", log=dies, **same)
    part = train(slug, data, out=tmp_path / "part", **same)
    a, b = whole.method().state_dict(), part.method().state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r["step"] for r in part.metrics()] == [r["step"] for r in whole.metrics()]


@pytest.mark.parametrize("slug", SLUGS)
def test_the_saved_tower_gives_the_same_features(slug, tmp_path):
    method, batch = example(slug)(ROWS, torch.float32)
    method.eval()
    entry = catalogue.method(slug)
    if len(entry.towers) > 1:
        pytest.skip("several towers")
    save_encoder(getattr(method, entry.towers[0].name), tmp_path / "tower")
    tower = load_encoder(tmp_path / "tower").eval()
    given = next(batch[name] for name in entry.card["needs"][0].split(" or ") if name in batch)
    with torch.no_grad():
        given = resize(floats(given), tower.image_size) if hasattr(tower, "image_size") else given
        given_alone = {"image": batch["image"]} if isinstance(tower, (DualEncoder, SeeingModel)) else batch  # no conditions
        torch.testing.assert_close(tower.features(given), probed(method.encode(given_alone)))


@pytest.mark.parametrize("slug", TRAINED)
def test_a_missing_column_is_named(slug, tmp_path):
    data, needed = floor_data(slug), catalogue.method(slug).card["needs"][-1]
    columns = tuple(c for c in data.info.columns if c not in needed.split(" or "))
    rows = Rows({c: data.train.stores[c] for c in columns}, data.train.index)
    data = replace(data, train=rows, info=replace(data.info, columns=columns))
    with pytest.raises(NotanError, match=needed):
        train(slug, data, out=tmp_path / "run", steps=1, encoder=small_towers(slug))
    assert not (tmp_path / "run").exists()


def _ridge(run, data) -> float:
    rows = study.rowset(data)
    x = study.embed(run.method().encode, data, rows)
    return ridge(x[0], rows.train_y, x[1], rows.test_y)["accuracy"]


@pytest.mark.parametrize("slug", TRAINED)
def test_it_learns_above_its_floor(slug, tmp_path):
    """What the CARD promises after a few seconds on its data: a ridge probe, or a term that the method logs.

    `random` is what it gives before training; whether more or less is better follows from the two numbers.
    """
    floor = catalogue.method(slug).card["floor"]
    assert floor["value"] != floor["random"], "the floor has not been measured"
    run = train(slug, floor["data"], out=tmp_path / "run", steps=floor["steps"], batch=64, threads=2, precision="fp32",
                recipe=floor.get("recipe", "small"))
    if floor["metric"] == "ridge":
        value = _ridge(run, floor_data(slug))
        fresh = train("random", floor["data"], out=tmp_path / "random", steps=0, batch=64,
                      encoder=run.settings.towers["encoder"])
        assert floor["value"] > _ridge(fresh, floor_data(slug)), "the floor lies below random weights of the recipe's encoder"
    else:
        value = [r for r in run.metrics() if floor["metric"] in r][-1][floor["metric"]]
    ahead = (value - floor["value"]) * (floor["value"] - floor["random"])
    assert ahead >= 0, f"{slug} reached {value:.3f}, its floor is {floor['value']}"
