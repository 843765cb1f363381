"""The files of a run that a bench opens, made where they are missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wmlc.accuracy import images_a_call
from wmlc.data import Data
from wmlc.errors import InputError
from wmlc.export.config import ExportConfig
from wmlc.export.extract import is_of, run_file, sha256_of_weights, write_file
from wmlc.run import Run, read_family, select_peers


def kept_file(run: Run, peer: int, data: Data, config: ExportConfig) -> Path:
    """A network's file in `config`'s form, in the run, made where it is missing or of other weights."""
    file = run_file(run, peer, config.form)
    if not is_of(file, sha256_of_weights(run, peer)):
        write_file(run, peer, file, data, config, measured=False)
    return file


def bench_forms(
    run: Run, data: Data, precisions: Sequence[str], target: str | None, *, plans: bool, batches: Sequence[int]
) -> dict[str, dict[tuple[int, str], Path | InputError]]:
    """The files of all networks that a bench runs: "onnx" and, with `plans`, "plan", by (peer number, precision).

    In the place of one that cannot be made stands why; raises the first of these errors where there is no file at all.
    """
    files: dict[str, dict[tuple[int, str], Path | InputError]] = {kind: {} for kind in ("onnx", "plan")[: 1 + plans]}
    peers = select_peers(read_family(run), "all")
    for name, peer in itertools.product(precisions, peers):
        form = ExportConfig(precision=name, target=target if name == "int8" else None)
        files["onnx"][peer, name] = file = _or_why(kept_file, run, peer, data, form)
        if plans:
            files["plan"][peer, name] = (
                file if isinstance(file, InputError) else _or_why(kept_plan, file, data, batches)
            )
    failures = [file for file in files["onnx"].values() if isinstance(file, InputError)]
    if len(failures) == len(files["onnx"]):
        raise failures[0]
    return files


def _or_why(make: Callable[..., Path], *what: Any) -> Path | InputError:
    try:
        return make(*what)
    except InputError as error:
        return error


def kept_plan(file: Path, data: Data, batches: Sequence[int]) -> Path:
    """The TensorRT plan of an ONNX `file`, beside it, for `batches` and for the test set."""
    from wmlc.export.to_tensorrt import plan_for

    _, height, width = data.input_shape
    return plan_for(file, (*batches, images_a_call(height, width)))
