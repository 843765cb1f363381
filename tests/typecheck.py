"""mypy over the packages as they are installed: it does not see through pyproject.toml's mapping from folders to them.

The links to them and mypy's cache last from one check to the next, so that the second one takes seconds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAID_OUT = ROOT / "build" / "typecheck"
ROOMS = ("models", "compress", "export", "bench", "report", "recipes")


def main() -> int:
    """Lay the packages out as a wheel would, and check that; the exit status is mypy's."""
    package = LAID_OUT / "wmlc"
    package.mkdir(parents=True, exist_ok=True)
    for former in package.iterdir():
        former.unlink()
    for file in [*(ROOT / "wmlc").iterdir(), *(ROOT / room for room in ROOMS)]:
        if file.name != "__pycache__":
            (package / file.name).symlink_to(file)
    mypy = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    return subprocess.run([*map(str, mypy), "-p", "wmlc"], cwd=LAID_OUT).returncode


if __name__ == "__main__":
    sys.exit(main())
