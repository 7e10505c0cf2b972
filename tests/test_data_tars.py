"""Tars in WebDataset's layout: read whole or streamed they give the rows of the folder they were made of, and say what is odd."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numbered import epoch, numbers, png

from notan.data import loader_of, open_data, tars
from notan.data.doctor import diagnose, diagnose_stream
from notan.data.members import look_through, meant
from notan.data.plan import Plan
from notan.data.stream import Stream
from notan.data.tars import TarShard
from notan.errors import NotanError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTAN_CACHE", str(tmp_path / "cache"))


def tar(path: Path, found: dict[str, bytes] | list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, content in found.items() if isinstance(found, dict) else found:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return path


def samples(first: int, rows: int, **without: int) -> dict[str, bytes]:
    """Members of samples whose pictures, texts and labels say their number; `jpg=3` leaves one out of sample 3."""
    every = {}
    for i in range(first, first + rows):
        there = {"png": png(i), "txt": f" picture {i}\n".encode(), "cls": str(7 + 2 * (i % 2)).encode(),
                 "json": json.dumps({"target": i / 2, "url": "x"}).encode()}
        every |= {f"a/{i:05}.{name}": content for name, content in there.items() if without.get(name) != i}
    return every


def shards(root: Path, rows: int = 40, parts: int = 2, first: int = 0) -> Path:
    for part, index in enumerate(np.array_split(np.arange(first, first + rows), parts)):
        tar(root / f"{part}.tar", samples(int(index[0]), len(index)))
    return root


def every(rows) -> dict:
    return rows.take(np.arange(len(rows)))


def hang_together(batch: dict) -> None:
    seen = numbers(batch["image"])
    assert batch["text"] == [f"picture {i}" for i in seen] and batch["label"].tolist() == [i % 2 for i in seen]
    assert batch["target"].tolist() == [i / 2 for i in seen]


def test_read_whole_and_streamed_every_row_is_there_once(tmp_path):
    root = shards(tmp_path / "t")
    whole, data = open_data(root), open_data(root, stream=True)
    assert data.info.columns == whole.info.columns == ("image", "text", "label", "target")
    assert data.info.classes == whole.info.classes == ("7", "9") and data.rows == len(whole.train) == 32
    for rows in (whole.train, whole.test, data.train, data.test):
        hang_together(every(rows))
    seen = epoch(data)
    hang_together(seen)
    held = numbers(every(data.test)["image"])
    assert sorted(numbers(seen["image"]) + held) == list(range(40))
    assert sorted(numbers(every(whole.train)["image"]) + numbers(every(whole.test)["image"])) == list(range(40))
    assert whole.train.name(0).endswith(f"a/{numbers(every(whole.train)['image'])[0]:05}") and ".tar " in data.train.name(0)
    assert any("2 tars with 40 samples" in note for note in data.notes) and any("not used: url" in note for note in whole.notes)
    for stream in (False, True):
        assert open_data(root, stream=stream).fingerprint == (whole, data)[stream].fingerprint


def test_any_block_is_read_alone_and_a_tar_is_looked_through_once(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar", samples(0, 600))
    shard = TarShard(path, tmp_path / "cache")
    shard.plan = Plan({"image": ["image"], "text": ["text"]})
    assert shard.blocks == [(0, 256), (256, 512), (512, 600)] and shard.numeric == ["target"]
    for a, b in reversed(shard.blocks):
        found = shard.read(a, b)
        assert found["text"] == [f"picture {i}" for i in range(a, b)] and found["image"][5].read() == png(a + 5)
    looked = tars.look_through
    monkeypatch.setattr(tars, "look_through", lambda path: pytest.fail("looked through again"))
    again = TarShard(path, tmp_path / "cache")
    assert again.keys == shard.keys and again.kinds == shard.kinds and again.fields == shard.fields
    assert all(np.array_equal(again.places[c], shard.places[c]) for c in shard.places)
    monkeypatch.setattr(tars, "look_through", looked)
    tar(path, samples(0, 3))
    assert len(TarShard(path, tmp_path / "cache").keys) == 3            # another file: its notes are not taken


def test_a_batch_is_the_same_alone_and_over_ranks(tmp_path):
    data = open_data(shards(tmp_path / "t", 50), stream=True)
    shown, form, columns, bad = data.streamed
    whole = Stream(shown, form=form, batch_size=9, seed=3, limit_bad=bad, columns=columns)
    for step in (0, 7, 11):
        again = open_data(tmp_path / "t", stream=True).streamed
        parts = [Stream(again.shards, form=form, batch_size=9, seed=3, columns=columns, rank=rank, size=2).batch(step)
                 for rank in (0, 1)]
        batch = whole.batch(step)
        for name, values in batch.items():
            both = [part[name] for part in parts]
            assert torch.equal(torch.cat(both), values) if torch.is_tensor(values) else both[0] + both[1] == values


def test_splits_are_those_of_folders_of_names_and_of_patterns(tmp_path):
    shards(tmp_path / "f" / "train", 20)
    shards(tmp_path / "f" / "val", 6, first=100)
    for part, rows in ((0, 10), (1, 10)):
        tar(tmp_path / "n" / f"birds-train-{part:03}.tar", samples(10 * part, rows))
    tar(tmp_path / "n" / "birds-test-000.tar", samples(100, 6))
    (tmp_path / "n" / "birds_stats.json").write_text("{}")
    for stream in (False, True):
        for name in "fn":
            data = open_data(tmp_path / name, stream=stream)
            assert (data.rows, len(data.test)) == (20, 6) and min(numbers(every(data.test)["image"])) == 100
        assert any("Files not read beside the tars: 1 .json" in note for note in data.notes)
        data = open_data(f"{tmp_path}/n/birds-train-{{000..001}}.tar", stream=stream)
        assert data.rows == 16 and data.info.name == "n"
        one = open_data(tmp_path / "n" / "birds-test-000.tar", stream=stream)
        assert one.rows + len(one.test) == 6 and any("A tar with 6 samples" in note for note in one.notes)
        with pytest.raises(NotanError, match=r"1 of the 3 files of .*first: \S*birds-train-002\.tar"):
            open_data(f"{tmp_path}/n/birds-train-{{000..002}}.tar", stream=stream)
    for pattern, said in (("{003..001}.tar", "counts from 003 to 001"), ("{0..1}.tar.gz", "is a compressed tar"),
                          ("{0..1}.jpg", r"is a pattern of \.jpg")):
        with pytest.raises(NotanError, match=said):
            open_data(f"{tmp_path}/n/birds-train-{pattern}")


@pytest.mark.parametrize("stream", [False, True])
def test_columns_that_the_test_tars_lack_are_left_out_as_those_of_tables_are(tmp_path, stream):
    shards(tmp_path / "t" / "train", 20)
    tar(tmp_path / "t" / "test" / "0.tar", {f"{i}.{s}": c for i in range(6) for s, c in (("png", png(i)), ("txt", b"it"))})
    data = open_data(tmp_path / "t", stream=stream)
    assert data.info.columns == ("image", "text") and (data.rows, len(data.test)) == (20, 6)
    assert any("Column label is not in the test split and is left out" in note for note in data.notes)
    assert "train: 2 tars with 20 samples." in data.notes and "test: A tar with 6 samples." in data.notes


@pytest.mark.parametrize("suffix, means", [
    ("jpg", ("image", "picture")), ("JPEG", ("image", "picture")), ("webp", ("image", "picture")), ("txt", ("text", "txt")),
    ("cls", ("label", "cls")), ("json", ("json", "json")), ("target_image.png", ("target_image", "picture")),
    ("query.txt", ("query", "txt")), ("npy", ("", "")), ("meta.json", ("", "")), ("", ("", "")),
])
def test_what_a_suffix_means(suffix, means):
    assert meant(suffix) == means


def test_members_become_columns_and_columns_are_renamed(tmp_path):
    found = {}
    for i in range(12):
        found |= {f"{i}.input.png": png(i), f"{i}.target_image.png": png(i + 100), f"{i}.query.txt": f"q{i}".encode(),
                  f"{i}.json": json.dumps({"caption": [f"c{i}", "d"], "query": "no"}).encode()}
    path = tar(tmp_path / "x.tar", found)
    for stream in (False, True):
        data = open_data(path, stream=stream, columns={"input": "image", "caption": "captions"})
        assert data.info.columns == ("image", "target_image", "captions", "query")
        batch = every(data.train)
        seen = numbers(batch["image"])
        assert numbers(batch["target_image"]) == [i + 100 for i in seen] and batch["query"] == [f"q{i}" for i in seen]
        assert batch["captions"] == [[f"c{i}", "d"] for i in seen]
        other = open_data(path, stream=stream, columns={"target_image": "image", "query": "text"})
        assert min(numbers(every(other.train)["image"])) >= 100         # its own pixels, not those that were cached before


def test_members_of_a_sample_need_not_follow_one_another_and_labels_may_be_names(tmp_path):
    for stream in (False, True):
        for names in (("a", "b"), ("2", "10")):                         # numbers are in their own order
            found = {**{f"{i}.png": png(i) for i in range(10)}, **{f"{i}.cls": names[i % 2].encode() for i in range(10)}}
            data = open_data(tar(tmp_path / "x.tar", found), stream=stream)
            batch = every(data.train)
            assert data.info.classes == names and batch["label"].tolist() == [i % 2 for i in numbers(batch["image"])]


def test_keys_are_what_is_before_the_first_dot_of_the_base_name(tmp_path):
    names = ["./a/b.c/d.png", "./a/b.c/d.e.txt", "d.PNG", "./d.txt", "__MACOSX/d.png", "./._d.png"]
    index = look_through(str(tar(tmp_path / "x.tar", dict.fromkeys(names, b"x"))))
    assert index.keys == ["a/b.c/d", "d"] and index.kinds == {"image": "picture", "e": "txt", "text": "txt"}
    assert {column: (places[:, 1]).tolist() for column, places in index.places.items()} == {
        "image": [1, 1], "e": [1, -1], "text": [-1, 1]}
    assert index.unread == {}


def test_texts_of_several_lines_are_one_caption_and_that_is_said(tmp_path):
    path = tar(tmp_path / "x.tar", {f"{i}.{s}": c for i in range(10) for s, c in (("png", png(i)), ("txt", b" a\nb \n"))})
    for stream in (False, True):
        data = open_data(path, stream=stream)
        assert data.train.take([0])["text"] == ["a\nb"]
        assert any("several captions are a list in the .json" in note for note in data.notes)
    assert not any("several captions" in note for note in open_data(shards(tmp_path / "t")).notes)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_and_what_is_no_file(tmp_path, kind):
    long = "folder/" * 30 + "ä" * 60
    path = tmp_path / "in" / "x.tar"
    tar(path, {**samples(0, 10), f"{long}.png": png(10), f"{long}.txt": b"picture 10", "../up.png": png(77), "/abs.png": png(78),
               "a/.hidden.png": png(79), "README": b"x", "a/00001.npy": b"x"}, kind)  # fmt: skip
    with tarfile.open(path, "a", format=kind) as file:
        for name, of, target in (("ln.png", tarfile.SYMTYPE, "/etc/passwd"), ("hard.png", tarfile.LNKTYPE, "a/00000.png"),
                                 ("null.png", tarfile.CHRTYPE, ""), ("pipe.png", tarfile.FIFOTYPE, ""),
                                 ("d", tarfile.DIRTYPE, "")):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = of, target
            file.addfile(about)
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    index = look_through(str(path))
    assert len(index.keys) == 11 and index.keys[-1] == long
    assert index.unread == {"names that lead out of the tar": 2, "without suffix": 1, ".npy": 1, "links": 2, "devices": 2}
    for stream in (False, True):
        data = open_data(path, stream=stream, columns={"label": "", "target": ""})
        assert any("Not read: 2 " in note and "1 .npy" in note for note in data.notes)
        assert data.rows + len(data.test) == 11
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} == before


def test_a_tar_cut_anywhere_is_refused_or_ends_with_a_whole_member(tmp_path):
    path = tar(tmp_path / "x.tar", samples(0, 3))
    content, known = path.read_bytes(), [*samples(0, 3)]
    last, taken = 12 * 1024, []                                         # 12 members of a header and a block each
    for size in [*range(0, last, 256), last - 1]:
        path.write_bytes(content[:size])
        try:
            index = look_through(str(path))
        except NotanError as error:
            assert size % 1024 or not size
            cut = f"cut off: it ends at byte {size:,}"
            expected = "empty file" if not size else "cannot be read as a tar" if size < 512 else cut
            assert expected in str(error) and "x.tar" in str(error), (size, error)
        else:
            taken.append(size)
            assert index.unread == {"missing end mark (cut off?)": 1}
            assert sum(int((x[:, 0] >= 0).sum()) for x in index.places.values()) == size // 1024
    assert taken == list(range(1024, last, 1024)) and len(known) == 12
    path.write_bytes(content[: last + 512])
    assert look_through(str(path)).unread == {}


def test_a_header_that_is_damaged_is_refused_and_not_taken_for_the_end(tmp_path):
    path = tar(tmp_path / "x.tar", samples(0, 3))
    content = bytearray(path.read_bytes())
    content[5 * 1024 + 150] ^= 1                                        # in the checksum of the sixth member
    path.write_bytes(content)
    with pytest.raises(NotanError, match=r"x\.tar cannot be read as a tar after 5 members \(no header at byte 5,120\)"):
        look_through(str(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 8 * 1024 - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_gives_one_kind_of_error(tmp_path, changes):
    path = tmp_path / "x.tar"
    content = bytearray(tar(path, samples(0, 2)).read_bytes())
    for place, value in changes:
        content[place] = value
    path.write_bytes(content)
    try:
        shard = TarShard(path)
        tars.settle([shard])
        shard.plan = Plan({name: [name] for name in ("image", "text") if name in shard.found})
        for block in shard.blocks:
            shard.read(*block)
    except NotanError:
        pass


def joined(root: Path) -> Path:
    path = tar(root / "x.tar", samples(0, 3))
    path.write_bytes(path.read_bytes() + tar(root / "y", samples(3, 3)).read_bytes())
    return path


def zipped(root: Path, name: str = "x.tar.gz") -> Path:
    path = root / name
    path.write_bytes(gzip.compress(tar(root / "y", samples(0, 3)).read_bytes()))
    (root / "y").unlink()
    return path


def with_one(root: Path, name: str, content: bytes | None, rows: int = 20) -> Path:
    """Twenty sound samples, the member `name` among them replaced or left out."""
    found = samples(0, rows) | ({name: content} if content is not None else {})
    return tar(root / "x.tar", {k: v for k, v in found.items() if k != name or content is not None})


@pytest.mark.parametrize("make, said", [
    (lambda root: tar(root / "x.tar", []), r"x\.tar has no samples: it is empty.*remove the file"),
    (lambda root: tar(root / "x.tar", {"a.npy": b"x", "README": b""}), r"no samples \(it has 1 \.npy, 1 without suffix\)"),
    (lambda root: zipped(root), r"x\.tar\.gz is a compressed tar.*gunzip"),
    (lambda root: zipped(root).parent, r"x\.tar\.gz is a compressed tar.*gunzip"),
    (lambda root: zipped(root, "x.tar"), r"x\.tar is a compressed tar.*gunzip"),
    (joined, r"x\.tar goes on after its end at byte \d.*files of their own"),
    (lambda root: tar(root / "x.tar", [*samples(0, 3).items(), ("a/00001.txt", b"again")]),
     r"1 samples with two members of a kind \(first: a/00001\.txt is the second text of a/00001\)"),
    (lambda root: tar(root / "x.tar", [*samples(0, 3).items(), ("a/00001.jpg", png(1))]), r"jpg is the second image of a/00001"),
    (lambda root: tar(root / "x.tar", {"a.query.txt": b"x", "b.query.png": png(1)}), r"query pictures .* and query\.txt: both"),
    (lambda root: tar(root / "x.tar", {f"v1.{i}.png": png(i) for i in range(80)}), r"over 64 kinds .*keys without dots"),
    (lambda root: with_one(root, "a/00003.txt", None), r"1 of 20 samples of x have no \.txt, or an empty one \(first: x\.tar "),
    (lambda root: with_one(root, "a/00003.txt", b""), r"1 of 20 samples .* \(first: x\.tar a/00003\).*--column text="),
    (lambda root: with_one(root, "a/00003.txt", b" \n"), r"the \.txt of x\.tar a/00003 is blank"),
    (lambda root: with_one(root, "a/00003.txt", b"caf\xe9"), r"the \.txt of x\.tar a/00003 is no UTF-8 \(byte 3\)"),
    (lambda root: with_one(root, "a/00003.cls", None), r"1 of 20 samples of x have no \.cls"),
    (lambda root: with_one(root, "a/00003.cls", b" "), r"'label' is empty or NaN in 1 of 20 rows"),
    (lambda root: with_one(root, "a/00003.json", None), r"1 of 20 samples of x have no \.json"),
    (lambda root: with_one(root, "a/00003.json", b"[1]"), r"the \.json of x\.tar a/00003 is no JSON object \(a list\)"),
    (lambda root: with_one(root, "a/00003.json", b'{"a'), r"the \.json of x\.tar a/00003 is no JSON object \("),
    (lambda root: with_one(root, "a/00003.json", b'{"a": 1, "a": 2}'), r"no JSON object \('a' is there twice\)"),
    (lambda root: with_one(root, "a/00003.json", b"{}"), r"column 'target' has no finite value in 1 of 20 rows"),
    (lambda root: with_one(root, "a/00003.png", None), r"1 of 20 pictures of x cannot be read: x\.tar a/00003 \(there is none\)"),
    (lambda root: with_one(root, "a/00003.png", png(3)[:40]), r"1 of 20 pictures of x cannot be read: x\.tar a/00003 \("),
    (lambda root: with_one(root, "a/00003.png", b""), r"1 of 20 pictures of x cannot be read: x\.tar a/00003 \("),
])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_read_is_named(tmp_path, stream, make, said):
    root = tmp_path / "data"
    root.mkdir()
    path = make(root)
    with pytest.raises(NotanError, match=f"(?s){said}"):
        open_data(path, stream=stream, limit_bad=0)


@pytest.mark.parametrize("stream", [False, True])
def test_pictures_that_are_not_there_are_skipped_up_to_the_limit(tmp_path, stream):
    data = open_data(with_one(tmp_path, "a/00003.png", None), stream=stream, limit_bad=0.1)
    assert any("1 of 20 pictures cannot be read and are skipped: x.tar a/00003" in note for note in data.notes)
    assert any("1 of 20 samples have no picture (first: x.tar a/00003)" in note for note in data.notes)
    loader = loader_of(data, batch_size=data.rows, seed=0)
    batch = loader.batch(0)
    assert 3 not in numbers(batch["image"]) and len(batch["text"]) == len(batch["row"]) >= 15
    hang_together(batch)


@pytest.mark.parametrize("stream", [False, True])
def test_a_few_members_of_a_kind_are_no_column(tmp_path, stream):
    found = {**{f"{i}.png": png(i) for i in range(20)}, "README.txt": b"about\nit", "3.cls": b"1"}
    data = open_data(tar(tmp_path / "x.tar", found), stream=stream, limit_bad=0.1)
    assert data.info.columns == ("image",)
    assert any("1 of 21 samples have .txt (x.tar README ...): too few to be read" in note for note in data.notes)
    assert not any("several captions" in note for note in data.notes)
    tar(tmp_path / "y" / "0.tar", {f"{i}.png": png(i) for i in range(3)})
    tar(tmp_path / "y" / "1.tar", samples(0, 10))
    with pytest.raises(NotanError, match=r"3 of 13 samples of y have no \.txt, or an empty one \(first: 0\.tar 0\)"):
        open_data(tmp_path / "y", stream=stream)


def test_a_tar_that_changes_while_it_is_read_stops_the_stream(tmp_path):
    data = open_data(shards(tmp_path / "t"), stream=True)
    for path in (tmp_path / "t").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(NotanError, match=r"\d\.tar, rows .* cannot be read \(OSError: it has changed.*open the data again"):
        epoch(data)


def test_tars_beside_pictures_are_left_alone_and_said(tmp_path):
    for i in range(10):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / f"{i}.png").write_bytes(png(i))
    tar(tmp_path / "p" / "all.tar", samples(0, 10))
    for stream in (False, True):
        data = open_data(tmp_path / "p", stream=stream)
        assert data.info.columns == ("image",)
        assert sum("1 tars beside the pictures are not read" in note for note in data.notes) == 1


def test_the_doctor_says_what_is_there(tmp_path):
    for find in (diagnose, diagnose_stream):
        said = " | ".join(f.what for f in find(shards(tmp_path / "t", 60)))
        assert "2 tars with 60 samples" in said and "48 training rows have a caption each, of 2 words, median 2" in said
        found = find(with_one(tmp_path, "a/00003.txt", None))
        assert len(found) == 1 and found[0].severity == "error" and "have no .txt" in found[0].what
        (tmp_path / "x.tar").unlink()
    bad = diagnose_stream(with_one(tmp_path, "a/00003.png", None))
    assert any(f.severity == "warning" and "1 of 20 pictures cannot be read" in f.what for f in bad)
