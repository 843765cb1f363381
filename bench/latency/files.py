"""A network at any widths, as the file that an engine opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from wmlc.bench.latency.template import EXPORTS, Template
from wmlc.console import progress
from wmlc.models.resizable import Resizable

ToOnnx = Callable[[nn.Module, Resizable, Path], None]  # a dense network of this kind → the file that shall be served
LEAST_SHARE = 0.3  # of a group's units, of the exports that a template is read off
TRIES = 100  # of counts that tell all numbers apart


class NetworkFiles:
    """Makes a network's ONNX file at any widths; the exports that it is read off are made at once.

    Raises `InputError` as `Template.of` does.
    """

    def __init__(self, network: Resizable, to_onnx: ToOnnx, directory: Path) -> None:
        import onnx

        self.full = directory / "full.onnx"
        counts_VG, exports = _telling_counts(network), []
        with progress(f"exporting {network.arch}", EXPORTS, "files") as advance:
            for number, counts_G in enumerate(counts_VG):
                file = self.full if number == 0 else directory / f"other{number}.onnx"
                to_onnx(network.build(counts_G), network, file)
                exports.append(onnx.load(str(file)))
                advance(1)
        sums = [
            (round(float(fixed)), each_G)
            for fixed, each_G in (
                *zip(network.fixed_columns, network.columns, strict=True),
                *zip(network.fixed_rows, network.rows, strict=True),
            )
            if np.count_nonzero(each_G) > 1
        ]
        self._template = Template.of(exports, counts_VG, sums)

    def write(self, counts_G: np.ndarray, path: Path) -> None:
        """The file of the network with these counts."""
        self._template.write(counts_G, path)


def _telling_counts(network: Resizable) -> np.ndarray:
    """The full counts, and others that tell groups of the same size apart by how they differ, int [V, G]."""
    draw, full_G = np.random.default_rng(0), network.full
    least_G = np.maximum(1, np.ceil(LEAST_SHARE * full_G)).astype(int)
    most_G = np.maximum(least_G, full_G - 1)
    best, apart = full_G[None], -1
    for _ in range(TRIES):
        others_VG = draw.integers(least_G, most_G + 1, size=(EXPORTS - 1, len(full_G)))
        found = len({tuple(steps) for steps in (full_G - others_VG).T.tolist()})
        if found > apart:
            best, apart = np.concatenate([full_G[None], others_VG]), found
        if apart == len(full_G):
            break
    return best
