"""`notan view`: an index as a map in the browser, served by this machine to itself.

Only what is named here is answered: the page and its two files, questions to the index, thumbnails by row, and the picture of a
row where its file still is a picture. No path ever comes from the browser. Names and texts go out as JSON, and the page puts them
in as text; a policy forbids it to load anything from elsewhere. Refused are a name that was made to lead here (DNS rebinding),
and what another site's page asks.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import threading
import webbrowser
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from torch import nn

from notan.errors import NotanError
from notan.runs import layout
from notan.runs.results import plain, short
from notan.runs.search import Found, Hit, Searcher

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'")
PAGE = {"/": ("view.html", "text/html; charset=utf-8"), "/view.css": ("view.css", "text/css; charset=utf-8"),
        "/view.js": ("view.js", "text/javascript; charset=utf-8")}
FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp"}
MOST = 200                                                              # results at a time
LETTERS = 10_000                                                        # of a query


class Refused(Exception):
    """An answer that is an HTTP status and a sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Viewer:
    """What the page asks: the index, its model, and two maps, of which the second is made in the background."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher, self.index = searcher, searcher.index
        self.why_no_words = self._why_no_words()
        kept = layout.kept(self.index)
        self.xy = layout.spread(self.index) if kept is None else kept
        self.map, self.busy = "spread" if kept is None else "neighbours", kept is None and len(self.index) > 0

    def arrange(self) -> None:
        """Make the better map; a failure leaves the first."""
        try:
            xy = layout.neighbours(self.index, self.xy)
            layout.keep(self.index, xy)
            self.xy, self.map = xy, "neighbours"
        finally:
            self.busy = False

    def _why_no_words(self) -> str:
        try:
            space = self.searcher.space
        except NotanError as error:
            return str(error)
        return "" if space.texts is not None else f"{Path(space.name).name} reads {space.reads}: click on the map instead"

    def about(self, asked: dict[str, str]) -> bytes:
        index = self.index
        labels = index.rows["label"][index.alive]
        counts = np.bincount(labels[labels >= 0], minlength=len(index.classes)).tolist()
        return _json({"name": plain(index.path.resolve().name), "rows": len(index), "kind": index.kind, "dim": index.dim,
                      "model": plain(Path(index.header["model"]["name"]).name), "map": self.map, "busy": self.busy,
                      "stamp": f"{zlib.crc32(json.dumps(index.header).encode()):08x}",
                      "classes": [{"name": plain(name), "count": n} for name, n in zip(index.classes, counts)],
                      "no_words": plain(self.why_no_words)})

    def points(self, asked: dict[str, str]) -> bytes:
        """uint32 n, then of every live row float32 (n, 2) place, int32 (n,) class, uint32 (n,) row."""
        rows = np.flatnonzero(self.index.alive)
        return b"".join([np.uint32(len(rows)).tobytes(), self.xy[rows].astype("<f4").tobytes(),
                         self.index.rows["label"][rows].astype("<i4").tobytes(), rows.astype("<u4").tobytes()])

    def search(self, asked: dict[str, str]) -> bytes:
        text = asked.get("q", "")
        if len(text) > LETTERS:
            raise Refused(400, f"a query of more than {LETTERS:,} letters")
        return _found(self.searcher.words(text, _top(asked)))

    def like(self, asked: dict[str, str]) -> bytes:
        row = self._row(asked.get("row", ""))
        return _found(self.searcher.like(row, _top(asked)))

    def item(self, asked: dict[str, str]) -> bytes:
        return _json(_shown(self.searcher.hit(self._row(asked.get("row", "")))))

    def thumb(self, row: str) -> tuple[bytes, str]:
        jpeg = self.index.thumb(self._row(row))
        if not jpeg:
            raise Refused(404, "there is no thumbnail")
        return jpeg, "image/jpeg"

    def picture(self, row: str) -> tuple[bytes, str]:
        """The file that a row was made of, where it still is a picture that browsers show; else its thumbnail."""
        from PIL import Image

        path = self.index.item(self._row(row)).get("path")
        try:
            if path:
                with Image.open(path, formats=list(FORMATS)) as picture:
                    kind = FORMATS[str(picture.format)]
                return Path(path).read_bytes(), kind
        except Exception:  # gone, or no picture any more: whatever Pillow raises
            pass
        return self.thumb(row)

    def _row(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) < self.index.count
                and self.index.alive[int(text)]):
            raise Refused(404, "there is no such row")
        return int(text)


def view(index: str | Path, *, host: str = "127.0.0.1", port: int = 8765, browser: bool = True,
         model: str | Path | nn.Module | None = None) -> None:
    """Serve the map of an index until it is interrupted. Port 0: any that is free. Raises `NotanError` where the index is none or
    damaged, and where the port cannot be had.
    """
    viewer = Viewer(Searcher(index, model))
    with server(viewer, host, port) as serving:
        address = f"http://{_bracketed(host)}:{serving.server_address[1]}/"
        if not _is_here(host):
            print(f"notan: everyone who reaches this machine on port {serving.server_address[1]} can now see this index and its "
                  "pictures; nothing is encrypted", file=sys.stderr)
        print(f"{viewer.index.path}: {len(viewer.index):,} at {address}   (Ctrl-C ends it)", flush=True)
        if viewer.busy:
            threading.Thread(target=viewer.arrange, daemon=True).start()
        if browser:
            webbrowser.open(address)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            print()


def server(viewer: Viewer, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound and not serving yet."""
    try:
        kind = type("Server", (ThreadingHTTPServer,), {"daemon_threads": True, "address_family": _family(host)})
        return kind((host, port), _handler(viewer, host))
    except (OSError, OverflowError) as error:
        raise NotanError(f"{host}:{port} cannot be served ({getattr(error, 'strerror', None) or error})",
                         "an address of this machine and a port that is free", "--port 0 takes any that is") from None


