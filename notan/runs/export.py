"""`notan export`: take the encoder and leave. Every export is loaded again and must give equal output."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from notan import catalogue
from notan.errors import NotanError
from notan.nets.build import load_encoder, save_encoder
from notan.nets.convert import hf_config, hf_preprocessor, vit_to_hf
from notan.nets.protocols import LanguageModel, NumberEncoder
from notan.runs.checkpoint import full_disk_explained, write_tensors
from notan.runs.folder import Run

FORMS = ("safetensors", "hf", "onnx")
TOLERANCE = 1e-5


def export(run: str | Path | Run, *, to: str = "safetensors", out: str | Path | None = None,
           tower: str | None = None) -> Path:
    """Write the trained encoder into the folder `out` (default RUN/export-TO) and return it.

    run: a run, or a folder with an encoder. to: "safetensors" (config.json and model.safetensors, which `notan.load`
    reads), "hf" (a stock `transformers` ViTModel with its image processor), or "onnx" (model.onnx: `pixels` in [0, 1],
    float (B, C, S, S), or `numbers` (B, F), any B, to `features` (B, D)). A language model is written as `transformers`
    reads it, with its tokenizer, in either of the first two forms. Outputs are compared to 1e-5 before this returns.
    Raises `NotanError` for a form that the method or encoder does not have, and why.
    """
    if to not in FORMS:
        raise NotanError(f"there is no export to {to!r}", ", ".join(FORMS))
    run = Run(run) if isinstance(run, (str, Path)) and (Path(run) / "config.yaml").exists() else run
    place = run.path if isinstance(run, Run) else Path(run)
    if isinstance(run, Run):
        _check_card(run, to)
    encoder = run.encoder(tower) if isinstance(run, Run) else load_encoder(run)
    folder = Path(out) if out is not None else place / f"export-{to}"
    words = isinstance(encoder, LanguageModel)
    write = {"safetensors": _language if words else _safetensors, "hf": _language if words else _hf, "onnx": _onnx}[to]
    with full_disk_explained(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(encoder.float().cpu().eval(), folder)
        except NotanError:
            if not there:
                shutil.rmtree(folder)
            raise
    return folder


def _check_card(run: Run, to: str) -> None:
    """The method's CARD says which forms it has."""
    card = catalogue.method(run.settings.method).card
    if to not in {"safetensors", *card["exports"]}:
        why = card.get("exports_why", "its encoder has no equal in that form")
        raise NotanError(f"{run.settings.method} does not export to {to}: {why}",
                         ", ".join(["safetensors", *(e for e in card["exports"] if e != "safetensors")]),
                         "--to safetensors, and notan.load")


def _safetensors(encoder: Any, folder: Path) -> None:
    save_encoder(encoder, folder)
    pixels = _pixels(encoder)
    with torch.no_grad():
        _check_equal(encoder.features(pixels), load_encoder(folder).features(pixels), folder)


def _language(model: Any, folder: Path) -> None:
    save_encoder(model, folder)
    ids = torch.arange(24)[None] % model.model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        _check_equal(model(ids)[0], load_encoder(folder)(ids)[0], folder)


def _hf(encoder: Any, folder: Path) -> None:
    """A ViT under the names of `transformers`; a backbone that came from there goes back as it is."""
    from transformers import AutoModel

    if encoder.config["name"] == "hf":
        encoder.model.save_pretrained(folder)
    elif encoder.config["name"].startswith("vit"):
        weights = vit_to_hf(encoder.state_dict())
        (folder / "config.json").write_text(json.dumps(hf_config(encoder.config), indent=1))
        write_tensors(folder / "model.safetensors", weights)
    else:
        raise NotanError(f"no stock class of transformers computes what {encoder.config['name']} does",
                         "a vit, or a backbone from the hub", "--to safetensors or --to onnx")
    (folder / "preprocessor_config.json").write_text(json.dumps(hf_preprocessor(encoder.config), indent=1))
    with _quiet(), torch.no_grad():
        stock = AutoModel.from_pretrained(folder).eval()
        pixels = _pixels(encoder)
        theirs = stock(pixel_values=encoder.normalise(pixels)).last_hidden_state
        ours = encoder._hidden(pixels) if encoder.config["name"] == "hf" else encoder(pixels)
    _check_equal(ours, theirs, folder)


class _Features(nn.Module):
    """`features` as the forward pass, which is what gets traced."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.features(pixels)


def _onnx(encoder: Any, folder: Path) -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise NotanError("onnx export needs packages that are not here", "the extra `export`",
                         "pip install 'notan[export]'") from None
    if encoder.config["name"] == "series":
        raise NotanError("series differ in length, which this export does not write", "a table, or pictures",
                         "--to safetensors, and notan.load")
    path, named = folder / "model.onnx", "numbers" if isinstance(encoder, NumberEncoder) else "pixels"
    with _quiet(), torch.no_grad():
        torch.onnx.export(_Features(encoder).eval(), (_pixels(encoder),), str(path), dynamo=True, verbose=False,
                          input_names=[named], output_names=["features"], external_data=False,
                          dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        pixels = _pixels(encoder, rows)
        theirs = torch.from_numpy(session.run(["features"], {named: pixels.numpy()})[0])
        with torch.no_grad():
            _check_equal(encoder.features(pixels), theirs, folder)


def _pixels(encoder: Any, rows: int = 3) -> Tensor:
    """What an encoder reads: pixels, numbers (rows, F), or a series (rows, 16, C)."""
    if isinstance(encoder, NumberEncoder):
        return torch.randn(rows, *([16] if encoder.config["name"] == "series" else []), encoder.width)
    return torch.rand(rows, encoder.channels, encoder.image_size, encoder.image_size)


def _check_equal(ours: Tensor, theirs: Tensor, folder: Path) -> None:
    """Equal to 1e-5 of the outputs' own scale."""
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0))
    if not apart <= TOLERANCE:
        raise NotanError(f"the export in {folder} gives other features: {apart:.1e} apart", f"at most {TOLERANCE:.0e}",
                         "do not use it; please report this with the encoder's config.json")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot; nothing they say here concerns the user."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
