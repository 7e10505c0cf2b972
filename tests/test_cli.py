"""The command line: starts at once, says what is wrong, and knows every method's own flags."""

import subprocess
import sys
import time

import pytest

from notan import catalogue, cli
from notan.errors import NotanError


def test_help_imports_no_torch_and_is_quick():
    code = ("import sys, notan.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert time.perf_counter() - start < 5                              # the promise is 0.5 s; benchmarks/startup.py measures it


@pytest.mark.parametrize("slug", catalogue.methods())
def test_every_method_shows_its_own_flags(slug, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", slug, "--help"])
    text = capsys.readouterr().out
    for flag in catalogue.method(slug).flags:
        assert "--" + flag.name.replace("_", "-") in text
        assert catalogue.method(slug).helps.get(flag.name), f"{slug}: the docstring does not explain {flag.name}"


def test_unknown_names_suggest_the_nearest(capsys):
    assert cli.main(["comapre"]) == 1 and "compare" in capsys.readouterr().err
    assert cli.main(["train", "mea", "--data", "digits"]) == 1 and "'mae'" in capsys.readouterr().err


def test_arms_are_checked_before_anything_runs():
    assert catalogue.parse_arm("mae:mask_ratio=0.6") == ("mae", {"mask_ratio": 0.6})
    with pytest.raises(NotanError, match="mask_ratio"):
        catalogue.parse_arm("mae:mask_ration=0.6")
    with pytest.raises(NotanError, match="not a number"):
        catalogue.parse_arm("mae:mask_ratio=lots")


@pytest.mark.parametrize("annotation, text, value", [
    ("int", "3", 3), ("float | None", "none", None), ("bool", "yes", True), ("Literal['a', 'b']", "b", "b"),
    ("tuple[float, float]", "0.2,1", [0.2, 1.0]), ("str", "x", "x")])
def test_flag_values(annotation, text, value):
    assert catalogue.parse_value(annotation, text) == value


def test_a_card_that_computes_is_refused(tmp_path):
    path = tmp_path / "m.py"
    path.write_text("CARD = {'title': 'x' + str(1)}\n")
    with pytest.raises(NotanError, match="computes a value"):
        catalogue.read(path)
