"""The generated pages and the README's table are what the methods' text says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_pages_are_not_stale():
    done = subprocess.run([sys.executable, "docs/build.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_only_world_talks_to_torch_distributed():
    for path in (ROOT / "notan").rglob("*.py"):
        if path.name != "world.py":
            assert "torch.distributed" not in path.read_text(), path.name
