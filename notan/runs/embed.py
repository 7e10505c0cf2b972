"""`notan embed`: rows become features, a table or an index to search, with any run, saved encoder or Hugging Face backbone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notan import catalogue
from notan.data import Data, DataInfo, Rows, keys, open_data
from notan.data.items import not_streamed
from notan.errors import NotanError
from notan.methods._inputs import whole
from notan.methods._pairs import first_caption
from notan.nets.build import build_dual, build_encoder, build_seeing, is_dual, load_encoder
from notan.nets.dual import RELEASED
from notan.nets.hub import described, reads_pictures
from notan.nets.protocols import DualEncoder, LanguageModel, NumberEncoder, SeeingModel, TextEncoder
from notan.nets.seeing import kept_readout
from notan.nets.text import build_text, cut
from notan.probes.features import extract
from notan.runs.checkpoint import full_disk_explained, make_folder
from notan.runs.folder import Run, found_again
from notan.views.geometry import floats, resize

Encode = Callable[[dict[str, Any]], Tensor | dict[str, Tensor]]
ROWS = 4096                                                             # held in memory at a time
DEFAULTS = {name: option.default for name, option in signature(open_data).parameters.items()}
OTHERS = (".csv", ".tsv", ".json", ".jsonl", ".npy", ".npz", ".pt", ".pkl", ".h5", ".hdf5", ".feather", ".arrow", ".txt", ".xlsx")


def embed(run: str | Path | Run | nn.Module, data: str | Data | None = None, *, out: str | Path, split: str | None = None,
          data_options: dict[str, Any] | None = None, batch: int = 512, instruction: str | None = None, vector: str | None = None,
          dtype: str | None = None, approximate: bool = False, precision: str = "auto", console: Any = None) -> Path:
    """Write `out`, a parquet file: `row` int64, `feature` list<float32>[D], and `label`, `class` if there are. Or, where `out` is
    a folder, bring the index there up to date (`runs/indexing.py`), for `search` and `view`.

    run: a run folder (its method's `encode`), an encoder folder, "hf:NAME", or a module with `features`. data: where None what
    the run was trained on, opened as it was then. An encode with several outputs gives a column `feature_<name>` for each.
    Pictures of another size are resized to the encoder's.
    split: default train; of an index both. instruction: that all pictures are encoded under, of a model that reads one. Of an
    index alone: vector (which of several outputs), dtype (float16 or float32), approximate (build the graph for approximate
    search, too), precision (auto, fp32 or bf16). Raises `NotanError` for another suffix, an unknown split, a source that is none
    of these, and an instruction to one that reads none.
    """
    out, instruction = Path(out), instruction.strip() if instruction is not None else None
    if out.suffix in OTHERS and not out.is_dir():
        raise NotanError(f"--out {out}", "a name that ends in .parquet, or a folder for an index",
                         f"--out {out.with_suffix('.parquet')}")
    data, data_options = data_of(run, data, data_options)
    if out.suffix != ".parquet":
        return _index(run, data, out, split, dict(data_options or {}), instruction, vector, dtype, approximate, precision,
                      console)
    if vector or dtype or approximate:
        raise NotanError(f"--out {out} is a table, and was asked for what only an index has",
                         "no --vector, --dtype or --approximate", "leave them out, or --out FOLDER")
    split = split or "train"
    if split not in ("train", "test"):
        raise NotanError(f"there is no split {split!r}", "train or test")
    if isinstance(data, Data):
        not_streamed(data)
    run = source_of(run)
    opened = opened_for(run, data, data_options)
    not_streamed(opened)
    rows = opened.train if split == "train" else opened.test
    encode = encoding(run, instruction)
    make_folder(out.parent)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    with full_disk_explained(out.parent):
        try:
            _write(part, _tables(encode, rows, opened.info.classes, batch))
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)
    return out


def _index(run: Any, data: str | Data, out: Path, split: str | None, options: dict[str, Any], instruction: str | None,
           vector: str | None, dtype: str | None, approximate: bool, precision: str, console: Any) -> Path:
    from notan.runs import nearest
    from notan.runs.indexing import bar, index

    if options.get("cache_side"):
        raise NotanError("--cache-side was given for an index", "pictures at the model's own size", "leave it out")
    asked = {key: options[key] for key in ("fit", "columns", "limit_bad") if options.get(key) is not None}
    done = index(run, data, out, split=split, instruction=instruction, vector=vector, dtype=dtype, precision=precision,
                 console=console, **asked)
    if approximate:
        with bar(console, "building the graph") as advance:
            nearest.build_graph(out, advance)
    if console is not None:
        console.print(f"{out}: {done}", highlight=False, markup=False, soft_wrap=True)
    return out


def data_of(run: str | Path | Run | nn.Module, data: str | Data | None,
            options: dict[str, Any] | None) -> tuple[str | Data, dict[str, Any]]:
    """What was named with its options; or, where nothing was, what a run was trained on as it was opened then, under options that
    were given. Raises `NotanError` for what is no run.
    """
    options = dict(options or {})
    if data is not None:
        return data, options
    if not isinstance(run, Run):
        if isinstance(run, nn.Module) or not (Path(run) / "config.yaml").exists():
            name = type(run).__name__ if isinstance(run, nn.Module) else run
            raise NotanError(f"no data was named, and {name} does not say what data it was trained on", "--data DATA",
                             "name the data")
        run = Run(run)
    own = {name: value for name, value in (run.settings.data_options or {}).items() if name != "stream"}
    given = {name: value for name, value in options.items() if value not in (None, DEFAULTS.get(name))}
    return found_again(run.settings.data, run.facts), own | given


def called(source: str | Path | Run | nn.Module) -> str:
    """What an index calls a model, so that it is found again: an absolute path, hf:NAME, or a module's class."""
    if isinstance(source, Run):
        return os.path.abspath(source.path)
    if isinstance(source, nn.Module):
        return type(source).__name__
    return str(source) if str(source).startswith("hf:") else os.path.abspath(source)


def opened_for(source: str | Path | Run | nn.Module, data: str | Data, options: dict[str, Any] | None) -> Data:
    """`data`, with its pictures of the side that an encoder reads unless another was asked for."""
    options = dict(options or {})
    if not isinstance(data, Data) and options.get("cache_side") is None:
        options["cache_side"] = side_of(source)
    return open_data(data, **options)


def side_of(source: str | Path | Run | nn.Module) -> int | None:
    """The side of the pictures that a run was trained on, or that an encoder reads; None of what reads none."""
    source = source_of(source)
    return source.info.image_size if isinstance(source, Run) else getattr(source, "image_size", None)


def source_of(source: str | Path | Run | nn.Module) -> Run | nn.Module:
    """A run, or the encoder that a folder or "hf:NAME" holds; what is opened already stays as it is."""
    if isinstance(source, (str, Path)):
        return Run(source) if (Path(source) / "config.yaml").exists() else load_tower(source)
    return source


def encoding(source: str | Path | Run | nn.Module, instruction: str | None = None) -> Encode:
    """What turns a batch with `image` uint8 (B, C, H, W), numbers, or `text`, into features: (B, D), or (B, D) by name.

    A run gives its method's `encode`, anything else its `features` of pixels, numbers or text; of a model that reads
    instructions all pictures under `instruction`. Runs on a GPU where there is one. Raises `NotanError` for an instruction to a
    model that reads none.
    """
    source = source_of(source)
    if instruction is not None:
        check_listens(source, instruction)
    module: Any = source.method() if isinstance(source, Run) else source.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = module.to(device)
    encode = by_method(module, source.info) if isinstance(source, Run) else _of_tower(module, device)
    if instruction is None:
        return encode
    check_heard(reader_of(module), instruction)

    def asked(batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        if "image" not in batch:
            raise unread(batch, "pictures, which an instruction asks about")
        return encode({**batch, "instruction": [instruction] * len(batch["image"])})

    return asked


def check_listens(source: Run | nn.Module, instruction: str) -> None:
    """Raises `NotanError` for an empty instruction, and for a model that reads none."""
    if not instruction:
        raise NotanError("the instruction is empty", "what is asked of all pictures", "--instruction 'which colour is it?'")
    if not listens(source):
        method = source.settings.method if isinstance(source, Run) else type(source).__name__
        raise NotanError(f"{method} reads no instruction, and {instruction!r} was given", "a run of focallens or focallens_mllm",
                         "leave out --instruction")


def listens(source: Run | nn.Module) -> bool:
    """Whether a model reads an instruction."""
    if isinstance(source, Run):
        return "instruction" in catalogue.method(source.settings.method).columns
    return isinstance(source, SeeingModel)


def check_heard(reader: Any, instruction: str) -> None:
    """Raises `NotanError` for an instruction of which the end would be cut off."""
    if (found := cut(reader, [instruction])).cut:
        raise NotanError(f"the instruction has {found.longest} tokens and the model reads {found.context}", "a shorter one",
                         "say it in fewer words")


def reader_of(module: Any) -> Any:
    """What has the tokenizer of a method's or a tower's texts; None of what reads none."""
    parts = [getattr(part, "text_encoder", part) for part in (module, *module.children())]
    return next((part for part in parts if isinstance(part, (TextEncoder, LanguageModel, SeeingModel))), None)


def _of_tower(encoder: Any, device: torch.device) -> Encode:
    """The features of what an encoder reads."""
    if isinstance(encoder, (DualEncoder, SeeingModel)):
        return partial(in_one_space, encoder, device)
    if isinstance(encoder, (LanguageModel, TextEncoder)):
        return lambda batch: encoder.features(first_caption(batch))
    if isinstance(encoder, NumberEncoder):
        return lambda batch: encoder.features(*(x.to(device) for x in whole(batch, encoder)))

    def of_pictures(batch: dict[str, Any]) -> Tensor:
        if "image" not in batch:
            raise unread(batch, "pictures")
        return encoder.features(fitted(batch["image"].to(device), encoder.channels, encoder.image_size))

    return of_pictures


def unread(batch: dict[str, Any], wanted: str) -> NotanError:
    """That rows have nothing which the model reads."""
    columns = [name for name in batch if name not in ("row", "key")]
    return NotanError(f"rows of {', '.join(columns) or 'no columns'}", wanted, "other data, or --column THEIRS=OURS")


def in_one_space(model: DualEncoder | SeeingModel, device: torch.device, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What a batch has of pictures, a language model's under their instruction, and texts, (B, d) each; of several captions the
    first.
    """
    found = {}
    if "image" in batch:
        x = fitted(batch["image"].to(device), model.channels, model.image_size)
        found["image"] = model.image(x, batch.get("instruction")) if isinstance(model, SeeingModel) else model.image(x)
    if "text" in batch or "captions" in batch:
        found["text"] = model.text(first_caption(batch))
    if not found:
        raise unread(batch, "pictures, texts, or both")
    return found


def by_method(method: nn.Module, info: DataInfo) -> Encode:
    """A run's `encode`, of pictures of any size."""
    device = next(method.parameters()).device

    def encode(batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        if "image" in batch and (info.channels, info.image_size) != tuple(batch["image"].shape[1:3]):
            pixels = fitted(batch["image"], info.channels or 0, info.image_size or 0)
            batch["image"] = (pixels * 255).round().to(torch.uint8)
        return method.encode(batch)                                     # type: ignore[operator]

    return encode


def fitted(images: Tensor, channels: int, side: int) -> Tensor:
    """uint8 images (B, C, H, W) as pixels in [0, 1] with the channels and the side an encoder takes."""
    pixels = floats(images)
    if pixels.shape[1] != channels:
        pixels = pixels.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return pixels if pixels.shape[2:] == (side, side) else resize(pixels, side)


def load_tower(source: str | Path) -> Any:
    """The encoder of a run, of an encoder folder, or of "hf:NAME", of pictures or of texts, in eval mode; of a released CLIP both
    its encoders.
    """
    if str(source).startswith("hf:"):
        return _hub_builder(str(source)[3:])(str(source)).eval()
    if is_dual(str(source)):
        return build_dual(str(source)).eval()
    return Run(source).encoder() if (Path(source) / "config.yaml").exists() else load_encoder(source)


def _hub_builder(name: str) -> Callable[[str], Any]:
    """What builds a model of the hub, as its config says."""
    config = described(name)
    if config.model_type in RELEASED:
        return build_dual
    if not reads_pictures(config):
        return build_text
    return build_seeing if hasattr(config, "text_config") and kept_readout(name)[0] else build_encoder


def _tables(encode: Encode, rows: Rows, classes: tuple[str, ...], batch: int) -> Iterator[Any]:
    import pyarrow as pa

    labels = rows.values("label") if "label" in rows.columns else None
    for start in range(0, len(rows), ROWS):
        index = np.arange(start, min(start + ROWS, len(rows)))
        columns: dict[str, Any] = {"row": pa.array(index)}
        for name, z in features_by_name(encode, rows, index, batch).items():
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(z.numpy().reshape(-1)), z.shape[1])
        if labels is not None:
            columns["label"] = pa.array(labels[index])
            if classes:
                columns["class"] = pa.array([classes[c] if 0 <= c < len(classes) else None for c in labels[index]])
        yield pa.table(columns)


def features_by_name(encode: Encode, rows: Rows, index: np.ndarray, batch: int) -> dict[str, Tensor]:
    """Features (N, D) by column name. Several outputs pass through `extract` side by side and are cut apart again."""
    widths: dict[str, int] = {}

    def one(given: dict[str, Any]) -> Tensor:
        given["key"] = torch.from_numpy(keys.row_keys(0, 0, given["row"].numpy()))
        z = encode(given)
        if isinstance(z, dict) and not z:
            raise unread(given, "what the method reads")
        z = {f"feature_{k}": v for k, v in z.items()} if isinstance(z, dict) else {"feature": z}
        widths.update({k: v.shape[1] for k, v in z.items()})
        return torch.cat(list(z.values()), dim=1)

    z = extract(one, rows, index, batch=batch)
    return {name: part.contiguous() for name, part in zip(widths, z.split(list(widths.values()), dim=1))}


def _write(path: Path, tables: Iterator[Any]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