def _handler(viewer: Viewer, host: str) -> type[BaseHTTPRequestHandler]:
    questions: dict[str, Callable[[dict[str, str]], bytes]] = {
        "/about": viewer.about, "/points": viewer.points, "/search": viewer.search, "/like": viewer.like, "/item": viewer.item}
    pictures = {"thumb": viewer.thumb, "picture": viewer.picture}

    class Handler(BaseHTTPRequestHandler):
        protocol_version, server_version, sys_version = "HTTP/1.1", "notan", ""
        timeout = 60

        def do_GET(self) -> None:
            try:
                self._check()
                content, kind = self._answer()
                self._send(200, content, kind)
            except Refused as refused:
                self._send(refused.status, _json({"error": refused.why}), "application/json")
            except NotanError as error:
                self._send(422, _json({"error": plain(str(error))}), "application/json")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_GET

        def _check(self) -> None:
            if not _allowed(self.headers.get("Host", ""), host):
                raise Refused(403, "this name does not lead here")
            site, mode = self.headers.get("Sec-Fetch-Site"), self.headers.get("Sec-Fetch-Mode")
            if site in ("cross-site", "same-site") and mode != "navigate":
                raise Refused(403, "another site's page asks")

        def _answer(self) -> tuple[bytes, str]:
            try:
                at = urlsplit(self.path)
                asked = {name: values[0] for name, values in parse_qs(at.query, max_num_fields=8).items()}
            except ValueError:
                raise Refused(400, "this is no address") from None
            if at.path in PAGE:
                name, kind = PAGE[at.path]
                return (Path(__file__).parent / name).read_bytes(), kind
            if at.path in questions:
                kind = "application/octet-stream" if at.path == "/points" else "application/json"
                return questions[at.path](asked), kind
            _, _, rest = at.path.partition("/")
            name, _, row = rest.partition("/")
            if name not in pictures:
                raise Refused(404, "there is nothing here")
            return pictures[name](row)

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))),
                                ("Content-Security-Policy", POLICY), ("X-Content-Type-Options", "nosniff"),
                                ("Referrer-Policy", "no-referrer"),
                                ("Cross-Origin-Resource-Policy", "same-origin"),
                                ("Cache-Control", "max-age=3600" if kind.startswith("image/") else "no-store")):
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is for the address."""

    return Handler


def _allowed(asked: str, host: str) -> bool:
    """Whether a Host header is a number or a name of this machine: what a name elsewhere leads to is none."""
    name = asked.rsplit("]", 1)[0].lstrip("[") if asked.startswith("[") else asked.rsplit(":", 1)[0]
    if name.lower() in ("localhost", host.lower()):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    return number.is_loopback or not _is_here(host)


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _family(host: str) -> int:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _top(asked: dict[str, str]) -> int:
    text = asked.get("top", "60")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MOST)) and 1 <= int(text) <= MOST):
        raise Refused(400, f"top is a number from 1 to {MOST}")
    return int(text)


def _found(found: Found) -> bytes:
    return _json({"hits": [_shown(hit) for hit in found.hits], "notes": [plain(note) for note in found.notes], "how": found.how,
                  "ms": round(found.seconds * 1e3, 1)})


def _shown(hit: Hit) -> dict[str, Any]:
    return {"row": hit.row, "score": round(hit.score, 4), "name": plain(hit.name), "text": plain(short(hit.text)),
            "label": plain(hit.label)}


def _json(found: Any) -> bytes:
    """JSON without < > &: harmless even where it is taken for HTML."""
    text = json.dumps(found)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
