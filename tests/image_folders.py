"""Folders of small random images, as `--data imagefolder` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wmlc.data import Data, DataConfig, open_data


def make_folder(root: Path, train: int = 10, test: int = 3, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Classes `cat` and `dog`, of `train` and `test` random images each, all different."""
    draw = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                pixels = draw.integers(1, 256, shape, dtype=np.uint8)  # no black: the padding is black
                Image.fromarray(pixels).save(root / part / name / f"{i:02}.png")
    return root


def open_folder(root: Path, **options: Any) -> Data:
    return open_data(DataConfig(root=root, **{"name": "imagefolder", "workers": 0, **options}))
