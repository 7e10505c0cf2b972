"""The map in the browser: what it answers, to whom, and that nothing else can be had from it."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import HOSTILE, outside

from notan import cli
from notan.errors import NotanError
from notan.nets.build import build_encoder
from notan.runs import indexing, layout
from notan.runs.index import Index
from notan.runs.search import Searcher
from notan.runs.view import POLICY, Viewer, _allowed, server

BAD = "<script>pwned=1<script>\"'<img src=x onerror=pwned=1>.png"    # a file's name may hold all but a slash


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of twelve pictures, of which one was removed, and their folder."""
    home = tmp_path_factory.mktemp("view")
    (home / "photos" / "<b>class").mkdir(parents=True)
    (home / "photos" / "other").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        name = BAD if i == 0 else f"{i:02d}.png"
        Image.fromarray(pixels).save(home / "photos" / ("<b>class" if i % 2 else "other") / name)
    (home / "photos" / "secret.txt").write_text("secret")
    torch.manual_seed(0)
    model = build_encoder("convnet:image_size=16,channels=3,widths=[8],strides=[2]").eval()
    indexing.index(model, str(home / "photos"), home / "index")
    (home / "photos" / "other" / "02.png").unlink()
    indexing.index(model, str(home / "photos"), home / "index")
    return home, model


@pytest.fixture(scope="module")
def viewer(folder):
    return Viewer(Searcher(folder[0] / "index", folder[1]))


@contextmanager
def serving(viewer, host="127.0.0.1"):
    with server(viewer, host, 0) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield one.server_address[1]
        finally:
            one.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def port(viewer):
    with serving(viewer) as number:
        yield number


