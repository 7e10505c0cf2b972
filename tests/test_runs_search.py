"""Search: exact is brute force, approximate is nearly that, and what cannot be asked is refused with the fix."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from test_report import HOSTILE, Page, outside

from notan import cli, embed, search, train
from notan.data import keys, open_data
from notan.errors import NotanError
from notan.nets.build import build_encoder, save_encoder
from notan.nets.language import new_tokenizer
from notan.nets.text import TextTransformer
from notan.runs import nearest, results
from notan.runs.folder import Run
from notan.runs.index import Index, Writer
from notan.runs.search import Found, Hit, Searcher
from notan.runs.space import Space, heard

ABOUT = {"kind": "numbers", "model": {"name": "made", "fingerprint": "f", "vector": None}, "dtype": "float16", "fit": "crop"}


def made(folder, vectors, names=None, dropped=(), thumbs=()):
    """An index of given vectors."""
    unit = F.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1).numpy()
    said = [{"name": (names or {}).get(i, f"row {i}"), "stamp": "", "source": "made"} for i in range(len(unit))]
    with Writer(folder, ABOUT) as writer:
        writer.append(unit, range(len(unit)), said, thumbs)
        writer.append(unit[:0], [], [], dropped=dropped)
    return Index(folder)


def clustered(n: int, dim: int, groups: int = 40):
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(groups, dim))
    return centres[draw.integers(0, groups, n)] + 0.5 * draw.normal(size=(n, dim))


def brute(index, queries, top):
    """In float64, over the vectors as they are kept, without what was dropped."""
    s = queries.double() @ torch.from_numpy(index.vectors.astype("float64")).T
    s[:, ~index.alive] = -torch.inf
    return s.topk(top, dim=1)


# ----------------------------------------------------------------------------------------------------------------- nearest

@pytest.mark.parametrize("floats, window", [(1 << 18, 1 << 18), (100, 64), (16, 999)])
def test_exact_is_brute_force_in_float64(tmp_path, monkeypatch, floats, window):
    monkeypatch.setattr(nearest, "FLOATS", floats)
    monkeypatch.setattr(nearest, "WINDOW", window)
    gone = [0, 5, 6, 7, 200, 299]
    index = made(tmp_path / "i", clustered(300, 16), dropped=gone)
    queries = F.normalize(torch.randn(7, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    scores, rows = nearest.exact(index.vectors, index.alive, queries, 20)
    wanted = brute(index, queries, 20)
    torch.testing.assert_close(scores.double(), wanted.values, atol=1e-6, rtol=0)
    assert (rows == wanted.indices).float().mean() > 0.99               # float32 may swap what is equal to 7 digits
    every, _ = nearest.exact(index.vectors, index.alive, queries, 1000)
    assert every.shape == (7, 294) and torch.isfinite(every).all()
    assert not set(rows.flatten().tolist()) & set(gone)


def test_equal_scores_come_in_the_order_of_rows_and_an_empty_index_finds_nothing(tmp_path):
    x = np.tile(np.eye(4), (6, 1))
    index = made(tmp_path / "i", x)
    scores, rows = nearest.exact(index.vectors, index.alive, torch.eye(4)[1:2], 3)
    assert rows.tolist() == [[1, 5, 9]] and scores.tolist() == [[1.0, 1.0, 1.0]]
    scores, rows = nearest.exact(index.vectors, np.zeros(24, bool), torch.eye(4)[:1], 3)
    assert scores.shape == rows.shape == (1, 0)


def test_approximate_finds_what_exact_finds(tmp_path):
    pytest.importorskip("usearch")
    x = clustered(3000, 32)
    index = made(tmp_path / "i", x[:2500])
    assert nearest.build_graph(tmp_path / "i") == 2500 and nearest.build_graph(tmp_path / "i") == 0
    unit = F.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1)
    with Writer(tmp_path / "i", ABOUT) as writer:                       # rows that the graph does not know
        said = [{"name": f"row {i}", "stamp": "", "source": "made"} for i in range(500)]
        writer.append(unit[2500:].numpy(), range(2500, 3000), said, dropped=range(0, 2500, 3))
    index = Index(tmp_path / "i")
    graph, covered = nearest.load_graph(index)
    assert (len(graph), covered) == (2500, 2500)
    queries = F.normalize(unit[::60] + 0.02 * torch.randn(50, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    scores, rows = nearest.approximate(index, graph, covered, queries, 10)
    wanted = brute(index, queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), wanted.indices.tolist())])
    assert recall > 0.97 and index.alive[rows.numpy()].all()
    assert (rows >= 2500).any() and (rows < 2500).any()
    own = (queries[:, None].double() @ torch.from_numpy(index.vectors[rows.numpy()].astype("float64")).transpose(1, 2))[:, 0]
    torch.testing.assert_close(scores.double(), own, atol=1e-6, rtol=0)  # scored by the vectors, as exact search does
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert nearest.build_graph(tmp_path / "i") == 500                   # only what is new joins
    assert nearest.load_graph(Index(tmp_path / "i"))[1] == 3000
    assert [p.name for p in (tmp_path / "i").glob("*.usearch")] == ["graph-3000.usearch"]


def test_approximate_goes_on_asking_where_most_rows_are_dropped(tmp_path):
    pytest.importorskip("usearch")
    x = np.concatenate([np.tile([1.0, 0, 0], (200, 1)) + 0.01 * np.random.default_rng(0).normal(size=(200, 3)), np.eye(3)[1:]])
    made(tmp_path / "i", x, dropped=range(200))
    nearest.build_graph(tmp_path / "i")
    found = Searcher(tmp_path / "i").like(200, top=5, how="approximate")
    assert [hit.row for hit in found.hits] == [201] and found.how == "approximate"


def test_without_usearch_the_extra_is_named_and_exact_search_needs_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    made(tmp_path / "i", clustered(20, 4))
    with pytest.raises(NotanError, match=r"pip install 'notan\[search\]'"):
        nearest.build_graph(tmp_path / "i")
    assert len(search(tmp_path / "i", like=3).hits) == 10
    with pytest.raises(NotanError, match="no graph for approximate search"):
        search(tmp_path / "i", like=3, how="approximate")
    with Writer(tmp_path / "i", ABOUT) as writer:
        writer.note(graph={"file": "graph-20.usearch", "rows": 20, "bytes": 3})
    (tmp_path / "i" / "graph-20.usearch").write_bytes(b"abc")
    assert cli.main(["search", str(tmp_path / "i"), "--like", "3", "--approximate"]) == 1
    assert "notan[search]" in capsys.readouterr().err
    (tmp_path / "i" / "graph-20.usearch").write_bytes(b"ab")
    with pytest.raises(NotanError, match="missing or cut off"):
        search(tmp_path / "i", like=3, how="approximate")


def test_what_is_asked_must_be_one_thing_that_is_there(tmp_path):
    made(tmp_path / "i", clustered(20, 4), dropped=[2])
    for asked in ({}, {"query": "a", "like": 1}, {"picture": "x", "like": 1}):
        with pytest.raises(NotanError, match="one thing to look for"):
            search(tmp_path / "i", **asked)
    for row in (-1, 2, 20):
        with pytest.raises(NotanError, match=f"no row {row}"):
            search(tmp_path / "i", like=row)
    with pytest.raises(NotanError, match="--top 0"):
        search(tmp_path / "i", like=1, top=0)
    with pytest.raises(NotanError, match=r"is not at made.*--model"):
        search(tmp_path / "i", "words")
    assert [hit.rank for hit in search(tmp_path / "i", like=1, top=3).hits] == [1, 2, 3]
    assert len(search(tmp_path / "i", like=1, top=500).hits) == 18


# ------------------------------------------------------------------------------------------------------------ words, pictures

@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """A run of clip that has hardly begun, and an index of all emoji by it."""
    home = tmp_path_factory.mktemp("emoji")
    towers = {"image_encoder": "convnet:widths=[8,16],strides=[2,2]", "text_encoder": "text:dim=32,depth=1,heads=2,context=12"}
    train("clip", "emoji", out=home / "run", steps=2, batch=32, encoder=towers, threads=1)
    embed(home / "run", "emoji", out=home / "index")
    return home


def test_a_run_of_clip_finds_pictures_by_words_and_by_pictures(emoji):
    index = Index(emoji / "index")
    assert (len(index), index.kind, len(index.classes)) == (1911, "picture", 10)
    searcher = Searcher(emoji / "index")
    with torch.inference_mode():
        q = F.normalize(Run(emoji / "run").method().encode({"text": ["red heart"]})["text"], dim=1)
    wanted = brute(index, q, 5)
    found = searcher.words("red heart", top=5)
    np.testing.assert_allclose([hit.score for hit in found.hits], wanted.values[0], atol=1e-5)
    assert found.notes == [] and all(hit.text and hit.label for hit in found.hits)
    data = open_data("emoji")
    pixels = data.test.take(np.array([7]))["image"][0].numpy()
    nearest_ = searcher.picture(pixels, top=1).hits[0]
    assert nearest_.text == data.test.take(np.array([7]))["text"][0] and nearest_.score == pytest.approx(1, abs=1e-3)
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    assert searcher.picture(file.getvalue(), top=1).hits[0].row == nearest_.row
    assert nearest_.row not in [hit.row for hit in searcher.like(nearest_.row, top=20).hits]
    assert embed(emoji / "run", "emoji", out=emoji / "index") == emoji / "index" and Index(emoji / "index").count == 1911


def test_words_that_a_model_cannot_know_are_said(emoji):
    searcher = Searcher(emoji / "index")
    with pytest.raises(NotanError, match="the query is empty"):
        searcher.words(" \n")
    found = searcher.words("красный heart")
    assert len(found.hits) == 10 and "no pieces for красный: these words may mean nothing" in found.notes[-1]
    assert "nothing of the query is known, and the order is by chance" in searcher.words("赤い自転車", top=1).notes[-1]
    long = searcher.words("smiling face with open mouth and cold sweat " * 5, top=1)
    assert "tokens and run reads 10: it was cut after" in long.notes[0]
    short = searcher.words("smiling face", top=1)
    assert short.notes == []


def test_a_query_of_unknown_tokens_alone_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "car": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    space = Space("m", "f", texts=lambda texts: torch.zeros(1, 2), reader=SimpleNamespace(tokenizer=tokenizer, context=3))
    assert heard(space, "red car") == []
    assert heard(space, "red bicycle car") == [
        "the tokenizer of m has no pieces for bicycle: these words may mean nothing to the model"]
    with pytest.raises(NotanError, match="no token that the tokenizer of m knows"):
        heard(space, "grün fahrrad")
    assert "has 4 tokens and m reads 3" in heard(space, "red car car red")[0]


def test_what_a_model_does_not_read_is_refused(tmp_path, emoji):
    torch.manual_seed(0)
    save_encoder(build_encoder("convnet:image_size=8,channels=3,widths=[8],strides=[2]"), tmp_path / "seeing")
    data = open_data("emoji")
    embed(tmp_path / "seeing", data, out=tmp_path / "pictures", split="test")
    with pytest.raises(NotanError, match=r"reads pictures, and was asked for words.*clip or siglip"):
        search(tmp_path / "pictures", "a cat")
    tokenizer = new_tokenizer(["a cat", "the red heart"], 300, 32)
    save_encoder(TextTransformer(tokenizer, dim=16, depth=1, heads=2, context=16), tmp_path / "reading")
    said = ["a cat", "the red heart", " ", "cats and dogs"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in said))
    embed(tmp_path / "reading", str(tmp_path / "t.jsonl"), out=tmp_path / "texts", data_options={"limit_bad": 0.3})
    found = search(tmp_path / "texts", "the red heart")
    assert found.hits[0].text == "the red heart" and found.hits[0].score == pytest.approx(1, abs=1e-3) and len(found.hits) == 3
    with pytest.raises(NotanError, match="reads texts, and was asked for a picture"):
        search(tmp_path / "texts", picture=tmp_path / "t.jsonl")
    with pytest.raises(NotanError, match=r"cannot be read \(not a picture\)"):
        search(emoji / "index", picture=tmp_path / "t.jsonl")
    with pytest.raises(NotanError, match="cannot be read"):
        search(emoji / "index", picture=tmp_path / "nowhere.png")


def test_a_text_model_of_transformers_by_name(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = new_tokenizer(["a cat", "the red heart"], 300, 32)
    tokenizer.save_pretrained(tmp_path / "bert")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "bert")
    texts = ["a cat", "the red heart", "cats and dogs"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"code": text, "label": i % 2}) for i, text in enumerate(texts)))
    embed(f"hf:{tmp_path / 'bert'}", str(tmp_path / "t.jsonl"), out=tmp_path / "i")
    found = search(tmp_path / "i", "cats and dogs")
    assert found.hits[0].text == "cats and dogs" and found.hits[0].score == pytest.approx(1, abs=1e-3)
    assert Index(tmp_path / "i").header["model"]["name"] == f"hf:{tmp_path / 'bert'}"


def test_a_model_that_moved_is_named_and_another_is_refused(tmp_path, emoji):
    torch.manual_seed(0)
    save_encoder(build_encoder("convnet:image_size=8,channels=3,widths=[8],strides=[2]"), tmp_path / "a")
    torch.manual_seed(1)
    save_encoder(build_encoder("convnet:image_size=8,channels=3,widths=[8],strides=[2]"), tmp_path / "b")
    embed(tmp_path / "a", "emoji", out=tmp_path / "i", split="test")
    picture = open_data("emoji").test.take(np.array([0]))["image"][0].numpy()
    (tmp_path / "a").rename(tmp_path / "c")
    with pytest.raises(NotanError, match=r"is not at .*/a.*--model"):
        search(tmp_path / "i", picture=picture)
    assert search(tmp_path / "i", picture=picture, model=tmp_path / "c").hits[0].score > 0.999
    with pytest.raises(NotanError, match=r"made by .*/a \([0-9a-f]{16}\), and this is .*/b \([0-9a-f]{16}\).*use that model"):
        search(tmp_path / "i", picture=picture, model=tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------------- what is shown

def hostile(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), (255, 0, 0)).save(file, "PNG")
    name = HOSTILE + "\x1b[31m[bold]\u202e\udcff"
    index = made(tmp_path / "i", np.eye(3), {0: name}, thumbs=[file.getvalue()] * 3)
    hit = Hit(1, 0.5, 0, name, "/x", HOSTILE, HOSTILE, "made")
    return index, Found([hit], [HOSTILE], "exact", 3, 0.001), name


def test_hostile_names_are_text_everywhere(tmp_path):
    index, found, name = hostile(tmp_path)
    assert index.item(0)["name"] == name                                # kept as it is
    results.write_results(tmp_path / "r.html", index, HOSTILE, found)
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1 and "<script>alert" not in text and "<img src=https" not in text and "\x1b" not in text
    assert text.count("data:image/jpeg;base64") == 1
    out = io.StringIO()
    results.print_table(index, HOSTILE, found, Console(file=out, width=400))
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue() and "[bold]" in out.getvalue()
    assert json.loads(results.as_json(HOSTILE, found))["hits"][0]["name"] == name


def test_thumbnails_in_a_terminal_are_half_blocks(tmp_path):
    index, found, _ = hostile(tmp_path)
    index.header["kind"] = "picture"
    out = io.StringIO()
    results.print_table(index, "q", found, Console(file=out, width=120, force_terminal=True, color_system="truecolor"))
    assert out.getvalue().count("▀") == 12 * 3 and "38;2;255;0;0;48;2;255;0;0" in out.getvalue()
    out = io.StringIO()
    results.print_table(index, "q", found, Console(file=out, width=120))
    assert "▀" not in out.getvalue()


def test_the_command_prints_json_and_writes_a_page(emoji, tmp_path, capsys):
    where, page = str(emoji / "index"), str(tmp_path / "r.html")
    assert cli.main(["search", where, "red heart", "--top", "3", "--json", "--page", page]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3] and found["how"] == "exact"
    text = (tmp_path / "r.html").read_text()
    assert text.count("data:image/jpeg") == 3 and found["hits"][0]["text"] in text
    assert Page(text) and outside(text) == []
    row = found["hits"][0]["row"]
    assert cli.main(["search", str(emoji / "index"), "--like", str(row), "--page", str(tmp_path / "like.html")]) == 0
    assert (tmp_path / "like.html").read_text().count("data:image/jpeg") == 11
    assert cli.main(["search", str(emoji / "index")]) == 1 and "one thing to look for" in capsys.readouterr().err


def test_rows_of_one_key_do_not_depend_on_the_batch(emoji):
    """What is embedded alone is what is embedded among others."""
    searcher = Searcher(emoji / "index")
    row = int(keys.shuffle(0, 0, 1911)[0])
    text = searcher.index.item(row)["text"]
    assert text
    z = searcher.space.texts([text, "a longer text beside it, of many words"])[0]
    torch.testing.assert_close(z, searcher.space.texts([text])[0], atol=1e-5, rtol=0)
