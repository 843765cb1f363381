"""mypy over an installed copy: it does not see through the mapping from folders to `wmlc.*` in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "compress", "export", "bench", "report", "recipes")


def main() -> int:
    """Lay the packages out as a wheel would, and check that; the exit status is mypy's."""
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "wmlc"
        package.mkdir()
        for file in (ROOT / "wmlc").iterdir():
            if file.name != "__pycache__":
                (package / file.name).symlink_to(file)
        for room in ROOMS:
            (package / room).symlink_to(ROOT / room)
        return subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "wmlc"], cwd=directory
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
