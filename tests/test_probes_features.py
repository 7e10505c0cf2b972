"""Extraction, k-NN, segmentation and fine-tuning."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from notan.errors import NotanError
from notan.probes.features import WORDS, extract, pixels
from notan.probes.features import words as bag
from notan.probes.finetune import finetune, parameter_groups
from notan.probes.knn import knn_cosine, knn_euclidean, nearest_cosine, nearest_euclidean
from notan.probes.segmentation import segmentation


class Rows:
    """A stand-in for data.table.Rows: 2 classes, bright and dark pictures."""

    columns = ("image", "label")

    def __init__(self, n=120, seed=0, side=8):
        g = torch.Generator().manual_seed(seed)
        self.label = torch.arange(n) % 2
        self.image = torch.randint(0, 156, (n, 1, side, side), generator=g, dtype=torch.uint8)
        self.image += (self.label * 60).to(torch.uint8).view(-1, 1, 1, 1)

    def __len__(self):
        return len(self.label)

    def take(self, index):
        index = torch.from_numpy(np.asarray(index))
        return {"image": self.image[index], "label": self.label[index], "row": index}

    def values(self, column):
        return getattr(self, column).numpy()


class Encoder(nn.Module):
    dim, image_size, channels = 16, 8, 1

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.5)

    def features(self, x):
        return self.drop(self.bn1(self.conv1(x)).relu()).mean((2, 3))

    def encode(self, batch):
        return self.features(batch["image"].float() / 255)

    def dense(self, batch):
        return self.conv1(batch["image"].float() / 255)


# ---------------------------------------------------------------------------------------------------------- extraction


def test_extract_keeps_order_and_modes():
    rows, encoder = Rows(), Encoder().train()
    encoder.bn1.eval()  # a mixed state must come back as it was
    index = np.array([5, 3, 90, 0, 41])
    z = extract(encoder.encode, rows, index, batch=2)
    assert encoder.training and encoder.drop.training and not encoder.bn1.training
    assert z.shape == (5, 16) and z.dtype == torch.float32 and not z.is_inference() and not z.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(z, encoder.eval().encode(rows.take(index)))
    assert extract(encoder.dense, rows, index).shape == (5, 16, 4, 4)
    assert extract(pixels, rows).shape == (120, 64)


def test_extract_does_not_move_batch_norm():
    encoder = Encoder().train()
    before = encoder.bn1.running_mean.clone()
    extract(encoder.encode, Rows())
    assert torch.equal(before, encoder.bn1.running_mean)


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda b: torch.full((len(b["image"]), 3), torch.nan), "features of 120 of 120 rows are NaN"),
        (lambda b: {"image": b["image"]}, "gave dict"),
        (lambda b: torch.zeros(3, 4), r"gave \(3, 4\) for 120 rows"),
        (lambda b: b["image"].float()[:, 0], "gave"),
    ],
)
def test_extract_refuses(encode, words):
    with pytest.raises(NotanError, match=words):
        extract(encode, Rows())
    with pytest.raises(NotanError, match="no rows"):
        extract(encode, Rows(), np.array([], dtype=np.int64))


# ---------------------------------------------------------------------------------------------------------------- k-NN


def cloud(n=300, m=80, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n + m) % 3
    x = torch.randn(n + m, 10, generator=g) + torch.randn(3, 10, generator=g)[y]
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.parametrize(
    ("ours", "metric", "weights"),
    [
        (knn_cosine, "cosine", lambda d: np.exp((1 - d) / 0.07)),
        (knn_euclidean, "euclidean", "distance"),
    ],
)
def test_knn_equals_sklearn(ours, metric, weights):
    from sklearn.neighbors import KNeighborsClassifier

    train_x, train_y, test_x, test_y = cloud()
    theirs = KNeighborsClassifier(20, metric=metric, weights=weights, algorithm="brute").fit(train_x, train_y)
    out = ours(train_x, train_y, test_x, test_y)
    assert out["accuracy"] == pytest.approx(theirs.score(test_x, test_y))
    assert "(k=20)" in str(out["protocol"]) and out["protocol"].k == 20


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_nearest_does_not_depend_on_the_chunk(chunk):
    train_x, _, test_x, _ = cloud()
    for nearest in (nearest_cosine, nearest_euclidean):
        value, index = nearest(train_x, test_x, 5, chunk)
        whole, where = nearest(train_x, test_x, 5)
        assert torch.equal(index, where)
        torch.testing.assert_close(value, whole)
    torch.testing.assert_close(whole[:, 0], torch.cdist(test_x.double(), train_x.double()).min(1).values.float())


def test_euclidean_is_exact_far_from_the_origin():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g) + 1000
    d, where = nearest_euclidean(x, x, 2)
    assert torch.equal(where[:, 0], torch.arange(50)) and (d[:, 0] == 0).all()


def test_an_identical_row_outvotes_the_rest():
    x, y = torch.zeros(5, 2), torch.tensor([1, 0, 0, 0, 0])
    x[1:] += 1e-3
    assert knn_euclidean(x, y, x[:1], y[:1], k=5)["accuracy"] == 1


def test_knn_wants_k_rows():
    train_x, train_y, test_x, test_y = cloud(10)
    with pytest.raises(NotanError, match="k=20 neighbours of 10 training rows"):
        knn_cosine(train_x, train_y, test_x, test_y)
    with pytest.raises(NotanError, match="NaN"):
        knn_cosine(train_x, train_y, test_x * torch.nan, test_y, k=3)


# -------------------------------------------------------------------------------------------------------- segmentation


def scenes(n=30, seed=0, classes=3, grid=4, side=16):
    """Truth made of whole cells, and maps that hold the class of a cell along noisy directions."""
    g = torch.Generator().manual_seed(seed)
    cell = torch.randint(0, classes, (n, grid, grid), generator=g)
    seg = cell.repeat_interleave(side // grid, 1).repeat_interleave(side // grid, 2)
    maps = nn.functional.one_hot(cell, classes).permute(0, 3, 1, 2).float()
    return maps + 0.05 * torch.randn(maps.shape, generator=g), seg


def test_segmentation_of_cells_is_nearly_perfect():
    """Truth at the size of the grid: nothing is lost to interpolation."""
    maps, seg = scenes(side=4)
    out = segmentation(maps[:20], seg[:20], maps[20:], seg[20:], classes=3)
    assert out["miou"] == pytest.approx(1) and out["accuracy"] == pytest.approx(1) and out["n"] == 20 * 16


def test_segmentation_upsamples_and_beats_noise():
    maps, seg = scenes()
    good = segmentation(maps[:20], seg[:20], maps[20:], seg[20:], classes=3)["miou"]
    noise = torch.randn_like(maps)
    assert good > 0.6 > 0.4 > segmentation(noise[:20], seg[:20], noise[20:], seg[20:], classes=3)["miou"]


def test_miou_by_hand():
    """Two cells; the probe calls everything by its feature's sign, the test truth disagrees in one of four pixels."""
    maps = torch.tensor([-1.0, 1.0]).repeat(10).view(10, 1, 1, 2)
    seg = torch.tensor([0, 1]).repeat(10).view(10, 1, 2)
    truth = torch.tensor([[[0, 1]], [[1, 1]]])
    out = segmentation(maps, seg, maps[:2], truth, classes=2)
    assert out["iou"] == {0: pytest.approx(1 / 2), 1: pytest.approx(2 / 3)} and out["accuracy"] == pytest.approx(3 / 4)
    assert out["miou"] == pytest.approx(7 / 12)
    assert segmentation(maps, seg, maps[:2], truth, classes=2, background=0)["miou"] == pytest.approx(2 / 3)


