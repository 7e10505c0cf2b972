"""report.html: complete, self-contained, hostile names escaped, and clean in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_up_study import made_up_study

from notan.errors import NotanError
from notan.runs.figures import Line, _log_ticks, _ticks, line_chart, montage, png, smaller, to_bytes
from notan.runs.report import SECTIONS, run_study, write_report

HOSTILE = """<script>alert("x")</script>'"><img src=https://evil.example/x.png onerror=alert(1)>&amp;"""


class Page(HTMLParser):
    """Tags, attributes and ids of a page; fails on tags that do not match."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.values = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [v for _, v in attrs if v]
        self.ids += [v for k, v in attrs if k == "id"]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outside(text):
    """What a browser would fetch: any address in an attribute or in the style."""
    return re.findall(r"""(?:src|href|action|data)\s*=\s*["']?(?!data:|#)[a-z]+:|url\((?!\$)[^)]*\)|@import""", text)


def written(tmp_path, study):
    return write_report(tmp_path / "report.html", study).read_text()


def test_every_section_is_there_and_nothing_is_loaded(tmp_path):
    start = time.perf_counter()
    text = written(tmp_path, made_up_study())
    assert time.perf_counter() - start < 10
    page = Page(text)
    assert {anchor for anchor, _, _ in SECTIONS} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert outside(text) == [] and "http" not in re.sub(r"http-equiv", "", text)
    assert "default-src 'none'" in text and len(text) < 3e6
    for words in ("raw pixels", "random weights (resnet10)", "± 0.0", "effective rank fell", "hardness", "method: simclr"):
        assert words in text


@pytest.mark.parametrize(
    "missing",
    [
        "data",
        "rows",
        "curves",
        "fractions",
        "maps",
        "thumbs",
        "neighbours",
        "pictures",
        "notes",
        "versions",
        "config",
        "baseline",
    ],
)
def test_what_is_missing_has_no_section(tmp_path, missing):
    study = made_up_study(seeds=1, points=50)
    del study[missing]
    Page(written(tmp_path, study))


def test_a_title_alone_is_a_page_and_no_title_is_an_error(tmp_path):
    Page(written(tmp_path, {"title": "empty"}))
    with pytest.raises(NotanError, match="no title"):
        write_report(tmp_path / "x.html", {})
    with pytest.raises(NotanError, match="cannot be written"):
        write_report(tmp_path / "report.html" / "x.html", {"title": "a file is no folder"})


def test_hostile_names_are_text(tmp_path):
    plain = Page(written(tmp_path, made_up_study(points=50)))
    study = made_up_study(points=50)
    old = study["rows"][0]["arm"]
    for part in ("curves", "fractions", "maps", "neighbours", "pictures"):
        study[part][HOSTILE] = study[part].pop(old)
    study["pictures"][HOSTILE] = {HOSTILE: study["pictures"][HOSTILE]["view 1"]}
    study["rows"][0]["arm"] = study["baseline"] = study["title"] = study["config"] = study["command"] = HOSTILE
    study["rows"][0]["encoder"] = HOSTILE
    study["data"] = {HOSTILE: HOSTILE, "classes": [HOSTILE] * 10}
    study["notes"] = study["verdict"] = study["protocols"] = [HOSTILE]
    study["versions"] = {HOSTILE: HOSTILE}
    for row in study["rows"]:
        row["metrics"] = {HOSTILE if m.startswith("k-NN") else m: v for m, v in row["metrics"].items()}
        row["paired"] = {HOSTILE if m.startswith("k-NN") else m: v for m, v in row["paired"].items()}
    text = written(tmp_path, study)
    page = Page(text)
    assert page.tags.count("script") == plain.tags.count("script") == 1
    assert HOSTILE not in text and "<img src=https" not in text and "<script>alert" not in text
    assert HOSTILE in page.values  # decoded again, it is the very name


