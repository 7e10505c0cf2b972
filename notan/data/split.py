"""The split of data that comes without one: keyed, stratified, and stable when rows are added."""

from __future__ import annotations

import numpy as np

from notan.data import keys

SHARE, MOST = 0.2, 10_000  # of the rows, and never more than this many for test


def split(ids: np.ndarray, labels: np.ndarray | None = None, share: float = SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for test, each ascending, int64.

    `ids` (N,) int64 name the rows (a hash of a path, or the row number): the rows of each label with the smallest
    hashed ids are the test rows, so that the answer does not depend on the order of rows or on chance. A label with
    two rows or more has at least one in either split. Rows of one id go to one split, if that leaves some for training.
    """
    n = len(ids)
    share = min(share, MOST / max(n, 1))
    rank = keys.fold(keys.word("split"), ids)
    test = np.zeros(n, dtype=bool)
    groups = np.zeros(n, dtype=np.int64) if labels is None else np.unique(labels, return_inverse=True)[1]
    for group in range(int(groups.max(initial=-1)) + 1):
        rows = np.flatnonzero(groups == group)
        take = min(max(round(share * len(rows)), 1), len(rows) - 1)
        first = rows[np.argsort(rank[rows], kind="stable")]
        with_last = np.flatnonzero(rank[first] == rank[first[take - 1]]).max(initial=0) + 1 if take else 0
        test[first[: with_last if with_last < len(first) else take]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)
