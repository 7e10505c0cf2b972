"""The main job, probing, listing and the doctor, through the command line on scikit-learn's digits."""

import json

import numpy as np
import pytest
from PIL import Image

from notan import catalogue, cli
from notan.nets.build import load_encoder
from notan.runs import compare as compare_module

ARMS = ["compare", "simclr", "mae:mask_ratio=0.5", "--data", "digits", "--steps", "3", "--batch", "32", "--threads", "1",
        "--encoder", "vit:image_size=16,patch=4,dim=32,depth=1,heads=2", "--probe-rows", "300"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    assert cli.main([*ARMS, "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_compare_writes_a_table_a_report_and_encoders(compared):
    study = json.loads((compared / "study.json").read_text())
    names = [r["arm"] for r in study["rows"]]
    assert names[:4] == ["raw pixels", "simclr", "mae:mask_ratio=0.5", "supervised"]
    assert len(names) == 5 and names[4].startswith("random weights")
    for row in study["rows"]:
        assert all(len(v) == 2 and min(v) > 0 and max(v) <= 1 for v in row["metrics"].values())
    assert len({tuple(r["metrics"]) for r in study["rows"]}) == 1
    page = (compared / "report.html").read_text()
    assert "</html>" in page and "Time: training steps" in page
    assert study["profile"]["training steps"] > 0 and sum(study["profile"].values()) == pytest.approx(
        study["seconds"], rel=0.05)
    assert load_encoder(compared / "encoders" / "mae-mask_ratio=0.5").dim == 32


def test_a_run_of_a_comparison_can_be_run_again_from_its_config(tmp_path):
    from notan.data import open_data

    folder = tmp_path / "by class"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    assert open_data(str(folder)).spec == str(folder)
    out = tmp_path / "out"
    common = ["--data", str(folder), "--batch", "4", "--encoder", "vit:patch=4,dim=16,depth=1,heads=2", "--threads", "1"]
    assert cli.main(["compare", "mae", "--steps", "2", "--seeds", "1", "--out", str(out), *common]) == 0
    assert cli.main(["train", "--config", str(out / "runs" / "mae" / "seed0" / "config.yaml"), "--out", str(tmp_path / "r")]) == 0
    one, two = (load_encoder(p).state_dict() for p in (out / "runs" / "mae" / "seed0", tmp_path / "r"))
    assert all((one[k] == two[k]).all() for k in one)


@pytest.mark.parametrize("slug", ["focallens", "focallens_mllm"])
def test_a_method_whose_batches_hold_groups_can_be_compared(slug, tmp_path):
    """Before its first step it stands beside itself, which takes a batch that its groups fit in."""
    out = tmp_path / "out"
    assert cli.main(["compare", slug, "--data", "emoji-questions", "--steps", "1", "--batch", "8", "--seeds", "1", "--threads",
                     "1", "--probe-rows", "60", "--out", str(out)]) == 0
    rows = {row["arm"]: row for row in json.loads((out / "study.json").read_text())["rows"]}
    assert slug in rows and any(name.startswith("random weights") for name in rows)


def test_encoders_that_differ_are_told_apart():
    """Methods are ranked within an architecture: another stem or block is another one."""
    simclr, pixpro, mae = (catalogue.method(m).recipes["small"]["encoder"] for m in ("simclr", "pixpro", "mae"))
    assert len({compare_module._name(spec) for spec in (simclr, pixpro, mae, {**simclr, "strides": [2, 1, 1, 1]})}) == 4


def test_the_same_command_again_trains_nothing(compared):
    states = {p: p.stat().st_mtime_ns for p in (compared / "runs").rglob("model.safetensors")}
    before = json.loads((compared / "study.json").read_text())["rows"]
    assert cli.main([*ARMS, "--seeds", "2", "--out", str(compared)]) == 0
    assert states == {p: p.stat().st_mtime_ns for p in (compared / "runs").rglob("model.safetensors")}
    assert json.loads((compared / "study.json").read_text())["rows"] == before


def test_one_seed_is_valid_json_without_intervals(tmp_path):
    assert cli.main([*ARMS, "--seeds", "1", "--no-supervised", "--out", str(tmp_path / "c")]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    study = json.loads((tmp_path / "c" / "study.json").read_text(), parse_constant=refuse)
    assert study["rows"][0]["paired"]["ridge, 300 labels"][1] == "nan"


@pytest.mark.parametrize("protocol", ["ridge", "knn", "logistic", "fewshot", "finetune"])
def test_probe(compared, protocol, capsys):
    run = compared / "runs" / "simclr" / "seed0"
    assert cli.main(["probe", str(run), "--protocol", protocol, "--rows", "300", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results and all(0 < r["accuracy"] <= 1 and "rows" in r["protocol"] for r in results.values())


def test_doctor_says_a_run_is_well_and_an_unfinished_one_is_not(compared, capsys):
    run = compared / "runs" / "simclr" / "seed0"
    assert cli.main(["doctor", str(run)]) == 0
    assert "simclr on digits, seed 0" in capsys.readouterr().out
    metrics = run / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text[: text.index("\n") + 1])
    assert cli.main(["doctor", str(run)]) == 0 and "not finished" in capsys.readouterr().out
    metrics.write_text(text)


@pytest.mark.parametrize("what", ["methods", "data", "claims"])
def test_list(what, capsys):
    assert cli.main(["list", what]) == 0
    assert {"methods": "hpm", "data": "digits", "claims": "pixpro"}[what] in capsys.readouterr().out


@pytest.mark.parametrize("argv, says", [
    (["compare", "simclr", "--data", "no/such/place"], "no/such/place"),
    (["compare", "simclr", "--data", "digits", "--baseline", "mae"], "'mae' is not an arm"),
    (["compare", "simclr", "--data", "digits", "--seeds", "0"], "--seeds 0"),
    (["compare", "random", "--data", "digits"], "does not train"),
    (["compare", "mae", "--data", "digits", "--batch", "5000"], "mae takes a batch of 5000 rows"),
    (["probe", "no/such/run"], "does not say what data"),
    (["probe", "no/such/run", "--data", "digits"], "holds no encoder"),
    (["doctor", "no/such/place"], "no/such/place"),
    (["train"], "no method was named"),
    (["claim", "nothing"], "nothing"),
    (["export", "no/such/run"], "no/such/run"),
])
def test_bad_input_is_named_with_a_fix(argv, says, capsys):
    assert cli.main(argv) == 1
    shown = capsys.readouterr()
    assert says in shown.err + shown.out and "fix" in shown.err + shown.out


def test_more_unreadable_pictures_may_be_allowed(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    for torn in ("torn.png", "torn2.png", "torn3.png"):
        (tmp_path / "data" / "a" / torn).write_bytes(b"no picture")
    argv = ["train", "mae", "--data", str(tmp_path / "data"), "--batch", "4", "--steps", "1", "--threads", "1", "--encoder",
            "vit:dim=16,depth=1,heads=2", "--out", str(tmp_path / "run")]
    assert cli.main(argv) == 1
    shown = capsys.readouterr().err
    assert "torn.png" in shown and "--limit-bad" in shown
    assert cli.main([*argv, "--limit-bad", "0.2"]) == 0


def test_one_class_cannot_be_compared(tmp_path, capsys):
    (tmp_path / "cats").mkdir()
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "cats" / f"{i}.png")
    assert cli.main(["compare", "simclr", "--data", str(tmp_path), "--batch", "4"]) == 1
    assert "label" in capsys.readouterr().err
