"""Take the encoder and leave: equal output in every form, and a table of embeddings."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import torch
import toy

import notan
from notan import catalogue
from notan.errors import NotanError
from notan.nets.build import build_encoder, save_encoder
from notan.runs import export as exports
from notan.runs.embed import embed, encoding
from notan.runs.export import export
from notan.runs.folder import Run
from notan.runs.train import train

toy.register()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return train("toy", toy.data(), out=tmp_path_factory.mktemp("run") / "r", steps=6, threads=1)


def pixels(rows: int = 4) -> torch.Tensor:
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_safetensors_loads_in_one_call(run, tmp_path):
    folder = export(run.path, out=tmp_path)
    with torch.no_grad():
        assert torch.equal(notan.load(folder).features(pixels()), run.encoder().features(pixels()))
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_hf_is_a_stock_model_with_its_preprocessing(run):
    from transformers import AutoConfig, AutoModel
    folder = export(run, to="hf")
    assert folder == run.path / "export-hf" and type(AutoConfig.from_pretrained(folder)).__name__ == "ViTConfig"
    said = json.loads((folder / "preprocessor_config.json").read_text())
    x = (pixels() - torch.tensor(said["image_mean"])[:, None, None]) / torch.tensor(said["image_std"])[:, None, None]
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(folder).eval()(pixel_values=x).last_hidden_state
        torch.testing.assert_close(theirs[:, 1:].mean(1), run.encoder().features(pixels()), rtol=1e-5, atol=1e-5)


def test_onnx_takes_any_batch(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(export(run, to="onnx", out=tmp_path) / "model.onnx"))
    for rows in (1, 2, 7):
        x = pixels(rows)
        with torch.no_grad():
            ours = run.encoder().features(x)
        theirs = torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0])
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_onnx_of_a_convnet(tmp_path):
    pytest.importorskip("onnxruntime")
    save_encoder(build_encoder("resnet10:width=4,stem=cifar", toy.data().info), tmp_path / "e")
    assert (export(tmp_path / "e", to="onnx") / "model.onnx").exists()


def test_forms_that_there_are_not_are_refused_with_the_reason(run, tmp_path, monkeypatch):
    with pytest.raises(NotanError, match="no export to 'tf'"):
        export(run, to="tf")
    monkeypatch.setitem(catalogue.method("toy").card, "exports", ["onnx"])
    monkeypatch.setitem(catalogue.method("toy").card, "exports_why", "its positions differ")
    with pytest.raises(NotanError, match=r"toy does not export to hf: its positions differ.*safetensors, onnx"):
        export(run, to="hf")
    save_encoder(build_encoder("resnet10:width=4,stem=cifar", toy.data().info), tmp_path / "e")
    with pytest.raises(NotanError, match="no stock class of transformers computes what resnet10 does"):
        export(tmp_path / "e", to="hf")


def test_an_export_that_differs_is_not_handed_over(run, tmp_path, monkeypatch):
    real = exports.vit_to_hf
    bent = lambda state: {k: v * 1.001 if "query" in k else v for k, v in real(state).items()}  # noqa: E731
    monkeypatch.setattr(exports, "vit_to_hf", bent)
    with pytest.raises(NotanError, match="gives other features"):
        export(run, to="hf", out=tmp_path / "hf")


def test_embeddings_are_a_table(run, tmp_path):
    data = toy.data()
    out = embed(run.path, data, out=tmp_path / "deep" / "e.parquet", split="test", batch=50)
    table = pq.read_table(out)
    assert table.column_names == ["row", "feature", "label", "class"] and table.num_rows == len(data.test)
    assert table["row"].to_pylist() == list(range(len(data.test)))
    assert table["class"].to_pylist() == ["abcd"[i] for i in data.test.values("label")]
    with torch.no_grad():
        ours = run.method().encode(data.test.take(range(len(data.test))))
    torch.testing.assert_close(torch.tensor(table["feature"].to_pylist()), ours, rtol=1e-5, atol=1e-6)
    assert not list(out.parent.glob(".*"))


def test_an_encoder_folder_or_module_embeds_pictures_of_another_size(run, tmp_path):
    bigger = toy.data(64, 16)
    for source in (run.path / "encoder", run.encoder(), run):
        table = pq.read_table(embed(source, bigger, out=tmp_path / "e.parquet"))
        assert len(table["feature"][0]) == 16
    assert encoding(run)(bigger.test.take(range(3))).shape == (3, 16)


def test_bad_embeddings_are_explained(run, tmp_path):
    with pytest.raises(NotanError, match=r"ends in \.parquet"):
        embed(run, toy.data(), out=tmp_path / "e.csv")
    with pytest.raises(NotanError, match="no split 'val'"):
        embed(run, toy.data(), out=tmp_path / "e.parquet", split="val")
    with pytest.raises(NotanError, match="holds no encoder"):
        embed(tmp_path, toy.data(), out=tmp_path / "e.parquet")
