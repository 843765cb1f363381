"""The forms in which one network leaves a run: a precision and, for int8, what it shall run on."""

from __future__ import annotations

PRECISIONS = ("fp32", "fp16", "int8")
TARGETS = ("cpu", "gpu")  # of int8 only, as the two want different Q/DQ


def form_name(precision: str, target: str | None) -> str:
    """As file names carry it: fp32, fp16, int8-cpu, int8-gpu."""
    return f"int8-{target or 'cpu'}" if precision == "int8" else precision
