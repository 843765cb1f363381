"""The house's own promises: which way imports go, what is never opened, what stays quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HOUSE = Path(__file__).resolve().parent.parent
ROOMS = ("models", "compress", "export", "bench", "report", "recipes")
MAY_IMPORT = {  # room → the rooms it may know besides itself; "wmlc" is the files of wmlc/ except cli.py
    "models": {"wmlc"},
    "compress": {"wmlc", "models"},
    "export": {"wmlc", "models"},
    "bench": {"wmlc", "models"},
    "report": {"wmlc"},
    "recipes": set(),
    "wmlc": set(),
    "wmlc/__init__.py": {"models"},  # inside `load`
    "wmlc/cli.py": {"wmlc", *ROOMS},
}
FILES = sorted(path for room in ("wmlc", *ROOMS) for path in (HOUSE / room).rglob("*.py"))
FILE_NAMES = [str(path.relative_to(HOUSE)) for path in FILES]


def room_of(name: str) -> str:
    """The room that a dotted module name lies in: wmlc.compress.widths.tree → compress, wmlc.files → wmlc."""
    parts = name.split(".")
    if parts[:2] == ["wmlc", "cli"]:
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "wmlc"


def imported_modules(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that the code imports, wherever the statement stands; relative names made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: -(node.level - 1) or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def parse(path: Path) -> tuple[ast.Module, str]:
    """A file's syntax tree and the package that it lies in."""
    relative = path.relative_to(HOUSE).parent.parts
    package = ".".join(relative if relative[0] == "wmlc" else ("wmlc", *relative))
    return ast.parse(path.read_text(encoding="utf-8")), package


def own_imports(path: Path) -> set[str]:
    """The rooms that a file imports."""
    tree, package = parse(path)
    return {room_of(name) for name in imported_modules(tree, package) if name.split(".")[0] == "wmlc"}


def test_relative_imports_are_understood() -> None:
    tree = ast.parse("from . import tree\nfrom ..export import to_onnx\nimport wmlc.files\nfrom .. import bench")
    names = set(imported_modules(tree, "wmlc.compress"))
    assert {"wmlc.compress.widths.tree", "wmlc.export.to_onnx", "wmlc.files", "wmlc.bench"} <= names
    assert {room_of(name) for name in names} == {"compress", "export", "wmlc", "bench"}


@pytest.mark.parametrize("name", FILE_NAMES)
def test_imports_go_one_way(name: str) -> None:
    room = name.split("/")[0]
    allowed = {room} | MAY_IMPORT.get(name, MAY_IMPORT[room])
    assert own_imports(HOUSE / name) <= allowed


def test_only_load_in_the_package_itself_knows_the_models() -> None:
    tree = ast.parse((HOUSE / "wmlc" / "__init__.py").read_text(encoding="utf-8"))
    at_import = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
    assert "models" not in {room_of(name) for name in imported_modules(at_import, "wmlc")}


@pytest.mark.parametrize("name", FILE_NAMES)
def test_no_pickle_is_opened(name: str) -> None:
    tree, package = parse(HOUSE / name)
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    forbidden |= {"torch.load", "torch.save"}
    imported = set(imported_modules(tree, package))
    called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not forbidden & (imported | called)


@pytest.mark.parametrize("name", FILE_NAMES)
def test_every_file_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(parse(HOUSE / name)[0])


def run_fresh(program: str) -> str:
    """The output of a program in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


NO_TORCH = (
    "import sys; heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime'} & set(sys.modules); assert not heavy, heavy"
)


def test_importing_the_package_imports_no_torch() -> None:
    run_fresh(f"import wmlc; {NO_TORCH}")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    said = run_fresh(f"from wmlc.cli import main; main({words!r}, standalone_mode=False); {NO_TORCH}")
    assert said.startswith("Usage:")


def packaging() -> dict[str, object]:
    record = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    return record["tool"]["setuptools"]


def test_every_listed_package_exists_where_the_listing_says() -> None:
    folders = packaging()["package-dir"]
    assert set(packaging()["packages"]) == set(folders)
    for package, folder in folders.items():
        assert (HOUSE / folder / "__init__.py").is_file(), package


def test_every_folder_with_code_is_listed() -> None:
    listed = {HOUSE / folder for folder in packaging()["package-dir"].values()}
    assert {path.parent for path in FILES} == listed
