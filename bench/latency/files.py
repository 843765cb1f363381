"""A network at any widths, as the file that an engine opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from wmlc.bench.engines import NETWORK, PLAN
from wmlc.bench.latency.template import Template, told_apart
from wmlc.console import progress
from wmlc.files import new_directory
from wmlc.models.resizable import Resizable

LEAST_SHARE = 0.3  # of a group's units, of the exports that a template is read off
EXPORTS, MOST_EXPORTS = 3, 9  # the full network, and as many others as tell all numbers apart
TRIES = 100  # of counts, before there are more exports


ToOnnx = Callable[[nn.Module, Resizable, Path], None]  # a dense network of this kind → a file


@dataclass(frozen=True)
class Writers:
    """How a network becomes what shall be served."""

    to_onnx: ToOnnx
    to_plan: Callable[[Path, Sequence[int]], Path]  # such a file and batch sizes → a TensorRT plan


class NetworkFiles:
    """Makes a network at any widths into what an engine opens; the exports that files are read off are made at once.

    Raises `InputError` as `Template.of` does. Args: what the engine `takes`; the `batch` of its calls.
    """

    def __init__(self, network: Resizable, takes: str, writers: Writers, batch: int, directory: Path) -> None:
        import onnx

        self._network, self._takes, self._writers = network, takes, writers
        self._batch, self._directory = batch, directory
        self.full = directory / "full.onnx"
        if takes == NETWORK:  # torch needs no file, and this one names its layers
            writers.to_onnx(network.build(network.full), network, self.full)
            return
        sums = sums_of(network)
        counts_VG, exports = _telling_counts(network), []
        with progress(f"exporting {network.arch}", len(counts_VG), "files") as advance:
            for number, counts_G in enumerate(counts_VG):
                file = self.full if number == 0 else directory / f"other{number}.onnx"
                writers.to_onnx(network.build(counts_G), network, file)
                exports.append(onnx.load(str(file)))
                advance(1)
        self._template = Template.of(exports, counts_VG, sums)

    def write(self, counts_G: np.ndarray, name: str) -> Path:
        """What the engine opens of the network with these counts, under that name."""
        if self._takes == NETWORK:
            with new_directory(self._directory / name) as aside:
                self._network.save(counts_G, aside)
            return self._directory / name
        file = self._directory / f"{name}.onnx"
        if (counts_G == 0).any():  # a block is left out, and the file has other steps than the template
            self._writers.to_onnx(self._network.build(counts_G), self._network, file)
        else:
            self._template.write(counts_G, file)
        if self._takes == PLAN:
            return self._writers.to_plan(file, (self._batch,))
        return file


def sums_of(network: Resizable) -> list[tuple[int, np.ndarray]]:
    """What layers take and give of several groups together, each as (fixed, [G])."""
    sides = (
        *zip(network.fixed_columns, network.columns, strict=True), *zip(network.fixed_rows, network.rows, strict=True),
    )  # fmt: skip
    return [(round(float(fixed)), each_G) for fixed, each_G in sides if np.count_nonzero(each_G) > 1]


def _telling_counts(network: Resizable) -> np.ndarray:
    """The full counts, and others by which no two groups, or sums of them, grow alike, int [V, G].

    Not even in proportion, as a number may grow with any share of a group. Where a few exports cannot tell them apart,
    as in a network of many groups, there are more.
    """
    draw, full_G, sums = np.random.default_rng(0), network.full, sums_of(network)
    least_G = np.maximum(1, np.ceil(LEAST_SHARE * full_G)).astype(int)
    most_G = np.where(full_G > 2, full_G - 1, full_G)  # of two units both may stay, as all such groups lose one else
    best, most = full_G[None], -1
    for exports in range(EXPORTS, MOST_EXPORTS + 1):
        for _ in range(TRIES):
            others_VG = draw.integers(least_G, most_G + 1, size=(exports - 1, len(full_G)))
            counts_VG = np.concatenate([full_G[None], others_VG])
            apart, of = told_apart(counts_VG, sums)
            if apart == of:
                return counts_VG
            if apart > most:
                best, most = counts_VG, apart
    return best