def test_ignored_pixels_change_nothing():
    maps, seg = scenes(side=4)
    plain = segmentation(maps[:20], seg[:20], maps[20:], seg[20:], classes=3)
    more, blank = torch.cat([maps[:20], torch.randn(3, 3, 4, 4) * 50]), torch.full((3, 4, 4), 255)
    out = segmentation(more, torch.cat([seg[:20], blank]), maps[20:], seg[20:], classes=3)
    assert out["miou"] == plain["miou"] and out["n"] == plain["n"]


def test_segmentation_says_its_rules_and_refuses():
    maps, seg = scenes()
    words = str(segmentation(maps, seg, maps, seg, classes=3, background=0)["protocol"])
    assert "pixels labelled 255 ignored" in words and "background (class 0) is left out" in words
    assert "background counts as a class" in str(segmentation(maps, seg, maps, seg, classes=3)["protocol"])
    for bad, match in [
        ((maps, seg + 5), "outside the 3 classes"),
        ((maps[:3], seg), "maps are"),
        ((maps * torch.nan, seg), "NaN"),
        ((maps, seg * 0), "fewer than two classes"),
    ]:
        with pytest.raises(NotanError, match=match):
            segmentation(*bad, maps, seg, classes=3)
    with pytest.raises(NotanError, match="no class to score"):
        segmentation(maps, seg, maps, torch.full_like(seg, 255), classes=3)


