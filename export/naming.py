"""What a shipped model is called: what it is, in letters that every server and file system takes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from wmlc.arch import needs_caller
from wmlc.data.sources import PACKED
from wmlc.errors import InputError
from wmlc.files import short_hash, short_name
from wmlc.forms import file_name_of
from wmlc.records import NetworkSpec
from wmlc.run import BASELINE, Run, read_config, read_family

LONGEST = 120  # letters; a version's files and what is staged beside it need room under 255


def model_name(run: Run, spec: NetworkSpec, form: str) -> str:
    """resnet20_cifar10_p05: architecture, data set and ratio (of a peer that was cut for 12 ms, 12ms), and the
    precision if it is not fp32."""
    place, _, function = spec.arch.rpartition(":")
    code = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    own = f"{code}-{function}" if needs_caller(spec.arch) else file_name_of(spec.arch)
    parts = [own, data_name(run, spec), _which(run, spec), *([] if form == "fp32" else [form.removesuffix("-cpu")])]
    name, meant = _plain("_".join(parts)).lstrip("-"), "_".join(parts)
    if meant.isascii():
        return short_name(name, LONGEST, meant)
    return f"{name[: LONGEST - 9]}-{short_hash(meant)}"


def _plain(words: str) -> str:
    """With a dash for whatever some server or file system does not take."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in words)


def data_name(run: Run, spec: NetworkSpec) -> str:
    """The data set that a network was trained on; of pictures in a directory, the directory's name."""
    data = str(spec.about.data)
    if data in ("imagefolder", *PACKED):
        data = Path(read_config(run).settings.data_root or data).resolve().name
    return data


def _which(run: Run, spec: NetworkSpec) -> str:
    peer = spec.about.peer
    if peer is None or peer == BASELINE:
        return "ensemble" if peer is None else "baseline"
    labels = {own.peer: f"p{own.ratio:g}".replace(".", "") for own in read_family(run).peers}
    labels |= {own: _plain(f"{ms:g}ms") for own, ms in _asked_ms(run).items()}
    label = labels[peer]
    return f"{label}-{peer}" if list(labels.values()).count(label) > 1 else label


def _asked_ms(run: Run) -> dict[int, float]:
    """The milliseconds that were asked of each peer; their ratios are of what the whole network took that day."""
    with contextlib.suppress(InputError):
        record = read_config(run)
        if record.settings.max_latency_ms and record.latency is not None:
            return record.latency.budgets_ms
    return {}
