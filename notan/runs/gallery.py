"""The report's pictures: maps of embeddings, strips of neighbours, what each method saw."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from notan.runs import figures
from notan.runs.figures import colour

Study = Mapping[str, Any]
CRISP = 96  # pictures below this side are shown in plain pixels


def maps(study: Study) -> str:
    """One map of the test rows per arm, coloured by class."""
    found = study.get("maps") or {}
    if not found:
        return ""
    used = np.unique(np.concatenate([np.asarray(m["label"]) for m in found.values()]))
    names, n = _classes(study), len(next(iter(found.values()))["label"])
    legend = "".join(
        f'<li data-class="{c}"><i style="background:{colour(int(c))}"></i>{escape(_class(names, c))}</li>' for c in used[:40]
    )
    cards = "".join(
        f"<figure><h3>{escape(arm)}</h3>{figures.scatter(m['xy'], m['label'], arm)}</figure>" for arm, m in found.items()
    )
    return (
        f'<p class="soft">The same {n:,} test rows in each map, coloured by class, which '
        "no method was shown unless it is supervised. Distances between far groups mean little.</p>"
        f'<ul class="legend">{legend}</ul>'
        f'<div class="grid" style="--least:max(165px,22%)">{cards}</div>'
    )


def neighbours(study: Study) -> str:
    """Test rows and the training rows nearest to them; those of another class are outlined."""
    cards = "".join(_strips(arm, found, _classes(study)) for arm, found in (study.get("neighbours") or {}).items())
    if not cards:
        return ""
    return (
        '<p class="soft">Left, a test row; then the training rows nearest to it by cosine similarity. '
        f'Red outlines: another class.</p><div class="grid" style="--least:420px">{cards}</div>'
    )


def pictures(study: Study) -> str:
    """What the methods show of themselves: views, masks, reconstructions, predicted hardness."""
    cards = "".join(_seen(arm, shown) for arm, shown in (study.get("pictures") or {}).items() if shown)
    return f'<div class="grid" style="--least:420px">{cards}</div>' if cards else ""


def tip(study: Study) -> str:
    """The little window that the maps' script fills, and the sheet of pictures it takes them from."""
    if not study.get("maps"):
        return ""
    names = escape(json.dumps(list(_classes(study))), quote=True)
    sheet, cell, columns, n = "", 1, 1, 0
    thumbs = next((m["thumbs"] for m in (study, *study["maps"].values()) if m.get("thumbs") is not None), None)
    if thumbs is not None:
        small = figures.smaller(thumbs, 32)
        n, cell, columns = len(small), max(small.shape[-2:]), 25
        square = np.full((n, small.shape[1], cell, cell), 128, np.uint8)
        square[:, :, : small.shape[-2], : small.shape[-1]] = small
        sheet = f'<img id="thumbs" hidden alt="" src="{figures.png(figures.montage(square, columns))}">'
    data = f'data-names="{names}" data-cell="{cell}" data-columns="{columns}" data-count="{n}"'
    return f'{sheet}<div id="tip" role="status" {data}></div>'


def _strips(arm: str, found: Mapping[str, Any], names: Sequence[str]) -> str:
    query, hits = figures.smaller(found["query"], 72), figures.smaller(found["hits"], 72)
    right = np.asarray(found["right"], dtype=bool)
    asked, got = (np.asarray(found[k]) if k in found else None for k in ("query_label", "hit_label"))
    crisp = _crisp(query)
    out = ""
    for i, (q, row) in enumerate(zip(query, hits)):
        words = escape(_class(names, asked[i]) if asked is not None else "query")
        cells = f'<img{crisp} src="{figures.png(q)}" alt="query" title="{words}">'
        for j, hit in enumerate(row):
            name = _class(names, got[i, j]) if got is not None else ""
            words = escape(name if right[i, j] else f"wrong class {name}".strip())
            mark = ' class="wrong"' if not right[i, j] else ""
            both = ' class="crisp wrong"' if crisp and mark else crisp or mark
            cells += f'<img{both} src="{figures.png(hit)}" alt="{words}" title="{words}">'
        out += f'<div class="strip" style="--n:{hits.shape[1] + 1}">{cells}</div>'
    caption = f"<figcaption>{right.sum()} of {right.size} of the right class</figcaption>"
    return f"<figure><h3>{escape(arm)}</h3>{out}{caption}</figure>"


def _seen(arm: str, shown: Mapping[str, Any]) -> str:
    out = ""
    for name, images in shown.items():
        small = figures.smaller(images, 128)
        row = "".join(f'<img{_crisp(small)} src="{figures.png(x)}" alt="{escape(name)}">' for x in small)
        out += f'<span>{escape(name)}</span><div style="--n:{len(small)}">{row}</div>'
    return f'<figure><h3>{escape(arm)}</h3><div class="seen">{out}</div></figure>'


def _crisp(images: np.ndarray) -> str:
    return ' class="crisp"' if max(images.shape[-2:]) < CRISP else ""


def _classes(study: Study) -> Sequence[str]:
    return [str(c) for c in (study.get("data") or {}).get("classes") or ()]


def _class(names: Sequence[str], c: Any) -> str:
    return names[int(c)] if 0 <= int(c) < len(names) else f"class {int(c)}"
