"""The wheel that users install, not the editable checkout that developers see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "compress", "export", "bench", "report", "recipes")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source") / "wmlc", tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "runs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(out)!r})"  # as pip calls it
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next(out.glob("wmlc-*.whl"))


def test_the_wheel_holds_every_room_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {
        str(Path("wmlc", room, *file.relative_to(ROOT / room).parts))
        for room in ROOMS for file in (ROOT / room).rglob("*.py")
    }  # fmt: skip
    own = {str(file.relative_to(ROOT)) for file in (ROOT / "wmlc").rglob("*.py")}
    assert rooms | own == {name for name in names if name.endswith(".py")}
    assert {"wmlc/recipes/digits.yaml", "wmlc/report/page.css", "wmlc/report/paper.json", "wmlc/py.typed"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"wmlc"}
    assert any(name.endswith("LICENSE") for name in names)


def test_the_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    # -I keeps this directory out of the path; the wheel then comes before the editable install
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import wmlc.cli as c; print(c.__file__); c.main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "train", "digits", "--dry-run"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    assert done.stdout.startswith(str(site)) and "the smallest peer under each --share" in done.stdout
