"""Some 700 damaged or hostile inputs, the same ones in each run: each is answered in words, or taken for what it is.

Whatever lies in a run, a repository, a recipe, a checkpoint or an option: no traceback, no hang, nothing written
outside the place that a command writes to, and no code run.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from damage import Damage, byte_damage, file_damage, json_damage, recipe_damage, to_bytes
from made_files import write_run
from onnx import TensorProto, helper

from wmlc import records
from wmlc.cli import main
from wmlc.files import MOST_BYTES
from wmlc.records import Progress

MOST_SECONDS, MORE_BYTES = 10, 2 << 30  # that a command may take for an input
RUN, OUT = "runs/one", "out"  # in the working directory: what commands may change
Words = Sequence[str]
LIST, LIST_JSON, COMPARE = ("list",), ("list", "--json"), ("compare", RUN)
CHOOSE = ("choose", "--run", RUN, "--max-latency-ms", "3")
SHIP = ("ship", "--run", RUN, "--peer", "1,2", "--out", f"{OUT}/models")
SHIP_PLAN = (*SHIP, "--engine", "trt", "--peer", "1")
REPORT = ("report", RUN, "--out", f"{OUT}/page.html")
PLOT = ("plot", RUN, "--figure", "weights", "--out", f"{OUT}/plots")
EXTRACT = ("extract", "--run", RUN, "--peer", "1", "--out", f"{OUT}/peer")
RESUME = ("train", "--resume", "--out", RUN)


@dataclass(frozen=True)
class House:
    """A directory to work in that holds one run, and beside it what no command may touch."""

    root: Path
    content: dict[Path, bytes]

    @property
    def sentinel(self) -> Path:
        return self.root / "code-ran"

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    def here(self, name: str) -> Path:
        return self.root / "work" / name


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    root = tmp_path_factory.mktemp("house")
    write_run(root / "work" / RUN)
    (root / "secret").write_text("SECRET WORDS")
    (root / "work" / "evil.py").write_text(f"import pathlib\npathlib.Path({str(root / 'code-ran')!r}).touch()\n")
    (root / "work" / "mine.yaml").write_text("epochs: 1\n")
    shutil.copy(root / "work" / RUN / "onnx" / "family-peer1.onnx", root / "work" / "mine.onnx")
    (root / "work" / OUT).mkdir()
    return House(root, {path: path.read_bytes() for path in root.rglob("*") if path.is_file()})


def allowed(house: House, path: Path) -> bool:
    """Whether commands may change this."""
    return any(part in path.parents or part == path for part in (house.here(RUN), house.here(OUT)))


def restore(house: House, touched: Path) -> None:
    """Put everything that commands may change back as it was."""
    for path in sorted(house.root.rglob("*"), reverse=True):
        strange = path not in house.content and (path.is_symlink() or not path.is_dir())
        if path == touched or strange:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in (*house.here(OUT).glob("*"), house.here(f"{RUN}/checkpoint")):
        if path.is_dir() and not any(path in known.parents for known in house.content):
            shutil.rmtree(path)
    for path, content in house.content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            path.write_bytes(content)


def trespasses(house: House, touched: Path) -> list[str]:
    """What was made, changed or removed where no command may do so."""
    there = {path for path in house.root.rglob("*") if path.is_symlink() or not path.is_dir()}
    made = [str(path) for path in there - house.content.keys() if not allowed(house, path) and path != touched]
    changed = [
        str(path) for path, content in house.content.items()
        if path != touched and not allowed(house, path) and (not path.is_file() or path.read_bytes() != content)
    ]  # fmt: skip
    return made + changed


class Hang(BaseException):
    """No command may catch this."""


def too_long(number: int, frame: FrameType | None) -> None:
    raise Hang(f"no answer within {MOST_SECONDS} s")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """An input that makes a command think for long, or take much memory, is an error instead of a hang."""
    mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(MOST_SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + MORE_BYTES, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def faults(house: House, words: Words) -> tuple[int, list[str]]:
    """The exit code of a command, and what of its answer nobody should get to see."""
    try:
        with bounded():
            result = CliRunner().invoke(main, list(words))
    except Hang as hang:
        return 1, [str(hang)]
    said, found = result.output, []
    lines = said.splitlines()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        found.append(f"{type(result.exception).__name__}: {str(result.exception)[:300]}")
    elif result.exit_code not in (0, 1, 2, 3):
        found.append(f"exit code {result.exit_code}")
    elif result.exit_code in (1, 3):
        errors = [line for line in lines if line.startswith("Error: ")]
        if len(errors) != 1 or lines[-1] != errors[0]:
            found.append(f"not one line that begins with Error: and ends the output: {said[-300:]!r}")
    if "Traceback" in said:
        found.append("a traceback")
    if "\x1b" in said:
        found.append("an escape sequence")
    if "SECRET" in said:
        found.append("a secret")
    if house.sentinel.exists():
        found.append("CODE WAS RUN")
    return result.exit_code, found


def survey(
    house: House, name: str, inputs: Iterable[Damage], first: Sequence[Words], then: Sequence[Words] = ()
) -> None:
    """Plant each input as the file `name`, and ask one of the commands `first`; where it refuses, one of `then` too."""
    bad, path, luck = [], house.here(name), random.Random(0)
    for number, damage in enumerate(inputs):
        restore(house, path)
        damage.plant(path)
        asked = first[number % len(first)]
        code, found = faults(house, asked)
        if then and code == 1:
            asked = luck.choice(then)
            found += faults(house, asked)[1]
        found += [f"trespassed: {place}" for place in trespasses(house, path)]
        bad += [f"{name}, {damage.label}, {' '.join(asked)}: {fault}" for fault in found]
    restore(house, path)
    assert not bad, "\n".join(bad)


def damages(house: House, name: str, by_field: int, by_byte: int) -> Iterator[Damage]:
    """Everything that can be wrong with a file of JSON; fields are those of its first line."""
    content, luck = house.here(name).read_bytes(), random.Random(name)
    text = content.decode()
    if by_field:
        line = text if name.endswith(".json") else text.splitlines()[0]
        yield from json_damage(line, luck, by_field)
    yield from byte_damage(content, luck, by_byte)
    yield from file_damage(content, house.sentinel, house.secret, MOST_BYTES)


@pytest.fixture(autouse=True)
def no_charts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the house; what draws charts in a report takes seconds, and reads nothing of a run."""
    from wmlc.report import page

    monkeypatch.chdir(house.root / "work")
    monkeypatch.setattr(page, "_bundle", lambda: "")  # not what it calls, as it keeps what that gave


