"""Folders of small random images, as `--data imagefolder` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
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


def read_part(folder: Path) -> torch.Tensor:
    """uint8 [N, H, W, C] in the order of sorted paths."""
    arrays = [np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    return torch.from_numpy(np.stack(arrays))


def to_pixels(images_NCHW: torch.Tensor, data: Data) -> torch.Tensor:
    """Undo `normalise`: uint8 [N, H, W, C]."""
    mean, std = torch.tensor(data.record.mean), torch.tensor(data.record.std)
    return ((images_NCHW.permute(0, 2, 3, 1) * std + mean) * 255).round().to(torch.uint8)


def rows(pixels_NHWC: torch.Tensor) -> set[bytes]:
    return {pixels.numpy().tobytes() for pixels in pixels_NHWC}
