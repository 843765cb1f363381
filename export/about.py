"""What an ONNX file of ours says of itself, in its metadata: the fields of `FileAbout`, each value as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx

from wmlc.errors import InputError, one_line
from wmlc.forms import about_of
from wmlc.records import FileAbout

# Left out of a file that they say nothing of
OF_SOME = {"target", "calibrator", "calibration_images", "weights_sha256", "start"}


def write_about(model: onnx.ModelProto, about: FileAbout) -> None:
    """Give `model` these facts, beside what other programs have noted in its metadata."""
    noted = {entry.key: entry.value for entry in model.metadata_props}
    said = {key: json.dumps(value) for key, value in asdict(about).items() if value is not None or key not in OF_SOME}
    onnx.helper.set_model_props(model, noted | said)


def read_about(file: Path) -> FileAbout:
    """What the ONNX file says of itself; `InputError` if it is no ONNX file, or not one of ours."""
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's, or the system's
        raise InputError(f"{file} is not a readable ONNX file ({one_line(error)}); extract it again") from None
    return about_in(model, file)


def about_in(model: onnx.ModelProto, file: Path) -> FileAbout:
    """What `model`, read from `file`, says of itself."""
    return about_of(model.metadata_props, file, "ONNX file of wmlc")
