"""Results of a search, to look at: a table with thumbnails in the terminal, JSON, and a page that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from notan.runs.index import Index
from notan.runs.page import document, write_page
from notan.runs.search import Found

CELLS = 12                                                              # of the terminal that a thumbnail is wide
LONG = 300                                                              # letters of a text that are shown


def as_json(asked: str, found: Found) -> str:
    return json.dumps({"query": asked, "how": found.how, "rows": found.rows, "seconds": round(found.seconds, 4),
                       "notes": found.notes, "hits": [hit._asdict() for hit in found.hits]}, indent=1)


def print_table(index: Index, asked: str, found: Found, console: Any) -> None:
    """Rank, score, name, class and text of each result; thumbnails where the terminal shows true colours."""
    from rich.table import Table
    from rich.text import Text

    for note in found.notes:
        print(f"notan: {plain(note)}", file=sys.stderr)
    if not found.hits:
        console.print("Nothing was found: the index is empty." if not found.rows else "Nothing else is in the index.")
        return
    pictures = console.is_terminal and console.color_system == "truecolor" and index.kind == "picture"
    classes, texts = any(hit.label for hit in found.hits), any(hit.text for hit in found.hits)
    table = Table(title=Text(f"{plain(asked)}: {len(found.hits)} of {found.rows:,}, {found.how}, {found.seconds * 1e3:.1f} ms"),
                  title_justify="left", box=None, pad_edge=False, padding=(0, 2, 1 if pictures else 0, 0))
    for name, shown, right in (("", True, True), ("", pictures, False), ("score", True, True), ("row", True, True),
                               ("name", True, False), ("class", classes, False), ("text", texts, False)):
        if shown:
            table.add_column(name, justify="right" if right else "left", overflow="fold")
    for hit in found.hits:
        cells = [str(hit.rank), *([blocks(index.thumb(hit.row))] if pictures else []), f"{hit.score:.3f}", str(hit.row),
                 Text(plain(hit.name)), *([Text(plain(hit.label))] if classes else []),
                 *([Text(plain(short(hit.text)))] if texts else [])]
        table.add_row(*cells)
    console.print(table)


def blocks(jpeg: bytes, width: int = CELLS) -> Any:
    """A picture as half blocks: two pixels a character, the upper in its colour and the lower in its background."""
    from PIL import Image
    from rich.text import Text

    if not jpeg:
        return Text("")
    with Image.open(io.BytesIO(jpeg)) as picture:
        height = max(2, round(width * picture.height / picture.width / 2) * 2)
        pixels = np.asarray(picture.convert("RGB").resize((width, min(height, 2 * width))))
    out = Text()
    for y in range(0, len(pixels), 2):
        for upper, lower in zip(pixels[y], pixels[y + 1]):
            out.append("▀", style=f"#{bytes(upper).hex()} on #{bytes(lower).hex()}")
        out.append("\n" if y + 2 < len(pixels) else "")
    return out


def write_results(path: Path, index: Index, asked: str, found: Found, jpeg: bytes = b"") -> None:
    """One HTML file with the results, thumbnails inside; what was asked, names and texts are text, whatever they hold. jpeg: of
    the picture that was asked about.
    """
    cards = ""
    for hit in found.hits:
        image = f'<img src="{_uri(thumb)}" alt="">' if (thumb := index.thumb(hit.row)) else ""
        words = f"<p>{_safe(short(hit.text))}</p>" if hit.text else ""
        label = f" · {_safe(hit.label)}" if hit.label else ""
        cards += (f'<figure class="hit">{image}<figcaption><b>{hit.rank}</b> {hit.score:.3f}{label}<br>{_safe(hit.name)}{words}'
                  "</figcaption></figure>")
    shown = f'<figure class="hit"><img src="{_uri(jpeg)}" alt="the query"></figure>' if jpeg else ""
    facts = {"rows": f"{found.rows:,}", "search": found.how, "time": f"{found.seconds * 1e3:.1f} ms",
             "model": Path(index.header["model"]["name"]).name}
    header = f"<h1>{_safe(asked)}</h1>{shown}<dl class='facts'>" + "".join(
        f"<div><dt>{_safe(k)}</dt><dd>{_safe(v)}</dd></div>" for k, v in facts.items()) + "</dl>"
    header += "<ul class='notes'>" + "".join(f"<li>{_safe(note)}</li>" for note in found.notes) + "</ul>" if found.notes else ""
    page = document(plain(asked), header, f'<div class="hits">{cards}</div>', "Written by notan search.")
    write_page(path, page)


def short(text: str) -> str:
    """A text, or its beginning."""
    return text if len(text) <= LONG else text[: LONG - 1].rstrip() + "…"


def plain(text: str) -> str:
    """A text without what would steer a terminal: control characters and halves of characters become �."""
    return "".join("�" if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000
                   or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" else c for c in text)


def _safe(text: str) -> str:
    return escape(plain(text), quote=True)


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
