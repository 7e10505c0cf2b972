"""`notan train`: one method, one loop, one run folder. Devices, precision and ranks are `accelerate`'s.

The whole of a run is a function of its config: views come from keys, dropout from a seed per step, the order of rows
from (seed, epoch), the learning rate from the step. So a state is weights, moments and a step number.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from notan import catalogue, world
from notan.data import COLUMNS, Data, Loader, Stream, loader_of, open_data
from notan.errors import NotanError
from notan.nets.build import save_encoder
from notan.nets.norm import has_batch_statistics
from notan.probes.features import extract
from notan.runs import checkpoint, machine, optim
from notan.runs import config as configs
from notan.runs.build import build_method, make_tokenizers, sided, too_fast
from notan.runs.captions import cut_captions, told
from notan.runs.config import Config
from notan.runs.dump import dump
from notan.runs.folder import Run, found_again, same_run
from notan.runs.health import first_bad
from notan.runs.log import Log, Profile, Teller
from notan.runs.machine import Stopped
from notan.runs.micro import estimate, in_parts
from notan.runs.rounds import Round, round_at, rounds
from notan.runs.step import NotFinite, Step, Stepper
from notan.runs.watch import Watch, to_device

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Step", "Stopped", "train", "train_config"]

SAVE_SECONDS = 300


def train(method: str, data: str | Data = "fashion-mnist", *, out: str | Path | None = None, seed: int = 0,
          steps: int | None = None, epochs: float | None = None, minutes: float | None = None, batch: int | None = None,
          lr: float | None = None, encoder: str | dict[str, Any] | None = None, recipe: str = "small",
          precision: str = "auto", micro_batch: int | None = None, accumulate: int = 1, clip: float | None = None,
          compile: bool = False, threads: int | None = None, deterministic: bool = False, resume: bool = True,
          log_every: int | None = None, probe_every: int | None = None, save_every: int | None = None,
          settings: dict[str, Any] | None = None, data_options: dict[str, Any] | None = None, console: Any = None,
          title: str | None = None, log: Log | None = None) -> Run:
    """Train `method` on `data` into the run folder `out` (default runs/METHOD-DATA-SEED) and return the run.

    The budget is `steps`, `epochs` or `minutes` (a step count after a timed warm-up), else the recipe's epochs. `batch`
    counts the rows of the global batch; with `micro_batch` the encoder runs on so many rows at a time, and again in the
    backward pass: a large batch in little memory, with the gradient of the whole (see `micro.py`). `lr` is the peak rate;
    `settings` are the method's own flags. If `out` holds this very run it goes on from its last state, bit for bit as if
    undisturbed (`resume=False` starts over). `*_every` count steps; without them records are logged about 100 times a run,
    an online probe runs 2 to 5 times, and a state is saved every five minutes and at the end. `log` is called with every
    record of metrics.jsonl. On glibc the process keeps up to 1 GiB of freed memory from here on
    (`machine.keep_freed_memory`).

    Raises `NotanError` for settings that do not exist or fit, missing columns, another run in `out`, a full disk, or a
    loss that is not finite; `Stopped` (a KeyboardInterrupt) after Ctrl-C or SIGTERM, with the state saved.
    """
    spec = (data.spec or data.info.name) if isinstance(data, Data) else str(data)
    precision = machine.choose_precision(precision)
    catalogue.method(method)
    accelerator = machine.join(precision)
    data_options = sided(data, data_options, encoder)
    opened = _open(data, data_options)
    asked = configs.resolve(
        method, data=spec, data_options=data_options, rows=opened.rows, recipe=recipe, seed=seed, steps=steps,
        epochs=epochs, minutes=minutes, batch=batch, lr=lr, encoder=encoder, settings=settings, clip=clip,
        accumulate=accumulate, precision=precision, compile=compile, threads=threads, deterministic=deterministic,
        log_every=log_every, probe_every=probe_every, save_every=save_every, micro_batch=micro_batch)
    if console is not None and world.is_main() and not isinstance(data, Data):
        for note in opened.notes:
            console.print(f"note: {note}", style="yellow", highlight=False)
    if console is not None and lr is None and world.is_main() and (said := too_fast(asked)):
        console.print(said, style="yellow", highlight=False)
    folder = Path(out) if out is not None else Path("runs") / f"{method}-{Path(spec).name}-{seed}"
    return _start(asked, opened, folder, accelerator, resume=resume, console=console, title=title, log=log)


def train_config(path: str | Path, *, out: str | Path | None = None, console: Any = None,
                 log: Log | None = None) -> Run:
    """Re-run a config.yaml, by default into `again/` beside it; with its own folder as `out` it goes on."""
    asked, facts = configs.load(Path(path))
    accelerator = machine.join(asked.precision)
    folder = Path(out) if out is not None else Path(path).parent / "again"
    there = found_again(asked.data, facts)
    data = _open(there, asked.data_options)
    if folder.resolve() != Path(path).resolve().parent:
        asked = replace(asked, data=there)                              # a new run, which is started here
    return _start(asked, data, folder, accelerator, resume=True, console=console, title=None, log=log)


def _open(data: str | Data, options: dict[str, Any] | None) -> Data:
    """Rank 0 first, so that one process fills the cache."""
    if not world.is_main():
        world.barrier()
    opened = open_data(data, **(options or {}))
    if world.is_main():
        world.barrier()
    return opened


def _start(asked: Config, data: Data, folder: Path, accelerator: Accelerator, *, resume: bool, console: Any,
           title: str | None, log: Log | None) -> Run:
    """Begin, go on with, or simply return the run in `folder`."""
    if not resume and world.is_main():
        _clear(folder, asked)
    world.barrier()
    config = same_run(folder, asked)
    if config is not None:
        run = Run(folder)
        if run.facts.get("fingerprint") != data.fingerprint:
            raise NotanError(f"{folder} was trained on other rows: {asked.data} has changed since", "the same data",
                             "choose another --out, or start over with --fresh")
        if run.finished:
            return run
    config = config or asked
    with machine.settled(config.threads, config.deterministic), machine.signals() as heard:
        with checkpoint.full_disk_explained(folder):
            _run(config, data, folder, accelerator, heard, console, title or f"{asked.method} seed {asked.seed}", log)
    return Run(folder)


def _run(config: Config, data: Data, folder: Path, accelerator: Accelerator, heard: Callable[[], str], console: Any,
         title: str, log: Log | None) -> None:
    """Everything between a settled config and a finished run folder."""
    machine.keep_freed_memory()
    make_tokenizers(config, data, folder)
    method = build_method(config, data.info, folder)
    _check_accumulation(config, method)
    method.to(accelerator.device)
    if config.micro_batch is not None:
        in_parts(method, list(config.towers), config.micro_batch)
    state = checkpoint.load(folder / "state", method, digest=configs.digest(config)) or {"step": 0, "seconds": 0.0, "moments": {}}
    now = round_at(rounds(method, config.steps or 0, config.seed), state["step"])
    if now.number:
        method.enter(now.number, None)                                  # type: ignore[operator]
    loader, stepper = _begin(config, now, method, data, accelerator)
    if stepper is not None:
        checkpoint.fill_optimiser(stepper.optimiser, state.pop("moments"))
        _say_memory(config, stepper, loader, console)
    profile = Profile()
    with profile("timing"), _explained(config, now, folder, method, data):
        config = _measured(config, stepper, loader, accelerator.device)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if world.is_main() and not (folder / "config.yaml").exists():
        facts = {"info": asdict(data.info), "fingerprint": data.fingerprint, "started_in": os.getcwd(),
                 "parameters": _sizes(method, config), **cut_captions(config, method, data), **machine.facts(accelerator.device)}
        for said in told(facts) if console is not None else ():
            console.print(said, style="yellow", highlight=False)
        checkpoint.write_text(folder / "config.yaml", configs.dump(config, facts))
    if state["step"] == 0 and hasattr(method, "begin"):                 # later it is in the state
        with profile("begin"):
            method.begin(partial(extract, rows=data.train, device=accelerator.device), _light(data),     # type: ignore[operator]
                         config.seed)
    teller = Teller(folder, start=state["step"], steps=config.steps or 0, batch=config.batch, seconds=state["seconds"],
                    title=title, console=console, log=log)
    machine.reset_peak()
    try:
        _rounds(config, method, loader, stepper, state["step"], data, folder, teller, profile, heard)
        if world.is_main():
            for tower in config.towers:
                save_encoder(getattr(method, tower), folder / tower)
            if "dual" in catalogue.method(config.method).has:
                save_encoder(method.dual(), folder / "dual")            # type: ignore[operator]
        teller.end({"peak_mb": machine.peak_mb(), "profile": profile.seconds})
    except Stopped as stopped:
        raise Stopped(f"{stopped} in {folder}; the same command goes on from there") from None
    finally:
        teller.close()


def _rounds(config: Config, method: nn.Module, loader: Loader | Stream, stepper: Stepper | None, start: int, data: Data,
            folder: Path, teller: Teller, profile: Profile, heard: Callable[[], str]) -> None:
    """All steps from `start` on, round after round, and the states that are saved on the way and at the end.

    A round ends where the next one has begun: its last state is the first of the next.
    """
    steps, digest = config.steps or 0, configs.digest(config)

    def save(step: int) -> None:
        if world.is_main():
            checkpoint.save(folder / "state", method, stepper.optimiser if stepper else None, step=step, seconds=teller.seconds,
                            digest=digest)
        world.barrier()

    every = rounds(method, steps, config.seed)
    now = round_at(every, start)
    while stepper is not None:
        stepper.config = _own(config, now)
        device = stepper.accelerator.device
        watch = Watch(method, data, device, steps=steps, rows=config.batch, probe_every=config.probe_every)
        with _explained(config, now, folder, method, data):
            _loop(config, now, stepper, loader, start, watch, teller, profile, save, heard)
        if now.last == steps:
            break
        now, start = every[now.number + 1], now.last
        with profile("round"):
            method.enter(now.number, partial(extract, rows=data.train, device=device))  # type: ignore[operator]
        loader, stepper = _begin(config, now, method, data, stepper.accelerator)
        save(start)
        if stop := _agreed(heard()):
            raise Stopped(f"{stop}: saved at step {start} of {steps}")
    with profile("save"):
        save(steps)


def _loop(config: Config, now: Round, stepper: Stepper, loader: Loader | Stream, start: int, watch: Watch, teller: Teller,
          profile: Profile, save: Callable[[int], None], heard: Callable[[], str]) -> None:
    """The loop of one round. `n` counts from 0 over the run; after step n, `done` = n + 1 steps are done."""
    steps = config.steps or 0
    log_every = config.log_every or max(1, min(50, steps // 100))
    batches, saved = loader.at(start - now.first), time.perf_counter()
    for n in range(start, now.last):
        done = n + 1
        with profile("data"):
            batch = to_device(next(batches), stepper.accelerator.device)
        with profile("step"):
            teller.add(stepper(n - now.first, batch, watch.gradients if watch.due(done) else None))
        with profile("watch"):
            seen = watch.look(done)
        log = done % log_every == 0 or done == now.last
        stop = _agreed(heard()) if log or world.size() == 1 else ""     # ranks can only stop at the same step
        late = log and world.any_rank(time.perf_counter() - saved > SAVE_SECONDS)
        due = late if config.save_every is None else done % config.save_every == 0
        with profile("log"):
            if log or seen or due or stop:
                teller.tell(done, stepper.rate(n - now.first), seen)
            while watch.alarms:
                teller.alarm(done, *watch.alarms.pop(0))
            if (due or stop or done == steps) and (skipped := loader.skipped()):
                teller.alarm(done, "unreadable", skipped)
        if done == now.last:                                            # what comes next saves
            return
        with profile("save"):
            if due or stop:
                save(done)
                saved = time.perf_counter()
        if stop:
            raise Stopped(f"{stop}: saved at step {done} of {steps}")


def _begin(config: Config, now: Round, method: nn.Module, data: Data,
           accelerator: Accelerator) -> tuple[Loader | Stream, Stepper | None]:
    """What reads rows in a round, and what takes its steps: nothing where nothing learns."""
    loader = loader_of(data, batch_size=config.batch, seed=now.seed, batches=getattr(method, "batches", None), rank=world.rank(),
                       size=world.size())
    if not any(p.requires_grad for p in method.parameters()):
        return loader, None
    return loader, Stepper(_own(config, now), method, optim.build(config.optimiser, method), accelerator, loader.steps_per_epoch)


def _light(data: Data) -> dict[str, Any]:
    """The light columns of the training split, of all its rows."""
    return {name: data.train.values(name) for name in data.train.columns if COLUMNS[name].light}


def _own(config: Config, now: Round) -> Config:
    """The settings of one round: its seed, and its share of the steps once they are known."""
    return replace(config, seed=now.seed, steps=config.steps and now.last - now.first)


def _say_memory(config: Config, stepper: Stepper, loader: Loader | Stream, console: Any) -> None:
    """Before a run in parts: what they save."""
    if config.micro_batch is not None and console is not None and world.is_main():
        first = to_device(next(loader.at(0)), stepper.accelerator.device)
        console.print(estimate(stepper.method, list(config.towers), first, stepper.progress(0), config.micro_batch,
                               len(first["row"])), style="dim")


def _measured(config: Config, stepper: Stepper | None, loader: Loader | Stream, device: torch.device) -> Config:
    """`config` with threads, and the steps of a minutes budget, settled by timing steps that are undone afterwards."""
    if stepper is None:
        return replace(config, steps=0, threads=config.threads or torch.get_num_threads())
    choices = [config.threads] if config.threads else machine.thread_choices(config.steps)
    if config.steps is not None and len(choices) == 1:
        return replace(config, threads=choices[0])
    batches = (to_device(batch, device) for batch in loader.at(0))
    threads, pace = machine.measure(stepper, batches, stepper.method, stepper.optimiser, choices)
    steps = max(1, int(60 * (config.minutes or 0) / pace)) if config.steps is None else config.steps
    return replace(config, threads=threads, steps=steps)


def _agreed(heard: str) -> str:
    """What a signal said on this rank, or that another rank heard one."""
    return heard or "stopped on another rank" if world.any_rank(bool(heard)) else ""


def _check_accumulation(config: Config, method: nn.Module) -> None:
    """Parts of a batch give the whole batch's gradient only where no row meets another."""
    if config.accumulate == 1:
        return
    entry = catalogue.method(config.method)
    fix = "--accumulate 1 with a batch that fits, or more ranks"
    if not 1 <= config.accumulate <= config.batch // world.size():
        raise NotanError(f"accumulate = {config.accumulate}", f"1 to {config.batch // world.size()} parts of a batch")
    if entry.contrasts_rows:
        raise NotanError(f"the loss of {config.method} sets rows against each other: parts of a batch would see fewer",
                         "the whole batch at once", fix)
    if averaged := entry.card.get("averages_over"):
        raise NotanError(f"the loss of {config.method} is a mean over {averaged}, and parts of a batch hold unequally many",
                         "the whole batch at once", fix)
    if has_batch_statistics(method):
        raise NotanError(f"{config.method} was given a network with batch norm; parts would have other statistics",
                         "the whole batch at once, or an encoder without batch norm", f"--encoder vit, or {fix}")


