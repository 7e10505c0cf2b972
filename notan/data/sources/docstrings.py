"""Docstrings of Python's standard library, as it is installed: prose that is always there.

A row is a public function, method or class whose docstring has at least eight words: `text` is the docstring, `query` the
line that it documents ("def indent(text, prefix, predicate=None)"), `answer` its first paragraph. Modules in C have none
here, and rows differ a little between versions of Python. Docstrings of one module are alike, so the split is by module.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from notan.data.sources import _fetch
from notan.errors import NotanError

SOURCE = {
    "name": "docstrings",
    "title": "Docstrings of Python's standard library, with the lines they document",
    "licence": "PSF-2.0 (Python)",
    "rows": 4456,
    "split": "by module: every fifth, by a hash of its name, for test",
    "modality": "text",
}

WORDS = 8  # of a docstring, at least
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo"}
COLUMNS = ("text", "query", "answer")


def load(cache: Path) -> dict[str, Any]:
    kept = cache / f"python-{platform.python_version()}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache, suffix=".json", delete=False) as file:
            json.dump(_read(Path(sysconfig.get_path("stdlib"))), file)
        _fetch.keep(Path(file.name), kept)
    return {**json.loads(kept.read_text()), "notes": [f"Docstrings of Python {platform.python_version()}."]}


def _read(root: Path) -> dict[str, dict[str, list[str]]]:
    """The two splits of the docstrings in all files below `root`."""
    found: dict[str, dict[str, list[str]]] = {split: {name: [] for name in COLUMNS} for split in ("train", "test")}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).with_suffix("")
        if LEFT_OUT.isdisjoint(name.parts):
            split = "test" if hashlib.blake2b(name.as_posix().encode(), digest_size=1).digest()[0] % 5 == 0 else "train"
            for row in documented(path.read_bytes()):
                for column, value in zip(COLUMNS, row):
                    found[split][column].append(value)
    if not all(table["text"] for table in found.values()):
        raise NotanError(f"there are no docstrings below {root}", "the standard library as source files",
                         "use a Python that has them, or another --data")
    return found


def documented(source: bytes) -> Iterator[tuple[str, str, str]]:
    """(docstring, the line it documents, its first paragraph) of what is public in one file, in its order."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # templates and the like
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text.split()) >= WORDS:
                yield text, _line(node), " ".join(text.split("\n\n")[0].split())


def _line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})".replace("()", "")
    return f"def {node.name}({ast.unparse(node.args)})"
