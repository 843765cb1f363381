"""How far an engine's logits are from a reference's, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wmlc.accuracy import relative_error


def test_one_image_of_many_counts_in_full_in_fp32_and_by_its_square_otherwise() -> None:
    expected = np.tile(np.array([1.0, -0.5], np.float32), (256, 1))
    logits = expected.copy()
    logits[200, 1] -= 0.2
    assert relative_error(logits, expected, "fp32") == pytest.approx(0.2, rel=1e-5)
    mean_square, size = 0.2**2 / 512, (1 + 0.25) / 2
    assert relative_error(logits, expected, "int8") == pytest.approx((mean_square / size) ** 0.5, rel=1e-5)
