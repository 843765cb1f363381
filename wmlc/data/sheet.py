"""The contact sheet of `wmlc data`: one PNG of augmented training images and of test images, as a network gets them.

B batch, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlc.data import data_of
from wmlc.data.decode import ImageFiles, large_transform, small_transform, spread
from wmlc.errors import InputError
from wmlc.files import new_file, refuse_existing

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from wmlc.data.parts import Parts

_SHOWN = 24  # images of each part
_LEAST_SIDE = 96  # smaller images are enlarged by whole numbers, so that each pixel stays one square
_WIDTH = 1536  # of a row of images, about
_CAPTION, _TITLE, _GAP = 16, 28, 6
_MARK = ("Software", "wmlc data")  # of a sheet that may be replaced


def refuse_foreign(out: Path, force: bool) -> None:
    """Raise `InputError` where `out` exists and is no contact sheet of an earlier look, unless with `force`."""
    from PIL import Image

    if out.suffix.lower() != ".png":
        raise InputError(f"--out must be FILE.png, got {out}")
    if out.is_file():
        try:
            with Image.open(out, formats=("PNG",)) as sheet:
                force = force or sheet.info.get(_MARK[0]) == _MARK[1]
        except OSError:
            pass
    refuse_existing(out, force)


def write_sheet(out: Path, parts: Parts) -> None:
    """Write the sheet: the first images of a first epoch, and test images evenly spread."""
    import torch
    from PIL import PngImagePlugin

    data, names = data_of(parts), parts.train.class_names
    images_BCHW, labels_B = next(iter(data.train_batches(min(_SHOWN, data.record.train), epoch=0)))
    mean_C, std_C = torch.tensor(data.record.mean), torch.tensor(data.record.std)
    train_BHWC = ((images_BCHW.permute(0, 2, 3, 1) * std_C + mean_C) * 255).round().clamp(0, 255).to(torch.uint8)
    layout, config = parts.layout, parts.config
    transform = small_transform(config, layout) if layout.small else large_transform(config, layout, augment=False)
    files = ImageFiles(part=parts.test, layout=layout, transform=transform)
    test: list[tuple[torch.Tensor, int]] = []
    for place in spread(len(files), _SHOWN):
        item = files[place]
        if isinstance(item, InputError):
            raise item
        test.append(item)
    sheet = _draw(
        [
            ("training images, augmented", list(train_BHWC), [names[label] for label in labels_B.tolist()]),
            ("test images", [pixels for pixels, _ in test], [names[label] for _, label in test]),
        ]
    )
    about = PngImagePlugin.PngInfo()
    about.add_text(*_MARK)
    with new_file(out) as aside:
        sheet.save(aside, format="PNG", pnginfo=about)


def _draw(parts: Sequence[tuple[str, Sequence[torch.Tensor], Sequence[str]]]) -> Image.Image:
    """Under each title its images, uint8 [H, W, C], in rows, with the class of each below it."""
    from PIL import Image, ImageDraw

    height, width, _ = parts[0][1][0].shape
    scale = max(1, -(-_LEAST_SIDE // max(height, width)))
    cell_height, cell_width = height * scale + _CAPTION + _GAP, max(width * scale, _LEAST_SIDE) + _GAP
    columns = max(1, min(_SHOWN // 2, _WIDTH // cell_width))
    rows = [-(-len(tiles) // columns) for _, tiles, _ in parts]
    sheet = Image.new("RGB", (columns * cell_width + _GAP, sum(_TITLE + n * cell_height for n in rows) + _GAP), "white")
    pen: Any = ImageDraw.Draw(sheet)
    top = 0
    for (title, tiles, classes), count in zip(parts, rows, strict=True):
        pen.text((_GAP, top + 8), title, fill="black")
        top += _TITLE
        for i, (pixels_HWC, name) in enumerate(zip(tiles, classes, strict=True)):
            x, y = _GAP + i % columns * cell_width, top + i // columns * cell_height
            tile = Image.fromarray(pixels_HWC.squeeze(-1).numpy() if pixels_HWC.shape[-1] == 1 else pixels_HWC.numpy())
            sheet.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
            pen.text((x, y + height * scale + 2), name[: cell_width // 7], fill="black")
        top += count * cell_height
    return sheet
