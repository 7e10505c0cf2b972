"""A run is a function of its config: killed, stopped, split over ranks or cut into parts, its weights are the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import Tensor

from notan import catalogue
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.runs import checkpoint, machine, optim
from notan.runs import config as configs
from notan.runs import train as training
from notan.runs.build import build_method
from notan.runs.folder import Run
from notan.runs.step import Stepper
from notan.runs.train import Stopped, train, train_config

toy.register()
HERE = Path(__file__).parent


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "state").glob("step-*")) / "model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def start(folder: Path, *launcher: str, double: bool = False, **options: object) -> subprocess.Popen:
    """The toy method, trained into `folder` by a process of its own."""
    code = f"""
import toy; toy.register()
from notan.runs import train as t
if {double}:
    build = t.build_method
    t.build_method = lambda *a: build(*a).double()
t.train("toy", toy.data(), out={str(folder)!r}, threads=1, **{options!r})
"""
    script = folder.with_suffix(".py")
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, str(script)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


def test_a_run_folder_holds_everything(tmp_path):
    seen: list[dict] = []
    run = train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1, log=seen.append)
    assert run.finished and run.config["steps"] == 20
    assert run.config["settings"] == {"dropout": 0.1, "decay": 0.9, "sick": ""}
    assert seen == run.metrics()
    steps = [r for r in seen if "loss" in r]
    assert [r["step"] for r in steps] == list(range(1, 21))
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["probe_accuracy"] > 0.5
    assert {"lr", "grad_norm", "rows_per_s", "seconds"} <= steps[0].keys()
    assert {"timing", "data", "step", "watch", "log", "save"} == run.summary["profile"].keys() and run.summary["peak_mb"] > 10
    assert list((tmp_path / "r" / "tensorboard").iterdir())
    pixels = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(run.encoder().features(pixels), run.method().encoder.features(pixels))
    assert not run.method().training


def test_the_start_is_a_function_of_the_seed_and_leaves_the_generator_alone(tmp_path):
    before = torch.random.get_rng_state()
    a = train("toy", toy.data(), out=tmp_path / "a", steps=5, threads=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    b = train("toy", toy.data(), out=tmp_path / "b", steps=5, threads=1)
    c = train("toy", toy.data(), out=tmp_path / "c", steps=5, threads=1, seed=1)
    assert same(weights(a.path), weights(b.path)) and not same(weights(a.path), weights(c.path))


def test_killed_and_resumed_is_undisturbed_bit_for_bit(tmp_path):
    """A real kill -9, at a moment of its own choosing; dropout, teacher and queue included."""
    options = {"steps": 60, "save_every": 7, "settings": {"sick": "slow"}}
    whole = start(tmp_path / "whole", **options)
    hurt = start(tmp_path / "hurt", **options)
    wanted = tmp_path / "hurt" / "state" / "step-00000021"
    while not wanted.exists():
        assert hurt.poll() is None, hurt.communicate()[0]
        time.sleep(0.005)
    hurt.kill()
    hurt.wait()
    assert not (tmp_path / "hurt" / "encoder").exists()
    finish(start(tmp_path / "hurt", **options))
    finish(whole)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "hurt"))
    kept = [[{k: v for k, v in r.items() if k in ("step", "loss", "grad_norm", "probe_accuracy", "effective_rank")}
             for r in Run(tmp_path / name).metrics()] for name in ("whole", "hurt")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_call_goes_on(tmp_path, number):
    whole = train("toy", toy.data(), out=tmp_path / "whole", steps=20, threads=1)

    def stop_at_7(record: dict) -> None:
        if record["step"] == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=r"saved at step [78] of 20 in .*the same command goes on"):
        train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1, log=stop_at_7)
    assert not Run(tmp_path / "r").finished
    assert Run(tmp_path / "r").method() is not None and Run(tmp_path / "r").encoder() is not None
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:          # a part that was lost, and a torn line
        file.write(json.dumps({"step": 15, "loss": 1.0}) + '\n{"step": 16, "lo')
    run = train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1)
    assert same(weights(whole.path), weights(run.path))
    assert [r["step"] for r in run.metrics() if "loss" in r] == list(range(1, 21))
    assert signal.getsignal(number) not in (None, signal.SIG_IGN)


def test_a_full_disk_keeps_the_last_state_and_says_so(tmp_path, monkeypatch):
    whole = train("toy", toy.data(), out=tmp_path / "whole", steps=20, threads=1, save_every=5)
    real, calls = checkpoint.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 4:                                             # the optimiser of the second state
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(NotanError, match=r"the disk is full.*free some space and give the same command"):
        train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1, save_every=5)
    assert [p.name for p in (tmp_path / "r" / "state").iterdir()] == ["step-00000005"]
    run = train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1, save_every=5)
    assert same(weights(whole.path), weights(run.path))


def test_a_damaged_last_state_falls_back_to_the_one_before(tmp_path):
    whole = train("toy", toy.data(), out=tmp_path / "whole", steps=20, threads=1, save_every=8)
    run = train("toy", toy.data(), out=tmp_path / "r", steps=20, threads=1, save_every=8)
    states = sorted((run.path / "state").iterdir())
    assert [p.name for p in states] == ["step-00000016", "step-00000020"]
    (states[-1] / "model.safetensors").write_bytes(b"torn")
    assert run.method() is not None
    lines = (run.path / "metrics.jsonl").read_text().splitlines()[:-1]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for part in states[-1].iterdir():
        part.unlink()
    states[-1].rmdir()
    again = train("toy", toy.data(), out=run.path, steps=20, threads=1, save_every=8)
    assert same(weights(whole.path), weights(again.path))


def test_states_hold_no_pickle_and_two_are_kept(tmp_path):
    run = train("toy", toy.data(), out=tmp_path / "r", steps=12, threads=1, save_every=3)
    names = {p.suffix for p in (run.path / "state").rglob("*") if p.is_file()}
    assert names == {".safetensors", ".json"} and len(list((run.path / "state").iterdir())) == 2


def test_another_run_in_the_folder_is_refused_and_fresh_starts_over(tmp_path):
    train("toy", toy.data(), out=tmp_path / "r", steps=6, threads=1)
    with pytest.raises(NotanError, match=r"holds another run: its seed is 0, asked for is 1.*--fresh"):
        train("toy", toy.data(), out=tmp_path / "r", steps=6, threads=1, seed=1)
    with pytest.raises(NotanError, match="was trained on other rows"):
        other = toy.data()
        object.__setattr__(other, "fingerprint", "y")
        train("toy", other, out=tmp_path / "r", steps=6, threads=1)
    (tmp_path / "r" / "mine.txt").write_text("kept")
    assert train("toy", toy.data(), out=tmp_path / "r", steps=6, threads=1, seed=1, resume=False).config["seed"] == 1
    assert (tmp_path / "r" / "mine.txt").exists()


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    train("toy", toy.data(), out=tmp_path / "r", steps=6, threads=1)
    stamp = (tmp_path / "r" / "metrics.jsonl").stat().st_mtime_ns
    train("toy", toy.data(), out=tmp_path / "r", steps=6, threads=1)
    assert (tmp_path / "r" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_config_yaml_runs_again_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_data", lambda data, **options: toy.data() if isinstance(data, str) else data)
    run = train("toy", "blobs", out=tmp_path / "r", steps=8, threads=1, lr=0.01, settings={"dropout": 0.3})
    again = train_config(run.path / "config.yaml")
    assert again.path == run.path / "again" and again.config == run.config
    assert same(weights(run.path), weights(again.path))


def test_minutes_become_steps_once(tmp_path, monkeypatch):
    paces = []

    def measure(*args):
        paces.append(0.06)
        return 1, paces[-1]

    monkeypatch.setattr(machine, "measure", measure)
    with pytest.raises(Stopped):
        train("toy", toy.data(), out=tmp_path / "r", minutes=0.02,
              log=lambda r: r["step"] == 1 and os.kill(os.getpid(), signal.SIGINT))
    assert Run(tmp_path / "r").config["steps"] == 20 and Run(tmp_path / "r").config["threads"] == 1
    run = train("toy", toy.data(), out=tmp_path / "r", minutes=0.02)
    assert len(paces) == 1 and run.config["minutes"] == 0.02 and run.finished
    assert same(weights(run.path), weights(train("toy", toy.data(), out=tmp_path / "steps", steps=20, threads=1).path))


def test_measuring_is_undone(tmp_path):
    steps = []
    real = machine.measure

    def measure(take, batches, method, optimiser, choices):
        before = {k: v.clone() for k, v in method.state_dict().items()}
        result = real(take, batches, method, optimiser, choices, enough=0.05)
        steps.append(result[1])
        assert same(before, method.state_dict()) and not optimiser.state
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "measure", measure)
        run = train("toy", toy.data(), out=tmp_path / "r", minutes=0.002, threads=1)
    assert run.config["steps"] == max(1, int(0.12 / steps[0]))


def test_two_ranks_give_the_weights_of_one(tmp_path):
    """Through torchrun and the real path; in float64, with dropout off as the promise says."""
    options = {"steps": 12, "settings": {"dropout": 0.0}, "batch": 30, "clip": 0.05}
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    two = start(tmp_path / "two", *launcher, double=True, **options)
    finish(start(tmp_path / "one", double=True, **options))
    finish(two)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-9, msg=name)
    assert a["tau"].dtype == torch.float64 and Run(tmp_path / "two").facts["ranks"] == 2
    losses = [[r["loss"] for r in Run(tmp_path / n).metrics() if "loss" in r] for n in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_a_launcher_that_starts_one_process_for_two_is_caught(tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    out, _ = (process := start(tmp_path / "r", *launcher, steps=2)).communicate(timeout=120)
    assert process.returncode != 0 and "2 processes were asked for, but the world has 1" in out and "torchrun" in out


def stepper(accumulate: int, **settings: object) -> Stepper:
    asked = configs.resolve(
        "toy", data="blobs", data_options=None, rows=128, recipe="small", seed=0, steps=10, epochs=None, minutes=None,
        batch=None, lr=None, encoder=None, settings=settings, clip=None, accumulate=accumulate, precision="fp32",
        compile=False, threads=1, deterministic=False, log_every=None, probe_every=None, save_every=None)
    method = build_method(asked, toy.data().info).double()
    return Stepper(asked, method, optim.build(asked.optimiser, method), machine.join("fp32"), 4)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_is_the_big_batch(parts):
    batch = {**toy.data().train.take(range(32)), "key": torch.arange(32)}
    grads, terms, kept = [], [], []
    for accumulate in (1, parts):
        s = stepper(accumulate, dropout=0.0)
        out, keep = s.backward(batch, Progress(0, 10))
        grads.append([p.grad for p in s.method.parameters() if p.grad is not None])
        terms.append(out["loss"])
        kept.append(keep["row"])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(terms[0], terms[1])
    assert torch.equal(*kept)


def test_accumulation_is_refused_where_rows_meet(tmp_path, monkeypatch):
    with pytest.raises(NotanError, match="1 to 32 parts"):
        train("toy", toy.data(), out=tmp_path / "a", steps=2, accumulate=64)
    monkeypatch.setitem(catalogue.method("toy").card, "contrasts_rows", True)
    with pytest.raises(NotanError, match="sets rows against each other"):
        train("toy", toy.data(), out=tmp_path / "a", steps=2, accumulate=2)


@pytest.mark.parametrize(("options", "message"), [
    ({"settings": {"dropuot": 0.1}}, "no setting 'dropuot'.*dropout"),
    ({"recipe": "big"}, "no recipe 'big'"),
    ({"batch": 1000}, "a batch of 1000 rows, but the training split has 128"),
    ({"steps": 3, "minutes": 1}, "more than one budget"),
    ({"encoder": "resnet10"}, "(?s)was given resnet10 as its encoder.*TokenEncoder.*--encoder vit"),
    ({"precision": "fp8"}, "precision 'fp8'"),
    ({"steps": -1}, "steps = -1"),
])
def test_bad_input_is_explained(tmp_path, options, message):
    with pytest.raises(NotanError, match=message):
        train("toy", toy.data(), out=tmp_path / "r", **{"steps": None, **options})
    assert not (tmp_path / "r").exists()


def test_a_missing_column_and_an_unknown_method_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.method("toy").card, "needs", ["image", "depth"])
    with pytest.raises(NotanError, match=r"toy needs the column 'depth'; blobs has image, label"):
        train("toy", toy.data(), out=tmp_path / "r", steps=2)
    with pytest.raises(NotanError, match=r"there is no method 'toi'.*did you mean 'toy'"):
        train("toi", toy.data(), out=tmp_path / "r", steps=2)


def test_a_folder_of_another_version_is_refused(tmp_path):
    run = train("toy", toy.data(), out=tmp_path / "r", steps=2, threads=1)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("format: 1", "format: 7"))
    with pytest.raises(NotanError, match="has format 7"):
        Run(run.path)
    (run.path / "config.yaml").write_text(text.replace("batch:", "bacth:"))
    with pytest.raises(NotanError, match=r"has the key 'bacth'.*did you mean 'batch'"):
        Run(run.path)
    with pytest.raises(NotanError, match="is no run folder"):
        Run(tmp_path)


def test_bf16_trains_and_comes_back_in_fp32(tmp_path):
    run = train("toy", toy.data(), out=tmp_path / "r", steps=10, threads=1, precision="bf16")
    assert run.config["precision"] == "bf16" and weights(run.path)["tau"].dtype == torch.float32
    losses = [r["loss"] for r in run.metrics() if "loss" in r]
    assert losses[-1] < losses[0]
    assert train("toy", toy.data(), out=tmp_path / "f", steps=2, threads=1, precision="fp32").finished


def test_autocast_does_not_cut_gradients_after_a_pass_without_them():
    """The trap: a no_grad pass through the same weights caches a cast without a gradient."""
    linear = torch.nn.Linear(4, 4)
    step = machine.join("bf16").prepare_model(_Twice(linear))
    step(torch.randn(3, 4)).sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.abs().sum() > 0


class _Twice(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear(x)
        return self.linear(x)


def test_a_minutes_budget_is_timed_as_the_last_steps(tmp_path, monkeypatch):
    """Some methods cost more towards the end (HPM's teacher starts late): the first steps would promise too many."""
    seen = []
    real = Stepper.backward

    def backward(self, batch, progress):
        seen.append((self.config.steps, progress))
        return real(self, batch, progress)

    monkeypatch.setattr(Stepper, "backward", backward)
    train("toy", toy.data(), out=tmp_path / "r", minutes=0.002, threads=1)
    timed = [p for steps, p in seen if steps is None]
    assert timed and all(p.fraction > 0.99 and p.epoch == p.epochs - 1 for p in timed)
    taken = [p.step for steps, p in seen if steps is not None]
    assert taken == list(range(len(taken)))
