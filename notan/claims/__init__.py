"""One file per paper: arms, data, metric, seeds, what would refute it."""
