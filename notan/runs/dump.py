"""What is kept of a step whose loss or gradient was not finite, and how to run that step again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from notan.methods._progress import Progress
from notan.runs import config as configs
from notan.runs.build import build_method, info_from
from notan.runs.checkpoint import write_tensors, write_text


def dump(folder: Path, method: nn.Module, batch: dict[str, Any], progress: Progress, seed: int, terms: dict[str, float],
         number: int = 0) -> None:
    """Write the global batch, the weights before the step, the seed of torch's generator, the progress and the round."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "weights.safetensors", method.state_dict())
    write_tensors(folder / "batch.safetensors", {k: v for k, v in batch.items() if isinstance(v, Tensor)})
    words = {k: v for k, v in batch.items() if not isinstance(v, Tensor)}
    record = {"progress": list(progress), "torch_seed": seed, "round": number, "terms": {k: repr(v) for k, v in terms.items()},
              "columns": words}
    write_text(folder / "step.json", json.dumps(record, indent=1))


def replay(folder: str | Path) -> dict[str, float]:
    """Run the dumped step again, on the CPU in one process: its terms and the norm of its gradient (`grad_norm`).

    `folder` is `RUN/debug/step-N`; the method is rebuilt from the run's config.yaml. The optimiser's step is not taken.
    """
    folder = Path(folder)
    home = folder.parents[1]
    config, facts = configs.load(home / "config.yaml")
    method = build_method(config, info_from(facts["info"]), home)
    method.load_state_dict(load_file(folder / "weights.safetensors"))
    record = json.loads((folder / "step.json").read_text())
    if record.get("round"):
        method.enter(record["round"], None)                             # type: ignore[operator]
    batch = {**load_file(folder / "batch.safetensors"), **record["columns"]}
    torch.manual_seed(record["torch_seed"])
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16", cache_enabled=False):
        out = method.loss(batch, Progress(*record["progress"]))         # type: ignore[operator]
    out["loss"].backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])
    terms = {k: float(v.detach()) for k, v in out.items() if isinstance(v, Tensor) and v.numel() == 1}
    return {**terms, "grad_norm": float(norm)}