def test_nan_scores_and_losses_do_not_break_the_page(tmp_path):
    study = made_up_study(points=50)
    study["rows"][1]["metrics"] = {m: [float("nan")] * 3 for m in study["rows"][1]["metrics"]}
    study["curves"]["mae"] = [(0, float("nan")), (10, float("inf")), (20, 1.0), (30, 0.5)]
    study["fractions"]["mae"] = {100: [float("nan")] * 3}
    Page(written(tmp_path, study))


def test_a_single_run_is_a_report_too(tmp_path):
    class Run:
        """What `run_study` asks of a run folder."""

        path, summary, facts = tmp_path, {"seconds_in_all": 3.0, "peak_mb": 500.0}, {"parameters": {"encoder": 796_000}}
        config = {"method": "mae", "towers": {"encoder": {"name": "vit", "dim": 128}}}  # noqa: RUF012
        info = SimpleNamespace(name="digits", rows=1438, classes=("0", "1"))

        def metrics(self):
            alarm = {"step": 20, "alarm": "collapse", "message": "the embedding has collapsed"}
            return [{"step": s, "loss": 1 / (s + 1), "probe_accuracy": 0.5 + s / 100} for s in (0, 10, 20)] + [alarm, alarm]

    (tmp_path / "config.yaml").write_text("method: mae\n")
    study = run_study(Run(), {"seen": torch.rand(2, 1, 8, 8)})
    text = written(tmp_path, study)
    Page(text)
    assert text.count("the embedding has collapsed") == 1 and "vit:dim=128" in text and "0.700" in text
    assert all(f'id="{a}"' in text for a in ("results", "training", "pictures", "config")) and 'id="maps"' not in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_chromium_renders_it_without_a_word(tmp_path):
    write_report(tmp_path / "report.html", made_up_study())
    quiet = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    out = subprocess.run(
        [
            "chromium",
            *quiet,
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            "--virtual-time-budget=2000",
            f"file://{tmp_path / 'report.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in out.stderr.splitlines() if "CONSOLE" in line]
    assert said == [] and out.returncode == 0
    dom = out.stdout
    assert all(f'<section id="{anchor}">' in dom for anchor, _, _ in SECTIONS) and dom.rstrip().endswith("</html>")


# ------------------------------------------------------------------------------------------------------------- drawings


def decode(uri):
    import base64
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_pictures_survive_the_trip():
    x = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    np.testing.assert_array_equal(decode(png(x)), x.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(decode(png(x.float() / 255)), x.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(decode(png(x[:1].numpy())), x[0].numpy())
    assert to_bytes(torch.tensor([float("nan"), -1, 2, 0.5])).tolist() == [0, 0, 255, 128]
    assert to_bytes(torch.ones(1, dtype=torch.bfloat16)).tolist() == [255]


def test_montage_and_smaller():
    x = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    sheet = montage(x, columns=4, gap=2)
    assert sheet.shape == (1, 10, 22) and sheet[0, 0, 6] == 1 and sheet[0, 6, 0] == 4 and sheet[0, 0, 4] == 128
    assert smaller(np.zeros((2, 3, 1, 100, 50), np.uint8), 20).shape == (2, 3, 1, 20, 10)
    assert smaller(x, 20) is x


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.61, 0.93), (-3, 1e4), (1e-9, 2e-9), (5, 5)])
def test_ticks_are_round_and_inside(low, high):
    ticks = _ticks(low, high, 5)
    assert 1 <= len(ticks) <= 6 and all(low - 1e-12 <= t <= high + 1e-12 for t in ticks)
    assert _log_ticks(2, 4) == [100, 300, 1000, 3000, 10000]


def test_a_chart_of_one_point_or_none():
    nan = float("nan")
    assert "<circle" in line_chart([Line("a", "red", [(1, 2, nan, nan)])], x="x", y="y", log_x=True)
    assert line_chart([Line("a", "red", [(1, nan, nan, nan)])], x="x", y="y") == ""
