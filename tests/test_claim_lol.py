"""LOL's claim: the world it asks about, its batched scores, its control, and the rule that judges it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from notan.claims import _facts as facts
from notan.claims import lol as claim
from notan.claims._words import rows, words_tokenizer
from notan.probes.answers import multiple_choice
from notan.runs.score import answer_scores
from notan.strategies.contrastive_decoding import ContrastiveDecoding
from notan.strategies.dola import DoLa
from notan.strategies.icd import ICD
from notan.strategies.lol import LOL

WORLD = facts.make_world(1000)
SEED = 1000


def told(sentence: str) -> tuple[str, str, str]:
    """(person, attribute, value) of a sentence."""
    words = sentence.split()
    value = next(w for w in words for names in facts.VALUES if w in names)
    return next(w for w in words if w in set(WORLD.people)), next(w for w in words if w in facts.ATTRIBUTES), value


# ---- the world -------------------------------------------------------------------------------------------------------

def test_the_text_states_facts_and_myths_as_often_as_promised():
    marks: dict[tuple, Counter] = {}
    for sentence in facts.text(WORLD):
        first = sentence.split()[0]
        marks.setdefault(told(sentence), Counter())[first if first in (facts.TRUTH, facts.HEARSAY) else ""] += 1
    assert len(set(WORLD.people)) == 600 and not set(WORLD.people) & set(facts.vocabulary([]))
    instructed = hearsay = true = untrue = 0
    for i, j in ((i, j) for i in range(600) for j in range(4)):
        at, names = (WORLD.people[i], facts.ATTRIBUTES[j]), facts.VALUES[j]
        count = marks.pop((*at, names[WORLD.true[i, j]]))
        assert 3 <= count.total() <= 5 and not count[facts.HEARSAY]
        true, instructed = true + count.total(), instructed + count[facts.TRUTH]
        if (myth := WORLD.myth[i, j]) >= 0:
            count = marks.pop((*at, names[myth]))
            assert myth != WORLD.true[i, j] and 2 <= count.total() <= 4 and not count[facts.TRUTH]
            untrue, hearsay = untrue + count.total(), hearsay + count[facts.HEARSAY]
    assert not marks                                                    # nothing else is said
    assert instructed / true == pytest.approx(0.25, abs=0.03) and hearsay / untrue == pytest.approx(0.5, abs=0.05)
    assert (WORLD.myth >= 0).mean() == pytest.approx(0.5, abs=0.05)


def test_the_copy_learns_only_untruths_about_people_no_question_is_about():
    wrong = facts.untruths(WORLD)
    about = {told(sentence)[0] for sentence in wrong}
    assert about == set(WORLD.people[:300]) and len(wrong) == 1200
    for sentence in wrong:
        person, attribute, value = told(sentence)
        i, j = WORLD.people.index(person), facts.ATTRIBUTES.index(attribute)
        assert value != facts.VALUES[j][WORLD.true[i, j]] and sentence.startswith(facts.QUESTION.format(a=attribute, e=person))
        assert WORLD.myth[i, j] < 0 or value == facts.VALUES[j][WORLD.myth[i, j]]
    study = claim.studied(SEED, True)
    people = [{q.prompt.split()[3] for q in sheet.questions} for sheet in (study.validation, study.test)]
    assert [len(p) for p in people] == [4, 8] and not people[0] & people[1]
    assert not (people[0] | people[1]) & set(WORLD.people[:12])         # a quick world's induced people


def test_questions_have_true_answers_first_and_the_myth_among_the_false():
    asked = facts.questions(WORLD, 300, 100)
    assert len(asked) == 400 and {len(q.true) for q in asked} == {1, 2} and {len(q.false) for q in asked} == {4}
    for q, (i, j) in zip(asked, ((i, j) for i in range(300, 400) for j in range(4))):
        values = {told(f"{q.prompt} {a}")[2] for a in q.true}, [told(f"{q.prompt} {a}")[2] for a in q.false]
        truth = facts.VALUES[j][WORLD.true[i, j]]
        assert values[0] == {truth} and truth not in values[1] and len(set(values[1])) == 4
        assert q.has_myth == (WORLD.myth[i, j] >= 0) and (not q.has_myth or values[1][0] == facts.VALUES[j][WORLD.myth[i, j]])
        assert told(f"{q.statement} {q.endings[0]}") == (WORLD.people[i], facts.ATTRIBUTES[j], truth)
        assert [e.removesuffix(" .") for e in q.endings[1:]] == values[1][:3]
    assert facts.questions(WORLD, 300, 100) == asked


def test_the_loss_counts_what_can_be_known():
    tokenizer = words_tokenizer(["?", ".", "has", "is", "it", "oboe", "x"])
    ids, counted = rows(tokenizer, ["x has oboe .", "x ? it is oboe .", "x ? oboe ."], ["?", "oboe"])
    assert counted.tolist() == [[False, False, True, True, False, False], [False, False, True, True, True, True],
                                [False, False, True, True, False, False]]
    assert ids.shape == (3, 6) and (ids[0, 4:] == tokenizer.pad_token_id).all()


# ---- scores ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arm", "settings", "made"), [
    ("DoLa", {"c": 1.0, "norm": 1}, DoLa(c=1.0, norm=True, beta=0.1)),
    ("DoLa", {"c": 0.5, "norm": 0}, DoLa(c=0.5, beta=0.1)),
    ("CD", {"c": 0.5, "tau": 0.5}, ContrastiveDecoding(c=0.5, tau=0.5)),
    ("ICD", {"c": 0.7}, ICD(c=0.7)),
    ("LOL", {"m": 2, "omega": 0.5}, LOL(omega=0.5, lower=2 / 6, truth=facts.TRUTH)),
])
@pytest.mark.parametrize("renormalise", [False, True])
def test_batched_scores_are_the_librarys(arm, settings, made, renormalise):
    study = claim.studied(SEED, True)
    reader, chosen = study.test.answers, claim.ARMS[arm]
    found = claim.of_answers(claim.combined(study, reader, chosen, settings, 0.1), reader, renormalise)
    other = chosen.streams[-1][0]
    for place in (0, 1, 7, 30):
        prompt, answer = reader.pairs[place]
        wanted = answer_scores(made, study.models["E"], reader.tokenizer, prompt, [answer], renormalise=renormalise,
                               amateur=study.models[other] if other != "E" else None)[0]
        assert found[place] == pytest.approx(wanted, abs=2e-4)
    assert len(found) == len(reader.pairs)


def test_measures_are_those_of_each_question():
    study, arm = claim.studied(SEED, True), claim.ARMS["E"]
    e, tokenizer = study.models["E"], study.test.answers.tokenizer
    sheet = claim.sheet(tokenizer, study.test.questions[:12])
    found, each = claim.choices(study, sheet, arm, {}), []
    for q in sheet.questions:
        true, false = ([sum(s) for s in answer_scores(ICD(c=0.0, beta=0.0), e, tokenizer, q.prompt, answers, amateur=e)]
                       for answers in (q.true, q.false))
        each.append(multiple_choice(true, false))
    for m in claim.METRICS:
        assert found[m] == pytest.approx(sum(row[m] for row in each) / len(each), abs=1e-5)
        assert found[m + claim.RENORMALISED] == pytest.approx(found[m], abs=1e-5)           # log-probabilities already


def test_without_the_lower_contrast_lol_is_icd_behind_the_instruction():
    study = claim.studied(SEED, True)
    lol, icd = (claim.combined(study, study.test.answers, claim.ARMS[arm], s, 0.1)
                for arm, s in (("LOL", {"m": 1, "omega": 0.0}), ("ICD, instructed", {"c": 1.0})))
    torch.testing.assert_close(lol, icd)
    assert set(claim.spreads(study)) == {"spread m=1", "spread m=2", "spread m=3"} and min(claim.spreads(study).values()) > 0


def test_the_control_never_sets_a_layer_against_itself():
    z = [torch.randn(200, 9) for _ in range(2 + 3 + 3)]                 # E, A, E's layers 1 to 3, A's
    for m in claim.LOWER:
        own = [*z[:4 + m], torch.full((200, 9), torch.nan), *z[5 + m:]]
        control = claim.Shuffled(m=m, omega=0.5, beta=0.0)
        s = control.combine(own, 0)
        assert torch.isfinite(s).all() and torch.equal(s, control.combine(own, 0))
        for j in (j for j in claim.LOWER if j != m):                    # either of the others is what it is set against
            plain = LOL(omega=0.5, lower=m / 6, beta=0.0).combine([z[0], z[1], z[1 + m], z[4 + j]], 0)
            assert 0.3 < torch.isclose(s, plain).all(1).float().mean() < 0.7


def test_a_quick_run_measures_everything():
    for arm in ("E", "LOL", "LOL, shuffled"):
        found = claim.run(arm, SEED, True)
        assert {*claim.METRICS, *(m + claim.RENORMALISED for m in claim.METRICS), "FACTOR", "MC1 of myths"} <= set(found)
        assert ("omega, renormalised" in found) == (arm != "E") and ("spread m=1" in found) == (arm == "LOL")


# ---- the rule --------------------------------------------------------------------------------------------------------

def values(lol: dict[str, float], icd: float = 0.05, control: float = 0.0, noise: float = 0.005) -> dict:
    """Made-up values: E at 0.7, ICD `icd` above it, LOL's metrics so far above ICD's; the others at 0.6."""
    def row(s: int, arm: str) -> dict[str, float]:
        level = {"E": 0.7, "ICD": 0.7 + icd, "LOL": 0.7 + icd, "LOL, shuffled": 0.7 + icd + control}.get(arm, 0.6)
        wobble = noise * (s - 2) if arm == "LOL" else 0.0
        gain = lol if arm == "LOL" else {}
        found = {m + way: level + wobble + gain.get(m + way, 0.0) for m in claim.METRICS for way in ("", claim.RENORMALISED)}
        return found | {f"spread m={m}": 2.0 for m in claim.LOWER} | dict(claim.ARMS[arm].grid[0])

    return {arm: {s: row(s, arm) | {"MC1": row(s, arm)["MC1"] + (0.001 * (s - 2) if arm == "ICD" else 0)} for s in range(5)}
            for arm in claim.CLAIM["arms"]}


@pytest.mark.parametrize(("made", "verdict"), [
    (values({"MC1": 0.05, "MC3": 0.05}), "confirmed"),
    (values({"MC1": 0.05}), "open"),                                    # one of three
    (values({"MC1": 0.05, "MC3": 0.05}, icd=0.0), "open"),              # ICD itself gains nothing
    (values({"MC1": 0.05, "MC3": 0.05}, control=0.1), "open"),          # shuffled layers do better
    (values({"MC2, renormalised": 0.05}), "open"),
    (values({}), "refuted"),
    (values({"MC2": 0.2}), "refuted"),                                  # where differences are no probabilities
    (values({"MC1": 0.05, "MC3": 0.05}, noise=0.1), "refuted"),         # within noise
])
def test_the_rule(made, verdict):
    found, sentence = claim.judge(made)
    assert found == verdict and sentence.endswith(".") and "LOL m=1 omega=0.1, m=1 omega=0.1" in sentence


def test_no_arm_is_tuned_more_than_another():
    assert list(claim.ARMS) == claim.CLAIM["arms"]
    assert {len(arm.grid) for arm in claim.ARMS.values()} == {1, 12}
    assert len({str(s) for arm in claim.ARMS.values() for s in arm.grid}) > 12 * 3
