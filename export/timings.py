"""How long TensorRT's kernels took in former builds, kept in the user's cache so that the next build is quick."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from wmlc.console import note
from wmlc.errors import InputError
from wmlc.files import new_file, user_cache
from wmlc.records import Machine

_DIGEST_BYTES = 32  # before the timings, so that TensorRT never sees damaged ones


def timings_file(machine: Machine) -> Path:
    """Where builds on this `machine` keep the timings of kernels, one file a TensorRT version and model of GPU."""
    parts = ("tensorrt", machine.tensorrt, machine.gpu, machine.compute_capability)
    return user_cache() / (re.sub(r"[^\w.-]+", "-", "-".join(map(str, parts))) + ".timings")


def read_timings(file: Path) -> bytes:
    """The timings kept in `file`; none where there is no such file and, with a word, where it is damaged."""
    if not file.is_file():
        return b""
    content = file.read_bytes()
    digest, timings = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(timings).digest() == digest:
        return timings
    note(f"the kept timings {file} are damaged; starting anew")
    return b""


def keep_timings(file: Path, timings: bytes) -> None:
    """Write `timings` to `file` for the next build; where that fails, a word: the plan is none the worse."""
    try:
        with new_file(file) as aside:
            aside.write_bytes(hashlib.sha256(timings).digest() + timings)
    except (InputError, OSError) as error:
        note(f"timings are not kept for the next build: {error}")


def attach_timings(config: Any, file: Path) -> None:
    """Give `config` the timings kept in `file`, or an empty cache, with a word where they are not of this machine."""
    cache = config.create_timing_cache(read_timings(file))
    if cache is None or not config.set_timing_cache(cache, False):
        note(f"the kept timings {file} do not fit this TensorRT and GPU; starting anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)
