"""What is asked of a run later: by its own data where none is named, from another folder, and as another run's beginning."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import notan
from notan import cli
from notan.errors import NotanError
from notan.methods import ga_dms, siglip
from notan.methods._progress import Progress
from notan.nets.protocols import DualEncoder
from notan.runs.caption_data import caption_data
from notan.runs.embed import embed
from notan.runs.folder import Run
from notan.runs.index import Index
from notan.runs.probe import probe
from notan.runs.train import train

TOWERS = {"image_encoder": "vit:patch=4,dim=16,depth=1,heads=2", "text_encoder": "text:dim=16,depth=1,heads=2,context=8"}
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a table of pictures whose captions and classes have names of their own, and a run that was started in it."""
    home = tmp_path_factory.mktemp("home")
    rows = []
    for i in range(80):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(home / f"{i}.png")
        rows.append(f"{i}.png,a {COLOURS[i % 4]} thing {i},{COLOURS[i % 4]}")
    (home / "table.csv").write_text("file,said,kind\n" + "\n".join(rows) + "\n")
    columns = {"file": "image", "said": "text", "kind": "label"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train("clip", "table.csv", out="run", steps=2, batch=8, encoder=TOWERS, threads=1, data_options={"columns": columns})
    return home


def test_a_run_is_probed_embedded_and_inspected_on_its_own_data_with_its_own_columns(home, tmp_path, capsys):
    found = probe(home / "run")                                         # from another folder than it was started in
    assert {"picture to text", "text to picture", "zero-shot"} <= set(found)
    assert cli.main(["embed", str(home / "run"), "--out", str(tmp_path / "index")]) == 0
    index = Index(tmp_path / "index")
    assert len(index) == 80 and index.item(0)["text"].startswith("a ")
    assert cli.main(["embed", str(home / "run"), "--out", str(tmp_path / "e.parquet")]) == 0
    assert cli.main(["inspect", "gap", str(home / "run"), "--out", str(tmp_path / "gap")]) == 0
    assert cli.main(["train", "--config", str(home / "run" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    capsys.readouterr()
    assert cli.main(["embed", str(home / "run" / "image_encoder"), "--out", str(tmp_path / "e2")]) == 1
    assert "no data was named" in capsys.readouterr().err
    for command in ("probe", "embed", "inspect"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert "(default: what the run was trained on)" in " ".join(capsys.readouterr().out.split()).replace("on )", "on)")


def test_a_run_of_two_encoders_is_loaded_as_both(home):
    both = notan.load(home / "run")
    assert isinstance(both, DualEncoder)
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(both.image(x), Run(home / "run").method().eval().image_head(
        Run(home / "run").method().eval().image_encoder.features(x)))


def test_its_export_says_what_it_leaves_out(home, tmp_path, capsys):
    assert cli.main(["export", str(home / "run"), "--to", "safetensors", "--out", str(tmp_path / "out")]) == 0
    assert "picture encoder alone" in capsys.readouterr().out
    assert cli.main(["export", str(home / "run"), "--to", "hf", "--out", str(tmp_path / "hf")]) in (0, 1)
    assert not (tmp_path / "hf").exists() or any((tmp_path / "hf").iterdir())       # nothing half-written


@pytest.mark.parametrize("side", [8, 32])
def test_pictures_of_another_side_are_brought_to_the_one_it_was_trained_on(home, tmp_path, side):
    """Smaller ones cannot be kept larger than they are, larger ones are kept as the run reads them."""
    for i in range(16):
        for name in ("a", "b"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((side, side, 3), 9 * i, np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    run = train("coop", str(tmp_path / "data"), out=tmp_path / "run", steps=1, batch=8, encoder=str(home / "run"), threads=1,
                settings={"prompts": 2})
    assert run.info.image_size == min(side, 16) and run.settings.data_options["cache_side"] == 16


def test_a_tower_of_another_name_and_a_model_that_is_not_there_are_told_how(home, tmp_path, capsys):
    with pytest.raises(NotanError, match=r"no tower 'encoder'.*--image-encoder or --text-encoder"):
        train("clip", "emoji", out=tmp_path / "a", steps=0, encoder="vit")
    with pytest.raises(NotanError, match=r"'nowhere' is no dual encoder.*check the path"):
        train("coop", "emoji", out=tmp_path / "b", steps=0, encoder="nowhere")
    with pytest.raises(NotanError, match=r"--image-encoder vit"):
        conv = train("clip", "emoji", out=tmp_path / "c", steps=0, batch=8, threads=1,
                     encoder={**TOWERS, "image_encoder": "convnet:widths=[8],strides=[2]"})
        train("focallens", "emoji-questions", out=tmp_path / "d", steps=0, encoder=str(conv.path))


def test_a_run_that_reads_instructions_is_probed_by_what_it_is_asked(tmp_path):
    size = {"name": "llava", "dim": 32, "depth": 1, "heads": 2, "context": 96, "patch": 8, "picture_depth": 1}
    run = train("focallens_mllm", "emoji-questions", out=tmp_path / "run", steps=0, batch=8, encoder=size, threads=1)
    found = probe(run.path, rows=400)
    assert "all instructions" in found


@pytest.mark.parametrize("made", [ga_dms, siglip])
def test_a_batch_of_one_row_has_nothing_to_be_set_against(made):
    method, batch = made.example(2, torch.float64)
    one = {name: value[:1] for name, value in batch.items()}
    with pytest.raises(NotanError, match="a batch of one row has no negatives"):
        method.train().loss(one, Progress(step=1, steps=2, epoch=0, epochs=1))


def test_rows_of_one_picture_are_one_in_an_index(home, tmp_path):
    rows = [{"image": f"{i // 2}.png", "instruction": f"what {i % 2}?", "answer": COLOURS[i % 4]} for i in range(40)]
    (home / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for data, count in ((str(home / "asked.jsonl"), 20), ("emoji-questions", 3022 + 800)):
        embed(home / "run", data, out=tmp_path / "index")
        names = [Index(tmp_path / "index").item(i)["name"] for i in range(Index(tmp_path / "index").count)]
        assert len(names) == count                                      # its splits number their pictures each by itself
        shutil.rmtree(tmp_path / "index")


def test_captions_of_a_first_call_are_not_mixed_with_those_of_another(home, tmp_path):
    def said(pictures, templates):
        return ["a thing"] * len(pictures)

    first = caption_data(home, said, out=tmp_path / "out", templates=["a {}"], least=0.1)
    assert caption_data(home, said, out=tmp_path / "out", templates=["a {}"], least=0.1) == first
    for other in ({"templates": ["the {}"], "least": 0.1}, {"templates": ["a {}"], "least": 0.2},
                  {"templates": ["a {}"], "least": 0.1, "seed": 1}):
        with pytest.raises(NotanError, match=r"holds captions made with .*another out"):
            caption_data(home, said, out=tmp_path / "out", **other)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["least"] == 0.1
