"""The house's own promises: which way imports go, what is never opened, what stays quick."""

from __future__ import annotations

import ast
import functools
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
    "wmlc/__init__.py": {"models", "compress"},  # inside `load` and `family`
    "wmlc/cli.py": {"wmlc", *ROOMS},
    "wmlc/__main__.py": {"cli"},
}
FILES = sorted(path for room in ("wmlc", *ROOMS) for path in (HOUSE / room).rglob("*.py"))
MOST_LINES = 350  # of a file, the tests' own among them
# Functions that take or give a `dict[str, Any]`, where a record or a class of its own would say what is in it;
# what is left are Vega-Lite's charts and the fields of a log
MOST_LOOSE = {"report": 10, "bench": 8}
RUNS_CALLERS_CODE = "models/factory.py"  # the one file that runs code which is no part of wmlc or of a package it names
IMPORTS_OF_A_TABLE = {"bench/engines/__init__.py", "bench/engines/worker.py"}  # what they import stands in a table


def named(path: Path) -> str:
    """A file's name within the house."""
    return str(path.relative_to(HOUSE))


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


@functools.cache
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
    tree = ast.parse("from . import plan\nfrom ...export import to_onnx\nimport wmlc.files\nfrom ... import bench")
    names = set(imported_modules(tree, "wmlc.compress.widths"))
    assert {"wmlc.compress.widths.plan", "wmlc.export.to_onnx", "wmlc.files", "wmlc.bench"} <= names
    assert {room_of(name) for name in names} == {"compress", "export", "wmlc", "bench"}


def test_imports_go_one_way() -> None:
    wrong = {}
    for path in FILES:
        room = named(path).split("/")[0]
        allowed = {room} | MAY_IMPORT.get(named(path), MAY_IMPORT[room])
        if surplus := own_imports(path) - allowed:
            wrong[named(path)] = surplus
    assert not wrong


def test_only_load_in_the_package_itself_knows_the_models() -> None:
    tree = ast.parse((HOUSE / "wmlc" / "__init__.py").read_text(encoding="utf-8"))
    at_import = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], [])
    assert "models" not in {room_of(name) for name in imported_modules(at_import, "wmlc")}


def opens_only_weights(call: ast.Call) -> bool:
    """Whether it is a `torch.load` that takes tensors and plain values alone."""
    asked = {each.arg: ast.unparse(each.value) for each in call.keywords}
    return ast.unparse(call.func) == "torch.load" and asked.get("weights_only") == "True"


def test_no_pickle_is_opened() -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    forbidden |= {"torch.load", "torch.save"}
    for path in FILES:
        tree, package = parse(path)
        plain = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and opens_only_weights(node)}
        called = {
            ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in plain
        }
        assert not forbidden & (set(imported_modules(tree, package)) | called), named(path)


def runs_code_by_name(path: Path) -> bool:
    """Whether a file runs code that a value names: an import by a name that is no literal, a file, a text."""
    for call in (node for node in ast.walk(parse(path)[0]) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func).rpartition(".")[2]
        if called in ("import_module", "__import__") and not (call.args and isinstance(call.args[0], ast.Constant)):
            return True
        if called in ("exec_module", "spec_from_file_location", "run_path", "run_module"):
            return True
        if ast.unparse(call.func) in ("eval", "exec", "compile"):
            return True
    return False


def test_only_the_callers_own_code_is_run_by_its_name() -> None:
    assert {named(path) for path in FILES if runs_code_by_name(path)} == {RUNS_CALLERS_CODE, *IMPORTS_OF_A_TABLE}


def test_every_file_says_what_it_is_for() -> None:
    assert not [named(path) for path in FILES if not ast.get_docstring(parse(path)[0])]


def test_no_file_is_long() -> None:
    lines = {named(path): len(path.read_bytes().splitlines()) for path in [*FILES, *(HOUSE / "tests").rglob("*.py")]}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def loose(path: Path) -> list[str]:
    """The functions of a file whose signature has a `dict[str, Any]`."""
    functions = [node for node in ast.walk(parse(path)[0]) if isinstance(node, ast.FunctionDef)]
    return [
        f.name for f in functions if "dict[str, Any]" in f"{ast.unparse(f.args)} {ast.unparse(f.returns or f.args)}"
    ]


@pytest.mark.parametrize("room", MOST_LOOSE)
def test_what_functions_exchange_has_a_type(room: str) -> None:
    found = {named(path): names for path in FILES if named(path).startswith(f"{room}/") and (names := loose(path))}
    assert sum(map(len, found.values())) <= MOST_LOOSE[room], found


def test_neither_the_package_nor_help_nor_a_refused_setting_imports_torch() -> None:
    heavy = "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'pydantic'}"
    words = [["--help"], ["train", "--help"], ["bench", "--help"]]
    program = f"import sys, wmlc; print({heavy} & set(sys.modules)); from wmlc.cli import main\n"
    program += "".join(f"main({each!r}, standalone_mode=False)\n" for each in words)
    program += f"""print({heavy} & set(sys.modules))
heavy = {{'torch', 'torchvision', 'numpy', 'sklearn', 'onnx', 'onnxruntime', 'mlperf_loadgen'}}
import wmlc.bench.scenarios
print(heavy & set(sys.modules))
import wmlc.bench.config, wmlc.data, wmlc.export.config
print(heavy & set(sys.modules))
try:
    main(['train', '--epochs', '-1'])
finally:
    print(heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    first, *helped, last, scenarios, options, refused = done.stdout.splitlines()
    assert {first, last, scenarios, options, refused} == {"set()"}, done.stderr or done.stdout
    assert sum(line.startswith("Usage:") for line in helped) == len(words)
    assert (done.returncode, done.stderr) == (1, "Error: epochs must be at least 0, got -1\n")


def test_torch_pruning_is_not_what_loading_could_import() -> None:
    """As `models` knows no other room."""
    imports = {named(path): set(imported_modules(*parse(path))) for path in FILES}
    knows = {name for name, found in imports.items() if any(own.split(".")[0] == "torch_pruning" for own in found)}
    assert knows and {name.split("/")[0] for name in knows} == {"compress"}


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
