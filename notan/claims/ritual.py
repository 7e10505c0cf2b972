"""RITUAL's claim: a transformed copy of the picture, added, makes answers about it truer than sampling is.

A tiny model that sees is trained from nothing on biased scenes of icons (`_vlm.py`) and asked, in unbiased ones, for what is
there and for absent partners of what is there. An answer is one token, so accuracy under sampling is an exact expectation.
The paper's weights come to 4, so its fair rivals are the plausible head alone and the head at a quarter of the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from notan.claims._statistics import Values, mean, paired

CLAIM = {
    "sentence": "Adding three times the logits of a randomly transformed copy of the picture makes sampled answers about absent "
                "partners truer, and more so than the plausible head and the temperature that its weights come to.",
    "arms": ["T=1", "best", "head", "T=1/4", "head, T=1/4", "ritual", "ritual, averaged", "ritual, best", "ritual, no jitter",
             "ritual+vcd", "vcd", "vcd, best", "copy alone, best"],
    "baseline": "head, T=1/4",
    "data": "rendered 3 x 3 scenes of 16 emoji by two artists (emoji): 1,000 questions a seed, half about what is there, half "
            "about the absent partner of what is there",
    "metric": "accuracy in %: expected under sampling at temperature 1, or of the best answer",
    "shown": ["augmented", "plain", "augmented yes", "plain yes"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "with the model that saw mirrored and cropped pictures in training: ritual above T=1 in every seed, above head, "
                "T=1/4 beyond the 95% interval over seeds, and ritual, best above best beyond the interval",
    "refutes": "there, ritual is not above head, T=1/4 beyond the interval",
    "protocol": "LLaVA of 0.3 M parameters (3 vision and 3 text blocks of 64); on biased scenes 350 steps of 64 for the picture "
                "encoder, then 700 of 32 for all of it (plain); or 700, then 1,400 with mirrors and crops (augmented; questions "
                "are about what is still to be seen), so that both see about as well; noise of deviation 30 to "
                "300, drawn for each scene; alpha 3, beta 0.1; VCD alpha 1, step 500; all arms of a seed share both models and "
                "all questions; M3ID's first token is the head's, so it is no arm",
    "minutes": 60,
    "strategies": ["ritual", "vcd", "m3id"],
    "uses": ["_scenes.py", "_vlm.py"],
    "methods": [],
}
STEPS = {"plain": 700, "augmented": 1400}                               # one as able as the other before an arm was read


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    from notan.claims._vlm import exam, question, shares, taught
    from notan.probes.answers import yes_no, yes_no_expected

    strategy, best = arms()[arm], arm.endswith("best")
    pictures, items = exam(seed, quick, "partner")
    truth = [t for _, _, t in items]
    found: dict[str, float] = {}
    for kind, steps in STEPS.items():
        share = shares(strategy, taught(kind, seed, quick, steps), [question(name) for _, name, _ in items],
                       [pictures[i] for i, _, _ in items], seed)
        figures = yes_no([q > 0.5 for q in share], truth) if best else yes_no_expected(share, truth)
        found |= {kind: 100 * figures["accuracy"], f"{kind} yes": figures["yes_ratio"]}
    return found


def arms() -> dict[str, Any]:
    """The strategy of each arm; the arms that end in `best` take the likelier answer of theirs."""
    from notan.strategies._reference import Reference
    from notan.strategies.ritual import TRANSFORMS, Ritual, drawn, transformed
    from notan.strategies.vcd import VCD

    class Averaged(Ritual):
        """The same mixture of logits at the model's own temperature."""

        def combine(self, z: Sequence[Any], t: int) -> Any:
            return super().combine(z, t) / 4

    class NoJitter(Ritual):
        """One of the five transformations that change no colour."""

        def contexts(self, given: Any, amateur: bool) -> Any:
            still = [name for name in TRANSFORMS if name != "jitter"]
            return Ritual(transform=still[given.key % 5]).contexts(given, amateur)

    def copy(given: Any) -> Any:
        return replace(given, image=transformed(given.image, drawn(given.key), given.key))

    return {"T=1": Reference(), "best": Reference(), "head": Reference(1, 0.1), "T=1/4": Reference(4),
            "head, T=1/4": Reference(4, 0.1), "ritual": Ritual(), "ritual, averaged": Averaged(),
            "ritual, best": Ritual(), "ritual, no jitter": NoJitter(),
            "ritual+vcd": Ritual(minus="vcd"), "vcd": VCD(), "vcd, best": VCD(),
            "copy alone, best": Reference(main=copy)}


def judge(values: Values) -> tuple[str, str]:
    above = {kind: {"T=1": paired(values, "ritual", "T=1", kind), "head, T=1/4": paired(values, "ritual", "head, T=1/4", kind),
                    "best": paired(values, "ritual, best", "best", kind)} for kind in STEPS}
    seeds = sorted(values["ritual"])
    headline = all(values["ritual"][s]["augmented"] > values["T=1"][s]["augmented"] for s in seeds)
    own = above["augmented"]
    if own["head, T=1/4"].low <= 0:
        verdict = "refuted"
    else:
        verdict = "confirmed" if headline and own["best"].low > 0 else "open"
    said = {kind: f"ritual minus T=1 {a['T=1']}, minus the head at T=1/4 {a['head, T=1/4']}, its best answer minus the model's "
                  f"{a['best']}" for kind, a in above.items()}
    head = paired(values, "head, T=1/4", "T=1", "augmented")
    alone, whole = (mean(values, arm, "augmented") for arm in ("copy alone, best", "best"))
    return verdict, (f"Accuracy in points, augmented model: {said['augmented']}; the head at T=1/4 alone minus T=1 {head}. Plain "
                     f"model: {said['plain']}. The copy alone gives {alone:.1f}%, the picture {whole:.1f}%.")
