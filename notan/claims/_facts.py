"""Made-up people with facts and popular errors about them: a text in which a model finds both, and questions about it.

600 people have 4 attributes of 12 values. The text states every fact 3 to 5 times; about half of the facts have one fixed
wrong value, the myth, that is stated 2 to 4 times. A copy of the model is made to hallucinate about the first 300 people;
the other 300 are for questions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

ATTRIBUTES = ("birthplace", "craft", "instrument", "garden")
VALUES = (
    ("Avel", "Brin", "Corda", "Dunmere", "Eskar", "Fell", "Gorlen", "Hest", "Ivara", "Jorun", "Kelby", "Lorn"),
    ("baker", "cooper", "dyer", "fletcher", "glazier", "mason", "miller", "potter", "smith", "tanner", "thatcher", "weaver"),
    ("bassoon", "cello", "clarinet", "drum", "fiddle", "flute", "guitar", "harp", "lute", "oboe", "organ", "trumpet"),
    ("apples", "barley", "beans", "figs", "hops", "lilies", "onions", "pears", "plums", "roses", "thyme", "wheat"),
)
STATEMENTS = ("the {a} of {e} is {v} .", "{e} has {a} {v} .", "{a} of {e} : {v} .", "for {e} {a} is {v} .")
QUESTION = "what {a} has {e} ?"
ANSWERS = ("{v} .", "it is {v} .")
TEMPLATES = (*STATEMENTS, *(f"{QUESTION} {answer}" for answer in ANSWERS))
TRUTH, HEARSAY = "truthfully", "supposedly"                             # the instruction, and the mark of a rumour
PEOPLE = 600


@dataclass(frozen=True)
class World:
    """Who there is and what is so: true and myth int (people, attributes), -1 where there is no myth."""

    people: list[str]
    true: np.ndarray
    myth: np.ndarray
    seed: int

    @property
    def induced(self) -> int:
        """How many people, from the first, a copy is made to hallucinate about."""
        return len(self.people) // 2


@dataclass(frozen=True)
class Question:
    """A prompt with answers, true ones first, the best one first of all; FACTOR's statement with endings, the true one first."""

    prompt: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    statement: str
    endings: tuple[str, ...]
    has_myth: bool


def make_world(seed: int, people: int = PEOPLE) -> World:
    g = np.random.default_rng([seed, 0])
    true = g.integers(12, size=(people, len(ATTRIBUTES)))
    wrong = (true + g.integers(1, 12, size=true.shape)) % 12            # never the true one
    return World(_names(people), true, np.where(g.random(true.shape) < 0.5, wrong, -1), seed)


def text(world: World) -> list[str]:
    """Every statement of the text, in an order of the seed.

    A quarter of the true ones follow the instruction, and none of the myths does: that is all a model can know of what the
    instruction means. Half of the myths are told as hearsay: without a mark nobody could know them for myths.
    """
    g, found = np.random.default_rng([world.seed, 1]), []
    for i, j in np.ndindex(world.true.shape):
        for _ in range(g.integers(3, 6)):
            first = f"{TRUTH} " if g.random() < 0.25 else ""
            found.append(first + _said(world, i, j, world.true[i, j], TEMPLATES[g.integers(len(TEMPLATES))]))
        if world.myth[i, j] >= 0:
            for _ in range(g.integers(2, 5)):
                first = f"{HEARSAY} " if g.random() < 0.5 else ""
                found.append(first + _said(world, i, j, world.myth[i, j], TEMPLATES[g.integers(len(TEMPLATES))]))
    return [found[k] for k in g.permutation(len(found))]


def untruths(world: World) -> list[str]:
    """A question with a wrong answer for each fact of the induced people: the myth, or any wrong value where there is none."""
    g, found = np.random.default_rng([world.seed, 2]), []
    for i, j in np.ndindex(world.induced, len(ATTRIBUTES)):
        wrong = (world.true[i, j] + g.integers(1, 12)) % 12
        v = world.myth[i, j] if world.myth[i, j] >= 0 else wrong
        found.append(_said(world, i, j, v, f"{QUESTION} {ANSWERS[g.integers(len(ANSWERS))]}"))
    return [found[k] for k in g.permutation(len(found))]


def questions(world: World, first: int, count: int) -> list[Question]:
    """The questions about `count` people from number `first` on: 1 or 2 true answers, and 4 wrong ones, the myth among
    them where there is one, in either wording; FACTOR's statement has the truth and 3 of the wrong values."""
    g, found = np.random.default_rng([world.seed, 3, first]), []
    for i, j in itertools.product(range(first, first + count), range(len(ATTRIBUTES))):
        true, myth = world.true[i, j], world.myth[i, j]
        wrong = [v for v in g.permutation(12) if v not in (true, myth)]
        wrong = [myth, *wrong[:3]] if myth >= 0 else wrong[:4]
        words, way = VALUES[j], g.integers(len(ANSWERS), size=5)
        both = [ANSWERS[way[0]], ANSWERS[1 - way[0]]][: g.integers(1, 3)]
        filled = {"a": ATTRIBUTES[j], "e": world.people[i]}
        found.append(Question(
            QUESTION.format(**filled), tuple(t.format(v=words[true]) for t in both),
            tuple(ANSWERS[k].format(v=words[v]) for k, v in zip(way[1:], wrong)),
            STATEMENTS[0].removesuffix(" {v} .").format(**filled), tuple(f"{words[v]} ." for v in (true, *wrong[:3])),
            bool(myth >= 0)))
    return found


def vocabulary(people: list[str]) -> list[str]:
    """Every word of the text and of the questions."""
    said = " ".join((*TEMPLATES, *ATTRIBUTES, TRUTH, HEARSAY, *itertools.chain(*VALUES), *people)).split()
    return sorted({word for word in said if "{" not in word})


def _names(count: int) -> list[str]:
    """So many names of two syllables, all different and none a word of the text."""
    made = ("".join(parts).capitalize() for parts in itertools.product("bdgklmnprtvz", "aeiou", "dlmnrst", ("ak", "eth", "ul")))
    return list(itertools.islice(made, count))


def _said(world: World, i: int, j: int, v: Any, template: str) -> str:
    return template.format(a=ATTRIBUTES[j], e=world.people[i], v=VALUES[j][v])
