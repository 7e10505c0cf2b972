"""CHAIR: which objects a caption mentions that the picture does not have.

Rohrbach, Hendricks, Burns, Darrell and Saenko, "Object Hallucination in Image Captioning", EMNLP 2018 (arXiv 1809.02156).

A caption's words are looked up in a vocabulary, word or phrase to object; what an object is called more than once counts as
often. True objects are the picture's, from its masks and from what people wrote of it (`mentions` finds these):

    CHAIRi = mentions of objects that are not there / mentions,          over all captions
    CHAIRs = captions with at least one of them / captions

A caption that says little says little wrong: recall and length stand beside both.

Deviations from the released code: plurals become singulars by the rules of `singulars` and only where the vocabulary has the
result, not by the `pattern` package; phrases of any number of words are found (there, "stove top oven" is in the vocabulary and
can never be met); and words are runs of letters, not nltk's tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from notan.errors import NotanError

# COCO's special cases in the released code: phrases whose parts would be taken for an object that is not meant.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
PHRASES = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    "passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet",
    "home plate": "", "train track": "",
}


def synonyms(path: str | Path) -> dict[str, str]:
    """A vocabulary from the released text format, one object a line: its name, and what else it is called, by commas.

    Raises `NotanError` with the line for one without a name, and for a word of two objects.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotanError(f"{path} cannot be read ({error})", "a text file, one object a line", "check the path") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = [" ".join(word.lower().split()) for word in line.split(",")]
        if line.strip() and not words[0]:
            raise NotanError(f"{path}, line {number} starts with a comma", "an object's name first", "repair the line")
        for word in filter(None, words):
            if found.setdefault(word, words[0]) != words[0]:
                raise NotanError(f"{path}, line {number}: {word!r} is a {found[word]} already", "one object for each word")
    if not found:
        raise NotanError(f"{path} is empty", "one object a line", "fetch it again")
    return found


def coco(vocabulary: Mapping[str, str]) -> dict[str, str]:
    """COCO's vocabulary with the released code's special cases: a "baby bird" is a bird and no person."""
    return dict(vocabulary) | {phrase: vocabulary.get(word, "") for phrase, word in PHRASES.items()}


def mentions(caption: str, vocabulary: Mapping[str, str]) -> list[str]:
    """The objects that a caption mentions, in order, as often as it does. The longest phrase at a place is taken; a phrase
    whose object is "" is passed over. A seat beside a toilet is no chair."""
    words = re.findall(r"[a-z]+", caption.lower())
    longest = max(len(phrase.split()) for phrase in vocabulary)
    if {"toilet", "toilets"} & set(words):
        words = [word for word in words if word not in ("seat", "seats")]
    found, i = [], 0
    while i < len(words):
        for n in range(min(longest, len(words) - i), 0, -1):
            phrase = next((p for p in _singular(words[i: i + n]) if p in vocabulary), None)
            if phrase is not None:
                found += [vocabulary[phrase]] if vocabulary[phrase] else []
                break
        i += n
    return found


def singulars(word: str) -> Iterator[str]:
    """The word, then what it may be the plural of, likeliest first."""
    yield word
    irregular = {"people": "person", "children": "child", "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth"}
    if word in irregular:
        yield irregular[word]
    for ending, single in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("men", "man"), ("sses", "ss")):
        if word.endswith(ending):
            yield word.removesuffix(ending) + single
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]
    if re.search(r"(s|x|z|o|ch|sh)es$", word):
        yield word[:-2]


def _singular(words: Sequence[str]) -> Iterator[str]:
    """The phrase with its last word as it is, then as a singular."""
    for last in singulars(words[-1]):
        yield " ".join([*words[:-1], last])


def chair(captions: Sequence[str], truth: Sequence[Collection[str]], vocabulary: Mapping[str, str]) -> dict[str, float]:
    """CHAIRi, CHAIRs, recall and the mean number of words, one caption a picture with its true objects.

    recall: the share of all true objects that their picture's caption mentions. nan where there is nothing to divide by.
    Raises `NotanError` for no captions, and for a true object that is none of the vocabulary's.
    """
    pairs = list(zip(captions, truth, strict=True))
    if not pairs:
        raise NotanError("there are no captions to score", "at least one")
    objects = set(vocabulary.values()) - {""}
    if unknown := sorted({name for there in truth for name in there} - objects):
        raise NotanError(f"{unknown[0]!r} is no object of the vocabulary", f"its names: {', '.join(sorted(objects)[:8])}, ...",
                         "name the pictures' objects as the vocabulary does")
    said = [mentions(caption, vocabulary) for caption in captions]
    wrong = [[name for name in names if name not in there] for names, there in zip(said, truth)]
    met = sum(len(set(names) & set(there)) for names, there in zip(said, truth))
    return {"CHAIRi": _ratio(sum(map(len, wrong)), sum(map(len, said))), "CHAIRs": sum(map(bool, wrong)) / len(pairs),
            "recall": _ratio(met, sum(len(set(there)) for there in truth)),
            "words": sum(len(caption.split()) for caption in captions) / len(pairs)}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
