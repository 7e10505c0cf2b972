"""SimCTG's claim: parts that share no text, prompts, the reading at equal diversity, and the rule."""

from __future__ import annotations

import pytest

from notan.claims import simctg as claim
from notan.claims._framework import read_claim


def test_parts_share_no_text_and_prompts_are_held_out():
    parts = claim.parts(True)
    sets = [{passage for document in part for passage in document} for part in parts]
    assert all(sets) and not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert (len(parts[0]), len(parts[1]), len(parts[2])) == (40, 40, 20)
    words = claim.tokenizer(0, True)
    prompts, originals = claim.excerpts(words, 3, True)
    assert all(any(p + o in passage for passage in sets[2]) for p, o in zip(prompts, originals))
    assert all(len(words(p)["input_ids"]) == claim.BEFORE for p in prompts)


def test_likelihood_at_a_diversity_is_on_the_line():
    points = [(0.1, -3.0), (0.8, -4.0), (0.9, -4.4)]
    assert claim.at(0.85, points) == pytest.approx(-4.2) and claim.at(0.45, points[::-1]) == pytest.approx(-3.5)
    assert claim.at(0.99, points) == -4.4 and claim.at(0.0, points) == -3.0


def values(isotropy: float, quality: float, perplexity: float) -> dict:
    shared = {"diversity 0": 0.1, "people's diversity": 0.9, "people's likelihood": -5.0}
    found = {}
    for arm, by in (("rho 0", 0.0), ("rho 0.5", 1.0), ("not trained further", 0.0)):
        found[arm] = {s: {"isotropy": 0.7 + by * isotropy + s / 1000 * by, "quality": -4 + by * quality + s / 1000 * by,
                          "perplexity": 100 * (1 + by * perplexity), **shared} for s in (0, 1, 2)}
    return found


@pytest.mark.parametrize(("differences", "verdict"), [
    ((0.05, 0.05, 0.0), "confirmed"), ((0.05, 0.05, 0.03), "refuted"), ((0.05, 0.05, 0.019), "confirmed"),
    ((-0.05, 0.05, 0.0), "refuted"), ((0.05, -0.05, 0.0), "refuted"), ((0.05, 0.001, 0.0), "open"), ((0.001, 0.05, 0.0), "open"),
])
def test_the_rule(differences, verdict):
    assert claim.judge(values(*differences))[0] == verdict


def test_the_numbers_of_the_protocol_are_those_of_the_code():
    said = read_claim("simctg").facts["protocol"]
    for number in (f"{claim.STEPS} steps", f"{claim.MORE} steps", f"{claim.JUDGES} steps", f"{claim.LENGTH} tokens",
                   f"{claim.BEFORE} tokens", f"{claim.NEW} new tokens", f"{claim.BATCH} passages", "AdamW 3e-3", "at 1e-3"):
        assert number in said, number
    assert (claim.RATE, claim.LATER) == (3e-3, 1e-3) and claim.ALPHAS == (0.0, 0.25, 0.5, 0.75, 1.0)
