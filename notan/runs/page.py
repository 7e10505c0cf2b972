"""The frame of report.html: its style, its few lines of script, and a policy that lets nothing be loaded."""

from __future__ import annotations

import os
from contextlib import suppress
from html import escape
from pathlib import Path

from notan.errors import NotanError

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

LOGO = (
    '<svg class="logo" viewBox="0 0 32 32" aria-hidden="true">'
    '<circle cx="16" cy="16" r="14" fill="none" stroke="currentColor" stroke-width="2"/>'
    '<path d="M16 2a14 14 0 0 0 0 28a7 7 0 0 0 0-14a7 7 0 0 1 0-14z" fill="currentColor"/></svg>'
)


def document(title: str, header: str, body: str, footer: str) -> str:
    """The whole page; `title` is text, the rest is HTML already escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_read('report.css')}</style></head>\n<body>\n"
        f'<header><div class="brand">{LOGO} notan</div>{header}</header>\n<main>{body}</main>\n'
        f"<footer>{footer}</footer>\n<script>{_read('report.js')}</script></body></html>\n"
    )


def write_page(path: Path, page: str) -> None:
    """Put a page in its place. Raises `NotanError` where it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(page, encoding="utf-8", errors="replace")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise NotanError(
            f"{path} cannot be written: {error.strerror}", "a writable place", "free space, or choose --out"
        ) from error


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
