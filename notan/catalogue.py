"""What methods there are, read from their source with `ast`: no method and no torch is imported.

A method file holds literals (`CARD`, `RECIPES`, defaults) and annotations, so its catalogue row, its flags and its help
can be read from the text. `notan --help` and `notan list` therefore start at once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from notan.errors import NotanError, did_you_mean

ROOT = Path(__file__).parent


@dataclass(frozen=True)
class Parameter:
    """One argument of a method: a tower (positional) or a flag (keyword-only)."""

    name: str
    annotation: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Entry:
    """One file of `methods/`, `strategies/` or `inspectors/` as a reader of its text sees it."""

    slug: str
    path: Path
    cls: str
    doc: str
    card: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    towers: tuple[Parameter, ...] = ()
    flags: tuple[Parameter, ...] = ()
    helps: dict[str, str] = field(default_factory=dict)
    has: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return self.card["title"]

    @property
    def columns(self) -> list[str]:
        """Every column that it can learn from: "image or features" are two."""
        return [column for need in self.card["needs"] for column in need.split(" or ")]

    @property
    def contrasts_rows(self) -> bool:
        """Whether its loss sets the rows of a batch against each other, as its text or its CARD says."""
        text = self.path.read_text()
        return self.card.get("contrasts_rows", "world.gather(" in text or "methods._contrast" in text)

    def lacking(self, columns: Iterable[str]) -> list[str]:
        """What it needs that none of the columns is; "label or target" needs either."""
        return [need for need in self.card["needs"] if set(need.split(" or ")).isdisjoint(columns)]


@cache
def methods() -> dict[str, Entry]:
    """Slug to entry, for every file of `methods/` whose name does not start with an underscore."""
    return {p.stem: read(p) for p in _files("methods")}


def method(slug: str) -> Entry:
    """The entry of one method; an unknown name is answered with the nearest one."""
    return _named(slug, "method", methods(), "notan list")


@cache
def strategies() -> dict[str, Entry]:
    """Slug to entry, for every file of `strategies/` whose name does not start with an underscore."""
    return {p.stem: read(p, ("combine", "rerank"), ("CARD",)) for p in _files("strategies")}


def strategy(slug: str) -> Entry:
    """The entry of one strategy; an unknown name is answered with the nearest one."""
    return _named(slug, "strategy", strategies(), "notan decode list")


@cache
def inspectors() -> dict[str, Entry]:
    """Slug to entry, for every file of `inspectors/` whose name does not start with an underscore."""
    return {p.stem: read_measure(p) for p in _files("inspectors")}


def inspector(slug: str) -> Entry:
    """The entry of one inspector; an unknown name is answered with the nearest one."""
    return _named(slug, "inspector", inspectors(), "notan inspect list")


def claims() -> dict[str, Path]:
    """Slug to file, for every claim."""
    return {p.stem: p for p in _files("claims")}


def sources() -> dict[str, dict[str, Any]]:
    """Name to the literal `SOURCE` of every built-in data source."""
    found = {}
    for path in sorted((ROOT / "data" / "sources").glob("*.py")):
        if not path.name.startswith("_"):
            source = _literals(path, ast.parse(path.read_text())).get("SOURCE")
            if source:
                found[source["name"]] = source
    return found


def read(path: Path, parts: tuple[str, ...] = ("loss",), literals: tuple[str, ...] = ("CARD", "RECIPES")) -> Entry:
    """Parse one file: its class is the one with one of `parts`. Raises `NotanError` when what must be literal is not."""
    tree = ast.parse(path.read_text())
    named = _literals(path, tree)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not _defs(n).isdisjoint(parts)]
    if len(classes) != 1 or not named.keys() >= set(literals):
        raise NotanError(f"{path.name} has {len(classes)} classes with a `{'` or `'.join(parts)}` and the names {sorted(named)}",
                         f"one class with it, and literal {' and '.join(literals)}",
                         "see docs/add-a-method.md, or start the file's name with an underscore")
    cls = classes[0]
    init = next(f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
    towers = tuple(Parameter(a.arg, _text(a.annotation), required=True) for a in init.args.args[1:])
    flags = _flags(path, init)
    doc = ast.get_docstring(cls) or ""
    return Entry(path.stem, path, cls.name, ast.get_docstring(tree) or "", named["CARD"], named.get("RECIPES", {}), towers,
                 tuple(f for f in flags if f.name != "data"), _argument_help(doc), _defs(cls))


def read_measure(path: Path) -> Entry:
    """Parse one file of `inspectors/`: a literal `CARD` and a function `measure`, whose settings are its flags."""
    tree = ast.parse(path.read_text())
    card = _literals(path, tree).get("CARD")
    measure = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "measure"), None)
    if card is None or measure is None:
        raise NotanError(f"{path.name} has no " + ("CARD" if card is None else "function `measure`"),
                         "a literal CARD, and measure(model, data)", "start the file's name with an underscore if it is a part")
    return Entry(path.stem, path, "measure", ast.get_docstring(tree) or "", card, {}, (), _flags(path, measure),
                 _argument_help(ast.get_docstring(measure) or ""))


def _flags(path: Path, function: ast.FunctionDef) -> tuple[Parameter, ...]:
    """The keyword-only arguments of a function."""
    return tuple(Parameter(a.arg, _text(a.annotation), None if d is None else _literal(path, d), d is None)
                 for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults))


def _files(room: str) -> list[Path]:
    """The papers' files of one room."""
    return sorted(p for p in (ROOT / room).glob("*.py") if not p.name.startswith("_"))


