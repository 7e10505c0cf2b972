"""A run's settings: what was asked, the recipe and the defaults, resolved into one record that `config.yaml` keeps."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from notan import __version__, catalogue
from notan.errors import NotanError, did_you_mean
from notan.runs import optim

FORMAT = 1
HABITS = {"log_every", "probe_every", "save_every"}                     # these may change when a run is resumed


@dataclass(frozen=True)
class Config:
    """Everything that decides the weights of a run. None in `steps` or `threads`: measured once, when it starts."""

    method: str
    data: str
    data_options: dict[str, Any]
    recipe: str
    seed: int
    batch: int
    steps: int | None
    minutes: float | None
    towers: dict[str, Any]
    settings: dict[str, Any]
    optimiser: dict[str, Any]
    warmup: float
    accumulate: int
    clip: float | None
    precision: str
    compile: bool
    threads: int | None
    deterministic: bool
    log_every: int | None
    probe_every: int | None
    save_every: int | None
    micro_batch: int | None = None


def resolve(method: str, *, data: str, data_options: Mapping[str, Any] | None, rows: int, recipe: str, seed: int,
            steps: int | None, epochs: float | None, minutes: float | None, batch: int | None, lr: float | None,
            encoder: Any, settings: Mapping[str, Any] | None, clip: float | None, **machine: Any) -> Config:
    """The recipe of `method` with what was asked laid over it. Raises `NotanError` for what there is not or cannot be.

    `machine` holds the remaining fields of `Config` as they are. Without a budget the recipe's epochs count.
    """
    entry = catalogue.method(method)
    if recipe not in entry.recipes:
        raise NotanError(f"{method} has no recipe {recipe!r}", ", ".join(entry.recipes),
                         did_you_mean(recipe, entry.recipes))
    plan = entry.recipes[recipe]
    if sum(x is not None for x in (steps, epochs, minutes)) > 1:
        raise NotanError("more than one budget was given", "one of steps, epochs, minutes")
    for name, value in (("steps", steps), ("epochs", epochs), ("minutes", minutes), ("batch", batch)):
        if value is not None and value < 0 + (name == "batch"):
            raise NotanError(f"{name} = {value}", "a positive number")
    batch = batch or plan.get("batch", 256)
    if batch > rows:
        raise NotanError(f"a batch of {batch} rows, but the training split has {rows}", "no more than the data has",
                         f"--batch {max(1, rows // 2)}, or more data")
    if steps is None and minutes is None:
        steps = max(1, round((epochs if epochs is not None else plan.get("epochs", 1)) * (rows // batch)))
    return Config(
        method=method, data=data, data_options=_plain(data_options or {}), recipe=recipe, seed=seed, batch=batch,
        steps=steps, minutes=minutes, towers=_towers(entry, plan, encoder),
        settings=_settings(entry, plan, settings or {}),
        optimiser=_plain(optim.complete(_optimiser(plan), batch=batch, lr=lr)),
        warmup=plan.get("warmup", 0.0), clip=plan.get("clip") if clip is None else clip, **machine)


def _towers(entry: catalogue.Entry, plan: dict[str, Any], encoder: Any) -> dict[str, Any]:
    """A spec for each tower; `encoder` is a spec for the tower of that name, or a dict of tower to spec."""
    names = [t.name for t in entry.towers]
    many = isinstance(encoder, dict) and "name" not in encoder
    asked = encoder if many else {} if encoder is None else {names[0] if len(names) == 1 else "encoder": encoder}
    for name in asked:
        if name not in names:
            flags = " or ".join(f"--{tower.replace('_', '-')}" for tower in names)
            fix = flags if name == "encoder" and names else "leave it out"
            raise NotanError(f"{entry.slug} has no tower {name!r}", ", ".join(names) or "no towers", fix)
    return {name: _plain(asked.get(name, plan.get(name, entry.card.get(name)))) for name in names}


def _optimiser(plan: dict[str, Any]) -> dict[str, Any]:
    chosen = plan.get("optimiser", {"name": "adamw", "lr": 1e-3})
    return {**chosen, "layer_decay": plan["layer_decay"]} if "layer_decay" in plan else chosen


def _settings(entry: catalogue.Entry, plan: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    known = [f.name for f in entry.flags]
    for name in asked:
        if name not in known:
            raise NotanError(f"{entry.slug} has no setting {name!r}", ", ".join(known) or "none: it has no settings",
                             did_you_mean(name, known) if known else "leave it out")
    defaults = {f.name: f.default for f in entry.flags if not f.required}
    return _plain({**defaults, **plan.get("method", {}), **asked})


def settle(asked: Config, stored: Config, folder: Path) -> Config:
    """`asked` with what `stored` had measured; raises when they are not the same run."""
    measured: dict[str, Any] = {"threads": stored.threads if asked.threads is None else asked.threads}
    if asked.minutes is not None and asked.minutes == stored.minutes:
        measured["steps"] = stored.steps
    if asked.minutes is None and asked.steps == stored.steps:
        measured["minutes"] = stored.minutes
    settled = replace(asked, **measured)
    for field in fields(Config):
        old, new = getattr(stored, field.name), getattr(settled, field.name)
        if field.name not in HABITS and old != new:
            raise NotanError(f"{folder} holds another run: its {field.name} is {old}, asked for is {new}",
                             "the same settings, to go on with it", "choose another --out, or start over with --fresh")
    return settled


def digest(config: Config) -> str:
    """A hash of everything that decides the weights."""
    record = {k: v for k, v in asdict(config).items() if k not in HABITS}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def dump(config: Config, facts: dict[str, Any]) -> str:
    """The text of config.yaml: the settings, which `notan train --config` re-runs, and the facts of this run."""
    record = {"notan": __version__, "format": FORMAT, **asdict(config), "facts": _plain(facts)}
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120)


def load(path: Path) -> tuple[Config, dict[str, Any]]:
    """Settings and facts of a config.yaml. Raises `NotanError`: no such file, another version, wrong keys."""
    if not path.exists():
        raise NotanError(f"{path} does not exist", "the config.yaml of a run", "check the path")
    try:
        record = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise NotanError(f"{path} is not YAML: {first}", "a config.yaml that a run wrote") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        seen = record.get("format") if isinstance(record, dict) else None
        raise NotanError(f"{path} has format {seen} (written by notan {record.get('notan') if seen else '?'})",
                         f"format {FORMAT}, which notan {__version__} reads",
                         "use the version that wrote it, or train again")
    facts = record.pop("facts", {})
    del record["format"]
    record.pop("notan", None)
    names = [f.name for f in fields(Config)]
    for key in record:
        if key not in names:
            raise NotanError(f"{path} has the key {key!r}", ", ".join(names), did_you_mean(key, names))
    if missing := [f.name for f in fields(Config) if f.name not in record and f.default is MISSING]:
        raise NotanError(f"{path} lacks {', '.join(missing)}", "every key of a run's config.yaml", "add them")
    return Config(**record), facts


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; people write it as a number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _plain(value: Any) -> Any:
    """Tuples as lists, so that what is compared is what YAML gives back."""
    return json.loads(json.dumps(value))
