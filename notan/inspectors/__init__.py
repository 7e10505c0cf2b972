"""One file per paper that measures."""
