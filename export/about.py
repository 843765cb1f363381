"""What an ONNX file of ours says of itself, in its metadata: the fields of `FileAbout`, each value as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx

from wmlc import records
from wmlc.errors import InputError
from wmlc.records import FileAbout
from wmlc.trt_machine import short

OF_SOME = {
    "target",
    "calibrator",
    "calibration_images",
    "weights_sha256",
    "framing",
}  # left out of a file that they say nothing of


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
        raise InputError(f"{file} is not a readable ONNX file ({short(str(error))}); extract it again") from None
    return about_of(model, file)


def about_of(model: onnx.ModelProto, file: Path) -> FileAbout:
    """What `model`, read from `file`, says of itself."""
    known = FileAbout.__dataclass_fields__
    said = [f"{json.dumps(entry.key)}: {entry.value}" for entry in model.metadata_props if entry.key in known]
    return records.parse(f"{{{', '.join(said)}}}", FileAbout, file, "ONNX file of wmlc", "extract it again")
