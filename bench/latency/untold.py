"""What layers take where an engine times whole networks only: the times that add up to many of these best.

D networks of the design, V visits, X terms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wmlc.records import LayerShape

STEPS = 3000  # of a projected gradient, after which nothing moves in the fourth digit


def layers_told(
    ms_V: np.ndarray, designs_V: np.ndarray, channels_DL2: np.ndarray, shape_of_L: Sequence[LayerShape | None]
) -> np.ndarray:
    """The milliseconds of each layer in each network of the design, [D, L], of whole networks that took `ms_V`.

    A layer takes a + b·in + c·out + d·in·out milliseconds with a, b, c, d ≥ 0, the same for all layers of one shape,
    that lie nearest to all visits, relatively (non-negative least squares).
    """
    shapes: Mapping[LayerShape | None, int] = {shape: index for index, shape in enumerate(dict.fromkeys(shape_of_L))}
    largest_L2 = channels_DL2.max(0).astype(float)
    parts_DL2 = channels_DL2 / largest_L2
    ones_DL = np.ones(parts_DL2.shape[:2])
    terms_DL4 = np.stack([ones_DL, parts_DL2[..., 0], parts_DL2[..., 1], parts_DL2.prod(-1)], axis=-1)
    places_L = np.array([shapes[shape] for shape in shape_of_L])
    terms_DX = np.zeros((len(channels_DL2), 4 * len(shapes)))
    for layer, place in enumerate(places_L):
        terms_DX[:, 4 * place : 4 * place + 4] += terms_DL4[:, layer]
    found_X = _non_negative(terms_DX[designs_V] / ms_V[:, None], np.ones_like(ms_V))
    return np.einsum("dlt,lt->dl", terms_DL4, found_X.reshape(-1, 4)[places_L])


def _non_negative(terms_VX: np.ndarray, wanted_V: np.ndarray) -> np.ndarray:
    """x ≥ 0 with the least |terms · x − wanted|², by Nesterov's projected gradient."""
    product_XX, aim_X = terms_VX.T @ terms_VX, terms_VX.T @ wanted_V
    step = 1 / max(float(np.linalg.eigvalsh(product_XX)[-1]), 1e-12)
    found_X = ahead_X = np.zeros(terms_VX.shape[1])
    for number in range(STEPS):
        moved_X = np.maximum(ahead_X - step * (product_XX @ ahead_X - aim_X), 0.0)
        ahead_X = moved_X + number / (number + 3) * (moved_X - found_X)
        found_X = moved_X
    return found_X
