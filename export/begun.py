"""What an `extract` of several networks that was stopped has left, and may go over when it is asked again."""

from __future__ import annotations

from pathlib import Path

from wmlc import records
from wmlc.errors import InputError
from wmlc.export.about import read_about
from wmlc.export.config import PLAN_SUFFIXES, ExportConfig
from wmlc.files import sha256
from wmlc.models.checkpoint import WEIGHTS_FILE
from wmlc.plan_record import record_path
from wmlc.records import FileAbout, PlanRecord


def is_as_asked(output: Path, weights_sha256: str | None, config: ExportConfig, train_images: int) -> bool:
    """Whether an output is there, of these very weights and in the very form that `config` asks for."""
    if weights_sha256 is None:
        return False
    if output.is_dir():
        weights = output / WEIGHTS_FILE
        return weights.is_file() and sha256(weights) == weights_sha256
    try:
        if output.suffix not in PLAN_SUFFIXES:
            return _is_of(read_about(output), weights_sha256, config, train_images)
        plan = records.read(record_path(output), PlanRecord, "plan's record", "extract it again")
    except InputError:
        return False
    built = plan.batch_range, plan.version_compatible, plan.hardware_compatible
    asked = config.batch_range, config.version_compatible, config.hardware_compatible
    return built == asked and _is_of(plan.network, weights_sha256, config, train_images)


def _is_of(about: FileAbout, weights_sha256: str, config: ExportConfig, train_images: int) -> bool:
    form: tuple[object, ...] = config.precision, config.with_preprocess, None, None, None
    if config.precision == "int8":
        images = min(config.calibration, train_images)
        form = (*form[:2], config.target or "cpu", config.calibrator, images)
    says = about.precision, about.with_preprocess, about.target, about.calibrator, about.calibration_images
    return about.weights_sha256 == weights_sha256 and says == form
