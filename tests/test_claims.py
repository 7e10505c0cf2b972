"""What every claim owes, found by enumerating `claims/`, and the framework that runs them."""

from __future__ import annotations

import ast
import json
import math

import numpy as np
import pytest
from scipy import stats

from notan import catalogue
from notan.claims import _framework as framework
from notan.claims._framework import KEYS, VERDICTS, read_claim, run_claim
from notan.claims._statistics import paired, summary, t_interval
from notan.errors import NotanError

SLUGS = list(catalogue.claims())

TOY = '''
from pathlib import Path

CLAIM = {"sentence": "b beats a", "arms": ["a", "b"], "data": "none", "metric": "m", "seeds": [0, 1, 2],
         "confirms": "b - a above 0", "refutes": "b - a below 0", "protocol": "none", "minutes": 0}
LOG = Path(__file__).with_suffix(".log")


def run(arm, seed, quick):
    done = LOG.read_text().splitlines() if LOG.exists() else []
    if len(done) == 4 and "stop" not in done:
        LOG.write_text("\\n".join([*done, "stop"]) + "\\n")
        raise KeyboardInterrupt
    LOG.write_text("\\n".join([*done, f"{arm} {seed}"]) + "\\n")
    return {"m": seed + (arm == "b") * (1 + 0.1 * seed), "undefined": float("nan")}


def judge(values):
    return "confirmed", "b is better"
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path


def calls(toy) -> list[str]:
    return toy.with_suffix(".log").read_text().splitlines()


# ---- every claim -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("slug", SLUGS)
def test_a_claim_is_a_literal_with_every_key(slug):
    path = catalogue.claims()[slug]
    node = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign) and n.targets[0].id == "CLAIM")
    facts = ast.literal_eval(node.value)
    assert set(KEYS) <= set(facts) <= {*KEYS, "baseline", "shown", "methods", "strategies", "uses", "threads"}
    assert len(set(facts["arms"])) == len(facts["arms"]) >= 2 and len(set(facts["seeds"])) == len(facts["seeds"]) >= 3
    assert 0 < facts["minutes"] <= 60
    assert read_claim(slug).facts == facts
    assert slug in catalogue.methods() or "methods" in facts


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_a_quick_claim_runs_and_is_not_kept(slug, tmp_path):
    place = framework.RESULTS / f"{slug}.json"
    before = place.read_text() if place.exists() else None
    outcome = run_claim(slug, quick=True, out=tmp_path)
    assert outcome["verdict"] in VERDICTS and outcome["sentence"] and outcome["command"].endswith("--quick")
    assert set(outcome["values"]) == set(outcome["claim"]["arms"])
    assert json.loads((tmp_path / f"{slug}.json").read_text())["verdict"] == outcome["verdict"]
    assert before == (place.read_text() if place.exists() else None)


# ---- verdicts --------------------------------------------------------------------------------------------------------

def spread(level: float, seed: int, noise: float = 0.002) -> float:
    return level + noise * np.random.default_rng([seed, round(1000 * level)]).normal()


def cmim(better: float = 0.0, rival: float = -0.05, change: float = 0.01, informative: float = 0.05, noise: float = 0.002,
         nats: float = 100.0, over_random: float = 0.0) -> dict:
    """Made-up values: cMIM at 0.8 + `better`, InfoNCE `rival` from it, h `informative` above mu, and so on."""
    levels = {"ae": 0.8, "vae": 0.7, "mim": 0.8, "cmim 0.1": 0.8 + better, "cmim 0.5": 0.8, "cmim 1": 0.8,
              "infonce": 0.8 + better + rival}
    values: dict = {}
    for arm, level in levels.items():
        for seed in range(10):
            row = {"mu": spread(level, seed, noise)}
            for name in ("digits", "fashion-mnist"):
                row[f"{name} nats"] = nats if arm == "cmim 0.1" else 100.0
                for probe in ("knn", "ridge"):
                    row |= {f"{name} mu {probe}": level, f"{name} random h {probe}": level - over_random,
                            f"{name} hidden {probe}": level + 0.04,
                            f"{name} h {probe}": spread(level + informative, seed, noise)}
            values.setdefault(arm, {})[seed] = row
    for arm, by in (("cmim 0.1", 0.01), ("infonce", 0.01 + change), ("mim", 0.007)):
        for batch, sign in ((8, 0), (512, 1)):
            values[f"{arm}, B={batch}"] = {s: {"digits mu": spread(0.9, s, noise / 10) + sign * by} for s in range(10)}
    return values


def hpm(gain: float, noise: float = 0.002, rank: float = 0.7, **changed: dict[int, float]) -> dict:
    """Made-up values; `changed` gives a metric of the arm hpm other values in some seeds: spearman={0: 0.1}."""
    levels = {"mae": 0.7, "mae + prediction": 0.7, "hpm": 0.7 + gain, "hard from the start": 0.7, "mae, equal time": 0.72}
    found = {arm: {s: {"probe": spread(level, s, noise), "spearman": rank, "spearman, as trained": 0.7,
                       "loss, hard masks": 0.5, "loss, random masks": 0.4, "object, hard masks": 0.6, "object, random masks": 0.4}
                   for s in range(5)} for arm, level in levels.items()}
    names = {"spearman": "spearman", "loss": "loss, hard masks", "object": "object, hard masks"}
    for short, by_seed in changed.items():
        for s, value in by_seed.items():
            found["hpm"][s][names[short]] = value
    return found


def gains(*points: float, **settings) -> dict:
    """Values in which hpm is ahead of mae by so many points in each seed."""
    found = hpm(0.0, **settings)
    for arm in found:
        found[arm] = {s: dict(found[arm][s % 5]) for s in range(len(points))}
    for s, by in enumerate(points):
        found["hpm"][s]["probe"] = found["mae"][s]["probe"] + by / 100
    return found


CLEAR, LITTLE, BEHIND = (2, 3, 2.5, 2, 3), (1, -1, 0.5, -0.5, 0.2), (-2, -3, -2.5, -2, -3)


@pytest.mark.parametrize(("slug", "values", "wanted"), [
    ("cmim", cmim(better=0.03), "confirmed"),
    ("cmim", cmim(better=0.0), "refuted"),
    ("cmim", cmim(better=0.03, rival=0.05), "refuted"),
    ("cmim", cmim(better=0.03, nats=110.0), "refuted"),
    ("cmim", cmim(better=0.03, informative=0.0), "open"),
    ("cmim", cmim(better=0.03, change=-0.005), "refuted"),              # part 3 reversed
    ("cmim", cmim(better=0.03, change=0.0, noise=0.02), "open"),
    ("cmim", cmim(better=0.03, informative=-0.05), "refuted"),          # part 4 reversed, against mu and the control
    ("cmim", cmim(better=0.03, informative=-0.05, over_random=0.2), "refuted"),     # against mu alone
    ("cmim", cmim(better=0.03, over_random=-0.2), "refuted"),           # against the control alone
    ("cmim", cmim(better=0.003, noise=0.0005), "confirmed"),            # a small gain is a gain
    ("cmim", cmim(better=-0.03, rival=-0.05), "refuted"),
    ("cmim", cmim(better=0.003, noise=0.0005, rival=0.0), "open"),
    ("cmim", cmim(better=0.03, nats=90.0), "open"),                     # better reconstruction is not equal either
    ("cmim", cmim(better=0.03, nats=98.5), "confirmed"),
    ("cmim", cmim(better=0.01, noise=0.2), "open"),
    ("hpm", hpm(0.03), "confirmed"),
    ("hpm", hpm(-0.03), "refuted"),
    ("hpm", hpm(0.03, rank=0.1), "open"),
    ("hpm", hpm(0.001, noise=0.05), "open"),
])
def test_the_rule_gives_each_verdict(slug, values, wanted):
    verdict, sentence = read_claim(slug).judge(values)
    assert verdict == wanted and sentence.endswith(".")


@pytest.mark.parametrize(("values", "wanted", "reason"), [
    (gains(*CLEAR), "confirmed", ""),
    (gains(*CLEAR, spearman={3: 0.5}), "open", "not true in 1 of 5 seeds that grades follow losses"),
    (gains(*CLEAR, spearman=dict.fromkeys(range(5), 0.1)), "open", "although the gain is clear: not true in 5 of 5 seeds"),
    (gains(*CLEAR, spearman={0: math.nan}), "open", "not true in 1 of 5 seeds that grades follow"),
    (gains(*CLEAR, loss={0: 0.4}), "open", "not true in 1 of 5 seeds that patches hidden by grade are painted worse"),
    (gains(*CLEAR, loss=dict.fromkeys(range(5), 0.3)), "open", "not true in 5 of 5 seeds that patches hidden by grade are"),
    (gains(*CLEAR, object={4: 0.4}), "open", "not true in 1 of 5 seeds that more patches hidden by grade"),
    (gains(*CLEAR, object=dict.fromkeys(range(5), 0.3)), "open", "not true in 5 of 5 seeds that more patches hidden by"),
    (gains(*LITTLE), "open", "Open: the interval is not above 0; hpm is ahead in only 3 of 5 seeds."),
    (gains(0.5, -0.1, 0.1, 0.1, 0.1), "open", "Open: the interval is not above 0."),
    (gains(1, 1, 1, 1, 1, 1, 1, -0.01, -0.01, -0.01), "open", "although the gain is clear: hpm is ahead in only 7 of 10"),
    (gains(1, 1, 1, 1, 0), "confirmed", ""),
    (gains(*LITTLE, spearman={0: 0.1, 1: 0.1}), "open", "not true in 2 of 5 seeds that grades follow losses"),
    (gains(*LITTLE, spearman={0: 0.1, 1: 0.1}, loss={2: 0.1, 3: 0.1}), "open", "; not true in 2 of 5 seeds that patches"),
    (gains(*LITTLE, spearman={0: 0.1, 1: 0.1, 2: 0.1}), "refuted", "Refuted: the interval is not above 0"),
    (gains(*LITTLE, loss={0: 0.1, 1: 0.1, 2: 0.1}), "refuted", "not true in 3 of 5 seeds that patches hidden by grade are"),
    (gains(*LITTLE, object={0: 0.1, 1: 0.1, 2: 0.1}), "refuted", "not true in 3 of 5 seeds that more patches"),
    (gains(*BEHIND), "refuted", "Refuted: the interval lies below 0; hpm is ahead in only 0 of 5 seeds."),
])
def test_the_rule_of_hpm(values, wanted, reason):
    """Refuted by an interval below 0, or by one not above 0 when one diagnostic fails in most seeds."""
    verdict, sentence = read_claim("hpm").judge(values)
    assert verdict == wanted and reason in sentence and sentence.endswith(".")
    assert ("not true" in sentence or "interval" in sentence or "only" in sentence) == (wanted != "confirmed")


def test_hpm_trains_every_arm_as_stated(monkeypatch):
    """Only `mae, equal time` takes more steps; the probes' rows are not those that were trained on."""
    from notan.claims import hpm as claim
    from notan.data import open_data

    seen: dict = {}
    digits = open_data("digits")

    def fit(method, rows, *, steps, batch, **plan):
        seen[arm] = (rows, steps, batch)
        return method

    def probes(encode, rows, test):
        assert (rows, test) == ("labelled", "test")
        return {"knn": 0.2, "ridge": 0.4}

    monkeypatch.setattr(claim, "open_data", lambda name: digits)
    monkeypatch.setattr(claim, "splits", lambda data, quick: ("train", "labelled", "test"))
    monkeypatch.setattr(claim, "fit", fit)
    monkeypatch.setattr(claim, "subset", lambda rows, count: rows)
    monkeypatch.setattr(claim, "diagnostics", lambda method, rows, seed: {"spearman": 0.0})
    monkeypatch.setattr(claim, "probes", probes)
    for arm in claim.CLAIM["arms"]:
        found = claim.run(arm, 0, False)
        assert found["probe"] == pytest.approx(0.3) and ("spearman" in found) == (not arm.startswith("mae") or "+" in arm)
    assert seen == {arm: ("train", 564 if arm == "mae, equal time" else 240, 128) for arm in claim.CLAIM["arms"]}


def test_the_pictures_of_hpm_are_as_stated():
    from notan.claims import hpm as claim
    from notan.data import Data, Rows, open_data

    every = Rows({"label": np.arange(60_000)})                          # a row's label is its number
    info = open_data("digits").info
    train, labelled, test = (set(rows.values("label").tolist()) for rows in claim.splits(Data(every, every, info, ""), False))
    assert [len(rows) for rows in (train, labelled, test)] == [2_000, 4_000, 4_000]
    assert 60 < len(train & labelled) < 220                             # 133 by chance
    said = claim.CLAIM["data"] + claim.CLAIM["protocol"]
    for fact in ("2,000 training", "4,000 labelled", "4,000 test", "240 steps: 16 epochs of 15 steps", "2.35 times"):
        assert fact in said
    assert claim.STEPS == 240 == 16 * (2_000 // 128) and claim.RATIO == 2.35


@pytest.mark.parametrize("better", [-0.02, 0.0, 0.002, 0.02])
@pytest.mark.parametrize("nats", [95.0, 100.0, 105.0])
def test_no_values_both_confirm_and_refute_cmim(better, nats):
    """Whatever the values, those that let every part hold meet no ground of refutation."""
    from notan.claims import cmim as claim

    for values in (cmim(better=better, nats=nats, noise=noise, change=change, informative=informative)
                   for noise in (0.0005, 0.02) for change in (-0.01, 0.01) for informative in (-0.02, 0.02)):
        parts, grounds = claim.weigh(values)
        assert not (all(parts) and any(grounds))


def test_the_sentence_of_cmim_shows_the_controls():
    sentence = read_claim("cmim").judge(cmim(better=0.03, noise=0))[1]
    assert "no pairs, by 0.7" in sentence and "minus the encoder's hidden layer: +1.0" in sentence


def test_the_arms_are_those_that_are_stated():
    from notan.claims import cmim as cmim_claim
    from notan.claims import hpm as hpm_claim

    assert cmim_claim.CLAIM["arms"] == list(cmim_claim.ARMS) and hpm_claim.CLAIM["arms"] == list(hpm_claim.METHODS)


def test_rank_correlation_is_spearmans():
    import torch

    from notan.claims.hpm import spearman

    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 9, (6, 12), generator=g).double(), torch.randn(6, 12, generator=g).double()
    for found, x, y in zip(spearman(a, b), a, b):
        assert found.item() == pytest.approx(stats.spearmanr(x, y).statistic)


# ---- the framework ---------------------------------------------------------------------------------------------------

def test_an_interrupted_claim_goes_on(toy, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_claim(toy, out=tmp_path)
    assert len(calls(toy)) == 5 and not (tmp_path / "toy.json").exists()
    outcome = run_claim(toy, out=tmp_path)
    assert calls(toy) == ["a 0", "b 0", "a 1", "b 1", "stop", "a 2", "b 2"]
    assert run_claim(toy, out=tmp_path)["means"] == outcome["means"] and len(calls(toy)) == 7
    written = json.loads((tmp_path / "toy.json").read_text())
    assert written["verdict"] == "confirmed" and written["seeds"] == [0, 1, 2] and written["metrics"] == ["m"]
    assert written["means"]["a"]["m"] == [1.0, 1.0]
    assert written["differences"]["b"]["m"] == pytest.approx(list(t_interval([1.0, 1.1, 1.2])))
    assert written["values"]["a"]["0"]["undefined"] == "nan"


def test_a_changed_protocol_never_mixes_and_a_changed_rule_may(toy):
    key = framework.protocol_key(read_claim(toy))
    toy.write_text(TOY.replace('"b is better"', '"so it is"') + "\n# a remark\n")
    assert framework.protocol_key(read_claim(toy)) == key
    toy.write_text(TOY.replace("0.1 * seed", "0.2 * seed"))
    assert framework.protocol_key(read_claim(toy)) != key
    for more in ('"methods": ["cmim"]', '"strategies": ["vcd"]', '"uses": ["_scenes.py"]'):
        toy.write_text(TOY.replace('"metric": "m"', f'"metric": "m", {more}'))
        assert framework.protocol_key(read_claim(toy)) != key


def test_a_quick_run_keeps_nothing(toy, tmp_path):
    outcome = run_claim(toy, quick=True)
    assert outcome["seeds"] == [0, 1] and not (tmp_path / "cache").exists() and not list(tmp_path.glob("*.json"))
    assert not (framework.RESULTS / "toy.json").exists()


def test_progress_is_told_and_nothing_names_the_host(toy, tmp_path):
    import platform

    told = []
    toy.with_suffix(".log").write_text("stop\n")
    outcome = run_claim(toy, out=tmp_path / "x.json", progress=lambda *at: told.append(at))
    assert told == [(arm, seed, 2 * seed + i, 6) for seed in range(3) for i, arm in enumerate("ab")]
    text = (tmp_path / "x.json").read_text()
    assert str(tmp_path) not in text and platform.node() not in text
    assert outcome["command"] == "notan claim toy" and {"python", "torch", "notan"} <= set(outcome["versions"])


def test_what_is_wrong_with_a_claim_is_said(toy):
    with pytest.raises(NotanError, match=r"no claim 'cmin'.*cmim"):
        read_claim("cmin")
    toy.write_text(TOY.replace('"metric": "m", ', ""))
    with pytest.raises(NotanError, match="lacks metric"):
        read_claim(toy)
    toy.write_text(TOY.replace('"minutes": 0', '"minutes": 0, "baseline": "c"'))
    with pytest.raises(NotanError, match="baseline 'c' is no arm"):
        read_claim(toy)
    toy.write_text(TOY.replace('"confirmed"', '"probably"'))
    with pytest.raises(NotanError, match=r"probably.*Wanted: one of confirmed"):
        run_claim(toy, quick=True)


# ---- statistics ------------------------------------------------------------------------------------------------------

def test_the_interval_is_students():
    d = np.random.default_rng(0).normal(1, 2, 12)
    found = t_interval(d)
    low, high = stats.t.interval(0.95, 11, loc=d.mean(), scale=stats.sem(d))
    assert found == pytest.approx((d.mean(), low, high, 12))
    assert t_interval([3.0]) == (3.0, -math.inf, math.inf, 1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(0.3, 1, (2000, 5))
    covered = [i.low <= 0.3 <= i.high for i in map(t_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_pairs_are_made_by_seed():
    values = {"a": {0: {"m": 1.0}, 1: {"m": 5.0}}, "b": {1: {"m": 6.0}, 0: {"m": 2.0}}}
    assert paired(values, "b", "a", "m") == (1.0, 1.0, 1.0, 2)
    values["b"][0]["m"] = math.nan
    assert summary(values) == {"a": {"m": [3.0, pytest.approx(math.sqrt(8))]}, "b": {}}
