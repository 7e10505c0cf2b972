"""Rows come in: sources, columns, cache, and a loader whose position is three integers.

    data = open_data("fashion-mnist")
    for batch in Loader(data.train, batch_size=256, seed=0).at(step=0): ...
"""

from notan.data.cache import cache_root
from notan.data.columns import COLUMNS, DataInfo
from notan.data.loader import Loader
from notan.data.open import open_data
from notan.data.shards import shards_of
from notan.data.stream import Stream, loader_of
from notan.data.table import Data, Rows

__all__ = ["COLUMNS", "Data", "DataInfo", "Loader", "Rows", "Stream", "cache_root", "loader_of", "open_data", "shards_of"]