def get(port, path, method="GET", **headers):
    """Status, headers and content of one request, with the path as it is given."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    line.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        line.putheader(name.replace("_", "-"), value)
    line.endheaders()
    answer = line.getresponse()
    content = answer.read()
    line.close()
    return answer.status, dict(answer.getheaders()), content


def found(port, path):
    status, headers, content = get(port, path)
    assert status == 200 and headers["Content-Type"] == "application/json", (status, content)
    return json.loads(content)


def test_the_page_and_what_it_asks(port, viewer):
    for path, kind in (("/", "text/html"), ("/view.js", "text/javascript"), ("/view.css", "text/css")):
        status, headers, content = get(port, path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and outside(content.decode()) == []
        assert headers["Content-Security-Policy"] == POLICY and headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert b"innerHTML" not in content and b"http:" not in content and b"https:" not in content
    about = found(port, "/about")
    assert (about["rows"], about["kind"]) == (11, "picture") and "click on the map" in about["no_words"]
    assert {c["name"]: c["count"] for c in about["classes"]} == {"<b>class": 6, "other": 5}
    _, _, data = get(port, "/points")
    n = int(np.frombuffer(data, "<u4", 1)[0])
    xy, label, row = (np.frombuffer(data, kind, size, at) for kind, size, at in
                      (("<f4", 2 * n, 4), ("<i4", n, 4 + 8 * n), ("<u4", n, 4 + 12 * n)))
    assert n == 11 and len(data) == 4 + 16 * n and np.abs(xy).max() == pytest.approx(1)
    assert row.tolist() == np.flatnonzero(viewer.index.alive).tolist()
    assert label.tolist() == viewer.index.rows["label"][row].tolist()
    hits = found(port, f"/like?row={row[3]}&top=4")["hits"]
    wanted = viewer.searcher.like(int(row[3]), 4).hits
    assert [hit["row"] for hit in hits] == [hit.row for hit in wanted] and len(hits) == 4
    item = found(port, f"/item?row={row[3]}")
    assert item["name"] == viewer.index.item(int(row[3]))["name"]
    assert get(port, "/about", "HEAD")[2] == b"" and get(port, "/about", "POST")[0] == 501


def test_thumbnails_and_pictures_come_by_row_alone(port, viewer, folder):
    row = int(np.flatnonzero(viewer.index.alive)[2])
    item = viewer.index.item(row)
    status, headers, content = get(port, f"/thumb/{row}?v=1")
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and content == viewer.index.thumb(row)
    status, headers, content = get(port, f"/picture/{row}")
    assert status == 200 and headers["Content-Type"] == "image/png" and content == Path(item["path"]).read_bytes()
    kept = Path(item["path"]).read_bytes()
    for other in (b"root:x:0:0:root", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", None):
        Path(item["path"]).unlink()                                     # the file is no picture any more, or gone
        if other is not None:
            Path(item["path"]).write_bytes(other)
        assert get(port, f"/picture/{row}")[2] == viewer.index.thumb(row)
        Path(item["path"]).write_bytes(kept)


@pytest.mark.parametrize("path", [
    "/index.json", "/vectors.bin", "/thumbs.bin", "/.lock", "/view.html", "/view.py", "/../view.py", "/thumb/../index.json",
    "/thumb/..%2findex.json", "/thumb/%2e%2e/index.json", "/picture/../../photos/secret.txt", "/picture/..%2fphotos%2fsecret.txt",
    "/picture//etc/passwd", "//etc/passwd", "/etc/passwd", "/thumb/", "/thumb/1/2", "/thumb/-1", "/thumb/11111111111111111111",
    "/thumb/1e1", "/thumb/%31", "/thumb/%D9%A3", "/picture/1%00", "/thumb/12",
    "/item?row=12", "/item", "/like?row=", "/nothing", "/thumb"])
def test_nothing_else_is_there(port, path):
    """And a row that was dropped is not, nor one after the last."""
    status, headers, content = get(port, path)
    assert status == 404 and headers["Content-Type"] == "application/json" and b"secret" not in content and b"root" not in content


def test_a_row_that_was_dropped_is_not_there(port, viewer):
    gone = int(np.flatnonzero(~viewer.index.alive)[0])
    assert get(port, f"/thumb/{gone}")[0] == get(port, f"/item?row={gone}")[0] == get(port, f"/like?row={gone}")[0] == 404


@pytest.mark.parametrize("path, status", [
    ("/like?row=0&top=0", 400), ("/like?row=0&top=201", 400), ("/like?row=0&top=0000011600", 400),
    ("/like?row=0&top=000001" + "1" * 5000, 400), ("/like?row=0&top=x", 400), ("/like?row=0&top=-1", 400),
    ("/search?q=" + "a" * 10_001, 400), ("/search?q=cat", 422), ("/search", 422),
    ("/about?" + "&".join("abcdefghij"), 400)])
def test_bad_questions_get_a_sentence(port, path, status):
    answer = get(port, path)
    assert answer[0] == status and json.loads(answer[2])["error"]


def test_a_name_that_was_made_to_lead_here_is_refused(port, viewer):
    for host in ("evil.example", "evil.example:80", f"127.0.0.1.evil.example:{port}", "", "10.0.0.1", "[::2]",
                 "localhost.evil.example"):
        assert get(port, "/about", Host=host)[0] == 403, host
    for host in ("localhost", f"127.0.0.1:{port}", f"LOCALHOST:{port}", "[::1]:80", "127.0.0.2"):
        assert get(port, "/about", Host=host)[0] == 200, host
    assert get(port, "/thumb/0", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert get(port, "/search?q=a", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="cors")[0] == 403
    assert get(port, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert get(port, "/about", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")[0] == 200
    assert _allowed("192.168.1.5:80", "0.0.0.0") and _allowed("my-machine:80", "my-machine")
    assert not _allowed("evil.example", "0.0.0.0") and not _allowed("192.168.1.5", "127.0.0.1")


def test_names_are_harmless_wherever_they_are_taken_for_html(port, viewer):
    row = next(row for row in range(viewer.index.count) if viewer.index.item(row)["name"].endswith(BAD))
    for path in (f"/item?row={row}", f"/like?row={(row + 1) % 3 + 3}&top=20", "/about", "/search?q=<script>", "/<script>"):
        content = get(port, path)[2]
        assert b"<" not in content and b">" not in content and json.loads(content)
    assert found(port, f"/item?row={row}")["name"].endswith(BAD)


def test_words_are_answered_where_the_model_reads_them(folder):
    class Reading(Searcher):
        def words(self, text, top=10, how=None):
            return self.like(0, top)._replace(notes=[HOSTILE])

    viewer = Viewer(Reading(folder[0] / "index", folder[1]))
    with serving(viewer) as port:
        answer = found(port, "/search?q=red%20heart&top=3")
        assert len(answer["hits"]) == 3 and answer["notes"] == [HOSTILE]


def test_where_it_serves(viewer, capsys, folder, tmp_path):
    with serving(viewer) as port, pytest.raises(NotanError, match="--port 0"):
        server(viewer, "127.0.0.1", port)
    with pytest.raises(NotanError, match="cannot be served"):
        server(viewer, "127.0.0.1", 99999)
    assert cli.main(["view", str(tmp_path)]) == 1 and "is no index" in capsys.readouterr().err


def test_the_command_serves_warns_and_ends(folder, monkeypatch, capsys):
    from http.server import ThreadingHTTPServer

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stopped)
    monkeypatch.setattr(Viewer, "arrange", lambda self: None)
    assert cli.main(["view", str(folder[0] / "index"), "--port", "0", "--no-browser"]) == 0
    said = capsys.readouterr()
    assert "11 at http://127.0.0.1:" in said.out and said.err == ""
    assert cli.main(["view", str(folder[0] / "index"), "--port", "0", "--no-browser", "--host", "0.0.0.0"]) == 0
    assert "everyone who reaches this machine" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------------ the maps

@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """An index of 240 vectors in four groups, of 16 numbers."""
    from test_runs_search import made

    draw = np.random.default_rng(0)
    label = np.arange(240) % 4
    x = draw.normal(size=(4, 16))[label] + 0.15 * draw.normal(size=(240, 16))
    return made(tmp_path_factory.mktemp("groups") / "i", x, dropped=range(200, 204)), label


def test_the_first_map_is_the_two_directions_of_most_spread(groups):
    index, _ = groups
    xy = layout.spread(index)
    x = index.vectors.astype("float64")
    centred = x - x[index.alive].mean(0)
    axes = np.linalg.svd(centred[index.alive], full_matrices=False)[2][:2].T
    wanted = centred @ axes
    for k in range(2):
        assert abs(np.corrcoef(xy[:, k], wanted[:, k])[0, 1]) > 0.99999
    assert np.abs(xy[index.alive]).max() == pytest.approx(1) and (layout.spread(index) == xy).all()


def test_the_second_map_keeps_neighbours_together_and_is_kept(groups, monkeypatch):
    index, label = groups
    monkeypatch.setattr(layout, "LANDMARKS", 120)                       # half of the rows are put among the others
    xy = layout.neighbours(index, layout.spread(index))
    rows = np.flatnonzero(index.alive)
    far = np.linalg.norm(xy[rows][:, None] - xy[rows][None], axis=2) + 9 * np.eye(len(rows))
    assert (label[rows][far.argmin(1)] == label[rows]).mean() > 0.97
    assert np.isfinite(xy).all() and layout.kept(index) is None
    layout.keep(index, xy)
    np.testing.assert_array_equal(layout.kept(index), xy)
    assert Viewer(Searcher(index)).map == "neighbours" and not Viewer(Searcher(index)).busy


def test_tiny_indexes_have_maps_too(tmp_path):
    from test_runs_search import made

    for n in (1, 3, 9):
        index = made(tmp_path / str(n), np.eye(12)[:n])
        xy = layout.neighbours(index, layout.spread(index))
        assert xy.shape == (n, 2) and np.isfinite(xy).all()


# ---------------------------------------------------------------------------------------------------------------- a browser

@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_chromium_shows_it_without_a_word(port, tmp_path):
    quiet = ["--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--use-angle=swiftshader",
             "--enable-unsafe-swiftshader", "--window-size=1000,700",
             f"--user-data-dir={tmp_path / 'profile'}"]
    out = subprocess.run(["chromium", *quiet, "--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=5000",
                          f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=120)
    said = [line for line in out.stderr.splitlines() if "CONSOLE" in line]
    assert said == [] and out.returncode == 0
    assert "11 pictures" in out.stdout and "&lt;b&gt;class" in out.stdout and "Click on the map" in out.stdout


def test_no_picture_is_decoded_to_serve_a_thumbnail(viewer):
    with Image.open(io.BytesIO(viewer.index.thumb(0))) as picture:
        assert picture.format == "JPEG"
    assert isinstance(viewer.index, Index)