@contextmanager
def _explained(config: Config, now: Round, folder: Path, method: nn.Module, data: Data) -> Iterator[None]:
    """A step that is not finite is dumped, and the error says what was seen first and what it likely means."""
    try:
        yield
    except NotFinite as bad:
        step, terms = now.first + bad.step, bad.terms
        place, named = folder / "debug" / f"step-{step:08d}", first_bad(method)
        if world.is_main():
            whole = loader_of(data, batch_size=config.batch, seed=now.seed, batches=getattr(method, "batches", None))
            dump(place, method, whole.batch(bad.step), bad.progress, bad.seed, terms, now.number)
            if not (folder / "config.yaml").exists():                   # while a minutes budget was being timed
                facts = {"info": asdict(data.info), "fingerprint": data.fingerprint}
                checkpoint.write_text(folder / "config.yaml", configs.dump(config, facts))
        shown = ", ".join(f"{k} {v:.4g}" for k, v in terms.items())
        where = f"; the first bad gradient is that of {named}" if named else ""
        likely = "a learning rate that is too high" if step else "the data or the loss"
        likely = "low precision" if config.precision == "bf16" else likely
        raise NotanError(f"step {step} is not finite ({shown}{where})", "finite numbers",
                         f"likely {likely}: a lower --lr, --clip 1, --precision fp32; the step is kept in {place}, and "
                         f"notan.runs.dump.replay({str(place)!r}) runs it again") from None


def _clear(folder: Path, config: Config) -> None:
    """Remove a run, and nothing else, from a folder."""
    if (folder / "config.yaml").exists():
        for name in ("config.yaml", "metrics.jsonl", "report.html", "state", "tensorboard", "debug", "dual", *config.towers):
            part = folder / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _sizes(method: nn.Module, config: Config) -> dict[str, int]:
    """Parameters of each tower, and of all that learns."""
    return {**{t: sum(p.numel() for p in getattr(method, t).parameters()) for t in config.towers},
            "learning": sum(p.numel() for p in method.parameters() if p.requires_grad)}
