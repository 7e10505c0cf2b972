"""Pictures whose factors are known: functions of (seed, row), drawn evenly, and what is said of them is in them."""

import numpy as np

from notan.claims._composites import COLOURS, FACTORS, LARGE, SIDE, SMALL, caption, composites, words


def test_a_picture_is_a_function_of_seed_and_row():
    a, b = composites(3, range(8)), composites(3, range(4, 12))
    assert all(np.array_equal(x[4:], y[:4]) for x, y in zip(a, b))
    assert not np.array_equal(a.pictures, composites(4, range(8)).pictures)
    assert np.array_equal(composites(3, range(8), artist=0).factors, composites(3, range(8), artist=1).factors)


def test_factors_are_drawn_evenly_and_the_other_object_is_another():
    factors = composites(0, range(600)).factors
    assert (factors[:, 0] != factors[:, 5]).all()
    for column, names in zip(factors.T, FACTORS.values()):
        counts = np.bincount(column, minlength=len(names))
        expected = 600 / len(names)
        assert ((counts - expected) ** 2 / expected).sum() < len(names) + 4 * np.sqrt(2 * len(names))


def test_what_is_said_is_there():
    found = composites(1, range(60))
    for picture, factors, main in zip(*found):
        said = words(factors)
        rows, columns = np.nonzero(main)
        half = {"left": columns.max() < SIDE // 2, "right": columns.min() >= SIDE // 2, "top": rows.max() < SIDE // 2,
                "bottom": rows.min() >= SIDE // 2}[said["place"]]
        assert half, said
        count, side = FACTORS["count"].index(said["count"]) + 1, {"large": LARGE, "small": SMALL}[said["size"]]
        assert 0.25 * count * side**2 < main.sum() <= count * side**2
        ground = np.median(picture.reshape(3, -1), axis=1)
        assert np.abs(ground - COLOURS[said["colour"]]).max() < 6


def test_the_sentence_names_every_factor():
    said = {"object": "dog", "colour": "red", "count": "two", "place": "top", "size": "small", "other": "key"}
    assert caption(said) == "two small dog at the top beside one key on red ground"