# file, damages to fields and to bytes, commands that read it, and costly ones that are asked where those refuse
READ_BY: dict[str, tuple[int, int, Sequence[Words], Sequence[Words]]] = {
    "family.json": (50, 8, (COMPARE, LIST, CHOOSE, SHIP, LIST_JSON, REPORT), (REPORT, PLOT, EXTRACT)),
    "bench.json": (50, 8, (CHOOSE, SHIP, COMPARE, REPORT), (REPORT,)),
    "metrics.jsonl": (30, 6, (COMPARE, REPORT, LIST), (REPORT, PLOT)),
    "config.json": (30, 6, (COMPARE, SHIP), (REPORT, PLOT)),
    "peers/1/spec.json": (30, 6, (EXTRACT, SHIP), ()),
    "onnx/family-peer1.plan.json": (20, 4, (SHIP_PLAN,), ()),
}


@pytest.mark.parametrize("command", [LIST, LIST_JSON, COMPARE, CHOOSE, SHIP, SHIP_PLAN, REPORT, PLOT, EXTRACT, RESUME])
def test_what_is_whole_is_taken(command: Words, house: House) -> None:
    result = CliRunner().invoke(main, list(command))
    restore(house, house.sentinel)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", READ_BY)
def test_no_record_of_a_run_brings_a_command_down(name: str, house: House) -> None:
    by_field, by_byte, first, then = READ_BY[name]
    inputs = list(damages(house, f"{RUN}/{name}", by_field, by_byte))
    survey(house, f"{RUN}/{name}", inputs, first, then)


def test_no_manifest_brings_ship_down(house: House) -> None:
    restore(house, house.sentinel)
    assert CliRunner().invoke(main, list(SHIP)).exit_code == 0
    (model,) = house.here(f"{OUT}/models").glob("*_p07")
    manifest = model / "1" / "manifest.json"
    shipped = {path: path.read_bytes() for path in house.here(OUT).rglob("*") if path.is_file()}
    served = replace(house, content=house.content | shipped)
    name = str(manifest.relative_to(house.root / "work"))
    survey(served, name, list(damages(served, name, 15, 4)), (SHIP,))
    restore(house, house.sentinel)


def test_no_weights_bring_extract_down(house: House) -> None:
    name, luck = f"{RUN}/peers/1/weights.safetensors", random.Random(1)
    content = house.here(name).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    inputs = [*byte_damage(content, luck, 16), *file_damage(content, house.sentinel, house.secret, MOST_BYTES)]
    for damage in json_damage(json.dumps(header), luck, 16):
        damage.plant(house.here("header"))
        made = house.here("header").read_bytes()
        inputs.append(replace(damage, plant=lambda path, made=made: path.write_bytes(
            len(made).to_bytes(8, "little") + made + content[8 + int.from_bytes(content[:8], "little"):])))  # fmt: skip
    house.here("header").unlink()
    torch.save({"a": torch.zeros(1)}, house.here("saved"))
    saved = house.here("saved").read_bytes()
    house.here("saved").unlink()
    inputs.append(Damage("torch.save", to_bytes(saved)))
    survey(house, name, inputs, (EXTRACT,))


