"""Rows come in: sources, columns, cache, and a loader whose position is three integers."""