def _named(slug: str, kind: str, entries: dict[str, Entry], command: str) -> Entry:
    if slug not in entries:
        raise NotanError(f"there is no {kind} {slug!r}", f"a name from `{command}`", did_you_mean(slug, entries))
    return entries[slug]


def _literals(path: Path, tree: ast.Module) -> dict[str, Any]:
    return {node.targets[0].id: _literal(path, node.value) for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ("CARD", "RECIPES", "SOURCE", "CLAIM")}


def _literal(path: Path, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise NotanError(f"{path.name}:{node.lineno} computes a value: {ast.unparse(node)[:60]}",
                         "literals in CARD, RECIPES and defaults, so that help needs no import", "write the value out") from None


def _defs(cls: ast.ClassDef) -> frozenset[str]:
    return frozenset(f.name for f in cls.body if isinstance(f, ast.FunctionDef))


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node is not None else ""


def _argument_help(doc: str) -> dict[str, str]:
    """`name: sentence` lines of a class docstring, continued by deeper indentation."""
    helps: dict[str, str] = {}
    current, depth = "", 0
    for line in doc.splitlines():
        indent = len(line) - len(line.lstrip())
        head, colon, rest = line.strip().partition(": ")
        if colon and head.isidentifier():
            current, depth = head, indent
            helps[head] = rest.strip()
        elif current and line.strip() and indent > depth:
            helps[current] += " " + line.strip()
        else:
            current = ""
    return helps


def parse_value(annotation: str, text: str) -> Any:
    """Read one flag's text as its annotation says: int, float, bool, str, Literal[...], `X | None`, list[X].

    Raises `ValueError` with a sentence when the text does not fit.
    """
    node = ast.parse(annotation, mode="eval").body
    return _parse(node, text)


def choices(annotation: str) -> list[str]:
    """The members of a `Literal[...]` annotation, else an empty list."""
    return [str(m) for m in _members(ast.parse(annotation, mode="eval").body)]


def _members(node: ast.expr) -> list[Any]:
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return [ast.literal_eval(e) for e in inner]
    return []


def _parse(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):       # X | None
        if text.lower() in ("none", "null"):
            return None
        return _parse(node.left, text)
    if members := _members(node):
        for m in members:
            if str(m) == text:
                return m
        raise ValueError(f"{text!r} is not one of {', '.join(map(str, members))}")
    if isinstance(node, ast.Subscript):                                      # list[int], tuple[float, float]
        inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
        return [_parse(inner, part) for part in text.strip("[]()").split(",") if part.strip()]
    name = ast.unparse(node)
    if name == "bool":
        if text.lower() in ("true", "yes", "1", "on"):
            return True
        if text.lower() in ("false", "no", "0", "off"):
            return False
        raise ValueError(f"{text!r} is not true or false")
    if name in ("int", "float"):
        try:
            return {"int": int, "float": float}[name](text)
        except ValueError:
            raise ValueError(f"{text!r} is not {'a whole number' if name == 'int' else 'a number'}") from None
    return text


def parse_arm(text: str, named: Callable[[str], Entry] = method) -> tuple[str, dict[str, Any]]:
    """An arm of a comparison, `slug` or `slug:flag=value,flag=value`, as (slug, settings); checked against the method, or
    the `strategy`, of that name.
    """
    slug, _, rest = text.partition(":")
    entry = named(slug)
    flags = {f.name: f for f in entry.flags}
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in flags:
            raise NotanError(f"arm {text!r}: {slug} has no setting {name!r}", "slug:flag=value,flag=value",
                             did_you_mean(name, flags) if flags else f"{slug} has no settings")
        try:
            settings[name] = parse_value(flags[name].annotation, value.strip())
        except ValueError as error:
            raise NotanError(f"arm {text!r}: {name} = {error}", flags[name].annotation, "correct the value") from None
    return slug, settings
