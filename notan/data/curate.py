"""Which pictures become a training set, which sentences are models for their captions, and which captions stay.

The pipeline of WebPerson (GA-DMS: Zheng et al. 2025, arXiv 2509.09118, section 4) in general form. A record is a plain dict
about one picture: `width` and `height`, and what a detector said of it, `confidence` in [0, 1] and `keypoints`, a list of (x,
y, confidence). A filter is a function of a record that says why it is dropped, "" where it stays. All of it runs in
`notan/runs/caption_data.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from notan.data import keys
from notan.errors import NotanError, check_between

Record = dict[str, Any]
Filter = Callable[[Record], str]
Embed = Callable[[list[str]], np.ndarray]                               # texts to (N, D)

HEAD, HIPS = (0, 1, 2, 3, 4), (11, 12)                                  # nose, eyes and ears, and hips, of COCO's 17 keypoints


# ------------------------------------------------------------------------------------------------------------------ pictures

def short_side(*, above: float) -> Filter:
    """The shorter side has more than so many pixels."""
    check_between(0, np.inf, above=above)

    def why(record: Record) -> str:
        return "" if min(_number(record, "width"), _number(record, "height")) > above else f"short side up to {above:g}"

    return why


def aspect(*, low: float, high: float) -> Filter:
    """Height over width lies between the two, both included."""
    if not 0 < low <= high:
        raise NotanError(f"an aspect from {low} to {high}", "two numbers above 0, the lower first", "aspect(low=2, high=4)")

    def why(record: Record) -> str:
        found = _number(record, "height") / _number(record, "width")
        return "" if low <= found <= high else f"aspect outside {low:g} to {high:g}"

    return why


def confident(*, above: float) -> Filter:
    """The detector is surer than this."""
    check_between(0, 1, above=above)
    return lambda record: "" if _number(record, "confidence") > above else f"confidence up to {above:g}"


def keypoints(*, least: int, groups: Mapping[str, tuple[Sequence[int], int]] | None = None, visible: float = 0.5) -> Filter:
    """At least so many keypoints are seen, and of each named group (places, how many) at least that many.

    visible: the confidence from which a keypoint is seen.
    """
    groups = dict(groups or {})

    def why(record: Record) -> str:
        points = record.get("keypoints")
        if points is None:
            raise NotanError(f"a record of {', '.join(record)}", "keypoints: (x, y, confidence) of each",
                             "a detector of poses, or leave this filter out")
        seen = [point[2] >= visible for point in points]
        if sum(seen) < least:
            return f"fewer than {least} keypoints"
        for name, (places, count) in groups.items():
            if sum(seen[i] for i in places if i < len(seen)) < count:
                return f"fewer than {count} of {name}"
        return ""

    return why


def webperson() -> list[Filter]:
    """The filters of WebPerson: people in full, upright, and certain."""
    return [short_side(above=90), aspect(low=2, high=4), confident(above=0.85),
            keypoints(least=8, groups={"hips": (HIPS, 1), "head": (HEAD, 2)})]


def why_dropped(record: Record, filters: Iterable[Filter]) -> str:
    """The first reason for which a record is dropped, "" where it is kept."""
    return next((why for one in filters if (why := one(record))), "")


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    if not isinstance(value, (int, float)) or not value >= 0 or (name != "confidence" and value == 0):
        raise NotanError(f"a record with {name} = {value!r}", f"a number for {name}", "fill it in, or leave this filter out")
    return float(value)


# ----------------------------------------------------------------------------------------------------------------- templates

def template_bank(sentences: Sequence[str], embed: Embed, *, clusters: int, others: int = 5, seed: int = 0,
                  rewrite: Callable[[list[str]], list[str]] | None = None, most: int = 1000) -> list[str]:
    """Few sentences that stand for many: of each cluster (k-means of their embeddings at unit length) the most central one and
    `others` random ones, and what `rewrite` makes of these.

    sentences: models for captions, with {slots} or without; equal ones count once. Take them from training captions alone: what
    is taken from test captions leaks into the training set. rewrite: e.g. a language model that varies a cluster's sentences;
    what it gives is added. At most `most` come back, in an order by seed once there are more. Raises `NotanError` for fewer
    sentences than clusters.
    """
    from sklearn.cluster import KMeans

    check_between(1, np.inf, clusters=clusters, most=most)
    check_between(0, np.inf, others=others)
    different = list(dict.fromkeys(one.strip() for one in sentences if one.strip()))
    if len(different) < clusters:
        raise NotanError(f"{len(different)} different sentences for {clusters} clusters", "at least as many sentences",
                         f"clusters={max(1, len(different) // 2)}")
    z = np.asarray(embed(different), dtype=np.float64)
    if z.ndim != 2 or len(z) != len(different) or not np.isfinite(z).all():
        raise NotanError(f"embeddings of shape {z.shape}, or not finite, for {len(different)} sentences", "finite numbers (N, D)",
                         "look at what `embed` gives")
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    found = KMeans(clusters, n_init=4, random_state=seed).fit(z)
    bank: list[str] = []
    for c in range(clusters):
        place = np.flatnonzero(found.labels_ == c)
        near = place[np.argsort(((z[place] - found.cluster_centers_[c]) ** 2).sum(1), kind="stable")]
        rest = near[1:][keys.shuffle(seed, c, len(near) - 1)[:others]] if len(near) > 1 else near[:0]
        chosen = [different[i] for i in [*near[:1], *rest]]
        bank += chosen + (rewrite(chosen) if rewrite else [])
    bank = list(dict.fromkeys(one.strip() for one in bank if one.strip()))
    return bank if len(bank) <= most else [bank[i] for i in sorted(keys.shuffle(seed, clusters, len(bank))[:most])]


def with_slots(sentence: str, words: Mapping[str, Iterable[str]]) -> str:
    """A caption as a template: each of these words in it, whole words whatever their case, becomes its {slot}.

    words: {slot: words}; of several that begin at one place the longest counts.
    """
    slot = {word.lower(): name for name, some in words.items() for word in some}
    if not slot:
        return sentence
    pattern = "|".join(re.escape(word) for word in sorted(slot, key=len, reverse=True))
    return re.sub(rf"\b(?:{pattern})\b", lambda m: "{" + slot[m[0].lower()] + "}", sentence, flags=re.IGNORECASE)


# ------------------------------------------------------------------------------------------------------------------ captions

def why_poor(caption: str, *, least: int = 4, most: int = 80,
             forbidden: Sequence[str] = ("background", "possibly", "appears to")) -> str:
    """Why a caption is dropped, "" where it stays: too few or too many words, slots that were not filled, words that are
    forbidden (of what is not the subject, or not certain), or one sentence said twice.
    """
    count = len(caption.split())
    if not least <= count <= most:
        return f"fewer than {least} words" if count < least else f"more than {most} words"
    if re.search(r"[{}\[\]<>]", caption):
        return "a slot that was not filled"
    low = caption.lower()
    if bad := next((word for word in forbidden if re.search(rf"\b{re.escape(word.lower())}\b", low)), ""):
        return f"says {bad!r}"
    sentences = [part.strip() for part in re.split(r"[.!?]+", low) if part.strip()]
    return "a sentence said twice" if len(set(sentences)) < len(sentences) else ""