def test_no_onnx_file_brings_bench_down(house: House) -> None:
    def told(key: str, value: str) -> Damage:
        model = onnx.load(house.here("mine.onnx"))
        helper.set_model_props(model, {key: value})
        return Damage(f"{key} {value[:20]}", lambda path: path.write_bytes(model.SerializeToString()))

    def elsewhere(location: str) -> Damage:
        model = onnx.load(house.here("mine.onnx"))
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        return Damage(f"weights in {location}", lambda path: path.write_bytes(model.SerializeToString()))

    content = house.here("mine.onnx").read_bytes()
    inputs = [
        *byte_damage(content, random.Random(2), 20),
        *file_damage(content, house.sentinel, house.secret, MOST_BYTES),
    ]
    inputs += [told(key, value) for key in ("ratio", "mean", "std", "input_shape", "precision", "top1")
               for value in ("9" * 6000, "[" * 5000, "NaN", "1e999", '"../../x"', "\x1b[31m", "[-1, 0]")]  # fmt: skip
    inputs += [
        elsewhere(place) for place in ("../secret", str(house.secret), "missing", "evil.py", "../../../etc/passwd")
    ]
    # the second file is missing, so that no engine is started where the first is good after all
    survey(house, "mine.onnx", inputs, (("bench", "mine.onnx", "missing.onnx", "--out", f"{OUT}/b.json"),))


def test_no_recipe_brings_a_plan_down(house: House) -> None:
    command = ("train", "mine.yaml", "--dry-run", *NO_DATA)
    inputs = [*recipe_damage(house.sentinel, random.Random(3), 40)]
    inputs += file_damage(b"epochs: 1\n", house.sentinel, house.secret, MOST_BYTES)
    survey(house, "mine.yaml", inputs, (command,))


@pytest.mark.parametrize("changes", [{"epoch": 10**9}, {"peer_weights": [1.0]}])
def test_no_training_state_is_believed_that_cannot_be(changes: dict[str, Any], house: House) -> None:
    state = Progress(phase="family", peer_weights=[0.5, 0.5], epoch=1, step=4, seconds=1.0, best_epoch=1,
                     best_top1=50.0, best_peer_weights=[0.5, 0.5])  # fmt: skip
    file = house.here(f"{RUN}/checkpoint/state.json")
    file.parent.mkdir()
    file.write_text(json.dumps(json.loads(records.text(state)) | changes))
    house.here(f"{RUN}/family.json").unlink()
    result = CliRunner().invoke(main, list(RESUME))
    restore(house, file)
    assert result.exit_code == 1 and "state.json" in result.output.splitlines()[-1], result.output


# The images are looked for before anything is computed, and are not there
NO_DATA = ("--data", "imagefolder", "--data-root", "missing")
OPTIONS: tuple[tuple[Words, Sequence[str]], ...] = (
    (("train", "--dry-run", *NO_DATA), ("--epochs", "--lr", "--ratios", "--divisor", "--arch", "--share", "--method", "--seed")),
    (("choose", "--run", RUN), ("--max-latency-ms", "--max-bytes", "--max-macs", "--min-top1", "--engine", "--batch")),
    (("compare", RUN), ("--paper", "--format")),
    (("plot", RUN), ("--figure",)),
    (("ship", "--run", RUN, "--peer", "9"), ("--peer", "--to", "--precision", "--device", "--min-top1", "--max-batch")),
    (("extract", "--run", RUN, "--peer", "9", "--out", f"{OUT}/x.onnx"), ("--peer", "--precision", "--batch-range", "--run")),
    (("bench", "missing.onnx"), ("--engine", "--batch", "--threads", "--seconds", "--precision", "--run")),
)  # fmt: skip
TYPED = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
    "9" * 6000,
    "9" * 5000 + ".5",
    "\x1b[31m",
    "../../x",
    "/",
    "é\u202e",
    "1,,2",
    "-",
    "%s",
)


def test_no_option_brings_a_command_down(house: House) -> None:
    luck, bad = random.Random(4), []
    for command, options in OPTIONS:
        for option in options:
            for typed in luck.sample(TYPED, 3):
                _, found = faults(house, (*command, f"{option}={typed}"))
                found += [f"trespassed: {place}" for place in trespasses(house, house.sentinel)]
                bad += [f"{' '.join(command)} {option}={typed[:20]!r}: {fault}" for fault in found]
    restore(house, house.sentinel)
    assert not bad, "\n".join(bad)


def test_links_out_of_a_run_are_not_written_through(house: House) -> None:
    for name, command in (("report.html", ("report", RUN)), (f"../../{OUT}/page.html", (*REPORT, "--force"))):
        link = house.here(f"{RUN}/{name}")
        link.symlink_to(house.secret)
        faults(house, command)
        assert house.secret.read_text() == "SECRET WORDS"
        restore(house, house.sentinel)
    assert not list(house.here(OUT).iterdir())