# --------------------------------------------------------------------------------------------------------- fine-tuning


def tuned(**changes):
    torch.manual_seed(0)
    settings = {"classes": 2, "steps": 40, "lr": 1e-2, "seed": 3, "batch": 32} | changes
    return finetune(Encoder(), Rows(), np.arange(80), Rows(60, seed=1), **settings)


def test_finetuning_learns_and_leaves_the_encoder_alone():
    encoder = Encoder()
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    out = finetune(encoder, Rows(), np.arange(80), Rows(60, seed=1), classes=2, steps=40, lr=1e-2, seed=3, batch=32)
    assert out["accuracy"] > 0.9 and out["n"] == 80 and len(out["losses"]) == 40
    assert all(torch.equal(before[name], x) for name, x in encoder.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert "40 steps" in str(out["protocol"]) and out["protocol"].seeds == (3,)


def test_finetuning_is_a_function_of_its_seed():
    a, b, c = tuned(), tuned(), tuned(seed=4)
    assert a["losses"] == b["losses"] != c["losses"]


def test_finetuning_with_sgd_views_and_few_rows():
    sgd = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
    seen = []
    out = tuned(optimiser=sgd, steps=5, batch=500, augment=lambda x, key: (seen.append(key), x.flip(3))[1])
    assert len(out["losses"]) == 5 and len(seen[0]) == 80 and len(set(seen[0].tolist())) == 80


def test_finetuning_refuses():
    with pytest.raises(NotanError, match="labels run from 0 to 1"):
        tuned(classes=1)
    with pytest.raises(NotanError, match="all 40 training labels are class 0"):
        finetune(Encoder(), Rows(), np.arange(0, 80, 2), Rows(), classes=2, steps=1, lr=1.0, seed=0, batch=8)
    with pytest.raises(NotanError, match=r"loss is .* at step"):
        tuned(lr=1e30, optimiser=torch.optim.SGD)


def test_layer_decay_follows_names():
    model = nn.ModuleDict(
        {
            "encoder": nn.ModuleDict(
                {
                    "patch_embed": nn.Linear(2, 2),
                    "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(2)),
                    "norm": nn.LayerNorm(2),
                }
            ),
            "head": nn.Linear(2, 2),
        }
    )
    groups = parameter_groups(model, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    by_id = {id(p): g for g in groups for p in g["params"]}
    lr = {name: by_id[id(p)]["lr"] for name, p in model.named_parameters()}
    assert lr["encoder.patch_embed.weight"] == 0.125 and lr["encoder.blocks.0.weight"] == 0.25
    assert lr["encoder.blocks.1.bias"] == 0.5 and lr["encoder.norm.weight"] == 1 and lr["head.weight"] == 1
    decay = {name: by_id[id(p)]["weight_decay"] for name, p in model.named_parameters()}
    assert decay["head.weight"] == 0.1 and decay["head.bias"] == 0 and decay["encoder.norm.weight"] == 0
    assert len(by_id) == len(list(model.parameters()))


def test_a_bag_of_words_counts_words_whatever_their_case_and_order():
    bags = bag({"text": ["A cat, a dog.", "dog A a CAT", "a cat", "", "bird"]})
    assert bags.shape == (5, WORDS) and torch.equal(bags[0], bags[1]) and bags[3].abs().max() == 0
    once, twice = math.log(2), math.log(3)                              # cat and dog; a
    cos = (once**2 + twice * once) / math.sqrt((2 * once**2 + twice**2) * 2 * once**2)
    assert float(bags[0] @ bags[2]) == pytest.approx(cos, rel=1e-5) and float(bags[0] @ bags[4]) == 0
