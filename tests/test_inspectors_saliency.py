"""The inspector of saliency: maps that are known, their sign, their areas, the trap, and the command."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_nets_dual import saved_hub
from torch import nn

from notan import cli
from notan.errors import NotanError
from notan.inspectors import saliency
from notan.methods._example import captioned, tiny_dual_encoder, tiny_text_encoder
from notan.nets.build import save_encoder
from notan.nets.convnet import ConvNet
from notan.nets.dual import Dual, head
from notan.runs.inspect import inspect, two_encoders


def numbers(found):
    return {k: v for k, v in found.items() if k != "figure"}


class Bright(nn.Module):
    """The cosine is the share of bright pixels that are seen, by construction; patches say the opposite of what they are."""

    channels, image_size = 3, 16

    class Encoder:
        grid, prefix = (4, 4), 1

    def __init__(self):
        super().__init__()
        self.image_encoder, self.unit = self.Encoder(), nn.Parameter(torch.ones(1, dtype=torch.float64))

    def image(self, x, mask=None):
        cells = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
        return torch.stack([(cells if mask is None else cells.masked_fill(mask, 0)).mean(1), torch.ones(len(x)).to(x)], 1)

    def patches(self, x):
        cells = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
        return torch.stack([-cells, torch.ones_like(cells)], 2)


def test_hiding_tells_a_map_from_its_negative():
    x, model = torch.rand(6, 3, 16, 16, dtype=torch.float64), Bright()
    t = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(6, -1)
    cosine = F.cosine_similarity(model.image(x), t)
    right = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), 4).flatten(1)
    found = saliency.hidden(model, x, t, cosine, right, "")
    assert (found["hottest"] > found["coldest"]).all() and found["sign"].tolist() == [1] * 6 and (found["coldest"] > 0).all()
    raw = F.cosine_similarity(model.patches(x), t[:, None], dim=2)
    trap = saliency.hidden(model, x, t, cosine, raw, " by similarity")
    assert trap["sign by similarity"].tolist() == [0] * 6
    torch.testing.assert_close(trap["hottest by similarity"], found["coldest"])


def test_areas_are_the_share_of_pairs_in_the_right_order():
    model = Bright()
    segmentation = torch.zeros(4, 8, 8, dtype=torch.int64)
    segmentation[0, :4] = 3                                             # the upper half is a thing
    segmentation[1, :4], segmentation[1, 4:] = 1, 255                   # what is below does not count
    segmentation[2, :, :2], segmentation[2, :, 2:4] = 1, 255
    segmentation[3, 0, 0] = 1                                           # a quarter of a patch: none is of a thing
    scores = torch.arange(16.0).flip(0).expand(4, -1)
    found = saliency.areas(scores, segmentation, model)
    assert found[0] == 1 and found[1].isnan() and found[3].isnan()
    inside, outside = scores[0].view(4, 4)[:, 0], scores[0].view(4, 4)[:, 2:].flatten()
    assert found[2] == pytest.approx(float((inside[:, None] > outside).double().mean()))
    assert saliency.areas(torch.zeros(1, 16), segmentation[:1], model).item() == 0.5
    assert saliency.areas(-scores[:1], segmentation[:1], model).item() == 0


def test_how_many_take_part():
    scores = torch.tensor([[1.0, 1, 1, 1], [0, 0, 2, 0], [0, 0, 0, 0]])
    assert saliency.effective(scores)[:2].tolist() == pytest.approx([4, 1]) and saliency.effective(scores)[2].isnan()


def test_a_word_that_is_left_out_is_the_text_without_it():
    torch.manual_seed(0)
    model = tiny_dual_encoder().double().eval()
    ids, pad = model.text_encoder.tokens(["cbdeb", "cb", "b"])          # a token a letter: five, two and one
    assert (~pad).sum(1).tolist() == [7, 4, 3]
    v = torch.randn(3, 16, dtype=torch.float64)
    cosine = F.cosine_similarity(v, model.text(["cbdeb", "cb", "b"]))
    words = torch.zeros(ids.shape, dtype=torch.float64)
    words[0, 1:6], words[1, 1:3] = torch.tensor([0.5, 0.4, 1.0, 0.2, 0.3]).double(), torch.tensor([0.0, 1.0]).double()
    found = saliency.left_out(model, ids, pad, v, cosine, words)
    for row, top, bottom in ((0, "cbeb", "cbdb"), (1, "c", "b")):
        costs = cosine[row] - F.cosine_similarity(v[row : row + 1], model.text([top, bottom]))
        torch.testing.assert_close(torch.stack([found["top word"][row], found["bottom word"][row]]), costs)
        assert found["sign of words"][row] == float(costs[0] > costs[1])
    assert found["top word"][2].isnan() and found["sign of words"][2].isnan()


def test_what_it_finds_does_not_depend_on_parts_and_a_run_in_training_stays_so(monkeypatch):
    model, data = saliency.example()
    whole = numbers(saliency.measure(model, data))
    monkeypatch.setattr(saliency, "PART", 3)
    again = numbers(saliency.measure(model.train(), data))
    assert again.keys() == whole.keys() and model.training
    for k, v in whole.items():
        assert again[k] == pytest.approx(v, rel=1e-9), k
    bare = [{k: v for k, v in b.items() if k != "segmentation"} for b in data]
    found = saliency.measure(model, bare)
    assert "AUC" not in found and found["sign"] == whole["sign"] and 0 <= whole["sign by similarity"] <= 1


def test_the_figure_shows_pieces_of_words_and_long_captions():
    model, batch = tiny_dual_encoder().eval(), captioned(3)
    batch["captions"] = [["the cat ü saw"], ["dog " * 40], [""]]
    names = model.text_encoder.tokenizer.tokenize("the cat saw")
    assert "".join(saliency.pieces(model.text_encoder.tokenizer, names)).strip() == "the cat saw"
    assert saliency.pieces(model.text_encoder.tokenizer, ["Ġcat", "ch", "Ġa"]) == [" cat", "ch", " a"]
    assert saliency.pieces(model.text_encoder.tokenizer, ["ca", "t</w>", "saw</w>"])[2].startswith(" ")
    found = saliency.measure(model, [batch])
    assert found["blind"] >= 1 / 3 and len(found["figure"].axes) == 12


def test_a_released_clip_is_read_too(tmp_path):
    saved_hub(tmp_path)
    model, batch = two_encoders(f"hf:{tmp_path}").eval(), captioned(4)
    batch["captions"] = [["<|endoftext|>" + every[0] + "<|endoftext|>"] for every in batch["captions"]]
    found = saliency.measure(model, [batch], layers=2)
    assert found["pairs"] == 4 and 1 <= found["effective patches"] <= 16


def test_the_command_on_a_dual_encoder_and_bad_input(tmp_path, capsys):
    torch.manual_seed(0)
    save_encoder(tiny_dual_encoder(), tmp_path / "dual")
    pictures = tmp_path / "captioned"
    pictures.mkdir()
    for i in range(20):
        Image.effect_noise((16, 16), 50 + i).convert("RGB").save(pictures / f"{i:02}.png")
        (pictures / f"{i:02}.txt").write_text(f"the cat saw {i} dogs by the sea\n")
    assert cli.main(["inspect", "saliency", str(tmp_path / "dual"), "--data", str(pictures), "--out", str(tmp_path / "out"),
                     "--layers", "2"]) == 0
    assert "sign by similarity" in capsys.readouterr().out
    assert (tmp_path / "out" / "saliency-figure.png").stat().st_size > 5000
    with pytest.raises(NotanError, match="layers = 3 of a"):
        inspect("saliency", tmp_path / "dual", pictures, settings={"layers": 3})
    with pytest.raises(NotanError, match="a Linear was given"):
        two_encoders(nn.Linear(2, 2))
    conv = Dual(ConvNet(image_size=16, channels=3), tiny_text_encoder(), head(256, 8), head(32, 8), tau=0.1)
    with pytest.raises(NotanError, match="ConvNet, which has no tokens"):
        saliency.measure(conv, [captioned(3)])
    with pytest.raises(NotanError, match="no pairs"):
        saliency.measure(tiny_dual_encoder(), [])
    broken = tiny_dual_encoder()
    nn.init.constant_(broken.text_head.weight, torch.nan)
    with pytest.raises(NotanError, match="not finite"):
        saliency.measure(broken, [captioned(3)])
