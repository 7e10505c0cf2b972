"""`notan list`: the catalogue as a table, read without importing a method."""

from __future__ import annotations

import json
import re
from typing import Any

from rich.console import Console
from rich.table import Table

from notan import catalogue

RESULTS = catalogue.ROOT / "results"


def result(slug: str) -> dict[str, Any] | None:
    """The committed outcome of a method's claim, if it has been run."""
    path = RESULTS / f"{slug}.json"
    return json.loads(path.read_text()) if path.exists() else None


def brief(sentence: str) -> str:
    """The first finding of a verdict; a method's page has them all."""
    return re.split(r"; |\.\s", sentence)[0].rstrip(".") + "."


def print_list(what: str, console: Console | None = None) -> None:
    """Print the methods, strategies, inspectors, built-in data sources (with licences) or claims (with verdicts)."""
    kinds = {"methods": _methods, "strategies": _strategies, "inspectors": _inspectors, "data": _data, "claims": _claims}
    (console or Console()).print(kinds[what]())


def _strategies() -> Table:
    return _room("Strategies", "strategy", catalogue.strategies())


def _inspectors() -> Table:
    return _room("Inspectors", "inspector", catalogue.inspectors())


def _room(title: str, kind: str, entries: dict[str, catalogue.Entry]) -> Table:
    table = Table(title=title, title_justify="left", expand=False)
    table.add_column(kind, no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name in ("paper", "needs"):
        table.add_column(name, no_wrap=True)
    for slug, entry in entries.items():
        paper = f"{entry.card['arxiv']} ({entry.card['year']})"
        table.add_row(slug, entry.doc.splitlines()[0], paper, ", ".join(entry.card["needs"]))
    return table


def _methods() -> Table:
    table = Table(title="Methods", title_justify="left", expand=False)
    for name in ("method", "paper", "needs", "claim", "our number"):
        table.add_column(name, overflow="fold")
    for slug, entry in catalogue.methods().items():
        outcome = result(slug)
        ours = f"{outcome['verdict']}: {brief(outcome['sentence'])}" if outcome else "-"
        source = f"{entry.title} ({entry.card['year']})" + (f" arXiv {entry.card['arxiv']}" if entry.card["arxiv"] else "")
        table.add_row(slug, source, ", ".join(entry.card["needs"]), entry.card["claim"], ours)
    return table


def _data() -> Table:
    table = Table(title="Built-in data", title_justify="left")
    for name in ("name", "what", "rows", "split", "licence"):
        table.add_column(name, overflow="fold")
    for name, source in catalogue.sources().items():
        table.add_row(name, source["title"], str(source["rows"]), source["split"], source["licence"])
    return table


def _claims() -> Table:
    table = Table(title="Claims", title_justify="left")
    for name in ("claim", "verdict", "what came out", "seeds", "minutes"):
        table.add_column(name, overflow="fold")
    for slug in catalogue.claims():
        outcome = result(slug)
        if outcome:
            table.add_row(slug, outcome["verdict"], outcome["sentence"], str(len(outcome["seeds"])), f"{outcome['minutes']:.0f}")
        else:
            table.add_row(slug, "not run", f"notan claim {slug}", "-", "-")
    return table
