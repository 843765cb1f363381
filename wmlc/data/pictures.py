"""One picture file → 8 bits of grey or colour, upright and opaque: what every network is fed from.

N images, H height, W width
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmlc import errors
from wmlc.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# The endings that count as pictures, and what Pillow may take such a file for: no other decoder sees it, whatever
# the file holds. A PNG that is called .jpg is read, as viewers do.
_FORMAT = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".ppm": "PPM",
    ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
ENDINGS, FORMATS = tuple(_FORMAT), tuple(dict.fromkeys(_FORMAT.values()))

_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
_LIGHT = 224  # what is nowhere darker than this cannot be told from white ground
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_PALETTE = ("P", "PA")
_ORIENTATION = 0x0112  # EXIF's tag; TIFF's too, which Pillow obeys by itself
# By orientation, the `Transpose` of Pillow that sets a picture upright
_TURN = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
_SIDEWAYS = (5, 6, 7, 8)  # the turns after which width and height have changed places
REPAIR = "; repair or remove it, or train with --skip-broken"
# Names hold none of these: control characters, line breaks of Unicode, halves of a character
BETWEEN = "\0"  # the parts of a packed picture's name
_UNFIT = ("Cc", "Zl", "Zp", "Cs")


@dataclass(frozen=True)
class Header:
    """What a picture's header says of it: how it is stored, and how it will be."""

    width: int  # upright
    height: int
    mode: str  # Pillow's word for how pixels are stored
    format: str
    grey: bool
    turned: bool  # its EXIF has it turned or mirrored
    alpha: bool  # it may be transparent


def read_header(path: str) -> Header:
    """The header of the picture at `path`; `InputError` where it cannot be used."""
    return _with_file(path, _header)


def read_picture(path: str) -> Image:
    """The picture at `path` as 8 bits of grey (mode L) or colour (RGB), upright and opaque.

    16 bits are scaled from their whole range, transparent parts show a plain ground (`on_ground`), and EXIF's
    orientation is obeyed. `InputError` for what is no picture, or has pixels that have no one meaning as 8 bits.
    """
    return _with_file(path, _upright)


def shown(name: str) -> str:
    """A name as a message may hold it: what would break a line, move a cursor or is no Unicode stands as an escape.

    Of a packed picture: the file's, and its own in it.
    """
    if BETWEEN in name:
        where, first, *_, own = name.split(BETWEEN)
        name = f"{where}: {own}" if first.isdigit() else f"{where}: row {own} of {first}"
    return "".join(_escape(c) if unicodedata.category(c) in _UNFIT else c for c in name)


def unfit_letters(name: str) -> list[str]:
    """What no name of a class may have, each as an escape: control characters, line breaks, and what is no Unicode."""
    return sorted({_escape(c) for c in name if unicodedata.category(c) in _UNFIT})


def one_line_shown(error: Exception) -> str:
    """What an exception says, in one line and `shown`."""
    return shown(errors.one_line(error, None))


def _escape(letter: str) -> str:
    """A byte of a name that is no UTF-8 comes as half of a character, U+DC80 and up."""
    byte = ord(letter) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(letter)[1:-1]


def _with_file(path: str, use: Callable[[Image], Any]) -> Any:
    """What `use` makes of the opened file. Decoders raise what they like: OSError, SyntaxError, struct.error."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(_opened(path), formats=FORMATS) as file:
            return use(file)
    except InputError as error:
        raise InputError(f"{shown(path)} {error}") from None
    except FileNotFoundError:
        raise InputError(f"there is no picture {shown(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{shown(path)} is a folder; name the pictures in it") from None
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise InputError(f"{shown(path)} is not a readable image (it is none of {kinds}){REPAIR}") from None
    except Exception as error:
        raise InputError(f"{shown(path)} is not a readable image ({one_line_shown(error)}){REPAIR}") from None


def _opened(path: str) -> str | io.BytesIO:
    from wmlc.data.packed import bytes_of

    return bytes_of(path) if BETWEEN in path else path


def _header(file: Image) -> Header:
    turn, (width, height) = _turn(file), file.size
    if turn in _SIDEWAYS:
        width, height = height, width
    return Header(width, height, file.mode, file.format or "", is_grey(file), turn in _TURN, _has_alpha(file))


def _turn(file: Image) -> int:
    """EXIF's orientation; 1 (upright) where there is none or it is damaged, and of a TIFF, as Pillow turns those."""
    from PIL import Image

    if file.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(file).get(_ORIENTATION, 1))  # PNG's own would decode the whole file
    except Exception:  # a damaged EXIF says nothing; the picture itself is whole
        return 1


def is_grey(file: Image) -> bool:
    """Whether a picture will be grey once it is converted; `InputError` for a mode without one meaning."""
    if file.mode in _PALETTE:
        palette = file.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3] != []
    if file.mode not in _GREY + _COLOUR:
        raise InputError(f"has pixels of mode {file.mode}, which has no one meaning here; save it as RGB or grey")
    return file.mode in _GREY or _raw_mode(file) == "LA;16B"  # which Pillow opens as colour


def _raw_mode(file: Image) -> str:
    """How the file itself stores pixels, by Pillow's name."""
    tiles: Any = getattr(file, "tile", None)
    args = tiles[0][3] if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _has_alpha(file: Image) -> bool:
    return bool(file.has_transparency_data)


def _upright(file: Image) -> Image:
    from PIL import Image

    raw, grey = _raw_mode(file), is_grey(file)
    file.load()
    picture = _plain(file, raw, grey)
    turn = _TURN.get(_turn(file))
    return picture.transpose(Image.Transpose[turn]) if turn else picture


def _plain(file: Image, raw: str, grey: bool) -> Image:
    """8 bits, opaque: mode L where it is `grey`, else RGB."""
    if file.mode == "I" or file.mode == "F" or file.mode.startswith("I;16"):
        return _from_range(file)
    mode = "L" if grey else "RGB"
    if not _has_alpha(file):
        return file.convert(mode)
    rgba = _with_alpha(file, raw)
    if rgba.getchannel("A").getextrema() == (255, 255):
        return rgba.convert(mode)
    return on_ground(rgba).convert(mode)


def _with_alpha(file: Image, raw: str) -> Image:
    """RGBA of a picture that has an alpha channel, or a colour that stands for transparent."""
    clear = file.info.get("transparency")
    if file.mode == "L" and isinstance(clear, int):  # given in the file's own 2 or 4 bits
        file.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(raw, 1)
    if file.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:  # given in 16 bits
        file.info["transparency"] = tuple(value >> 8 for value in clear)
    return (file.convert("LA") if file.mode == "La" else file).convert("RGBA")


def on_ground(rgba: Image) -> Image:
    """A transparent picture over white; over black where on white all of it would be lost (white drawings)."""
    from PIL import Image

    on_white = Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba)
    if min(low for low, _ in on_white.convert("RGB").getextrema()) < _LIGHT:  # type: ignore[misc]
        return on_white
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _BLACK), rgba)


def _from_range(file: Image) -> Image:
    """Grey of more than 8 bits → mode L, by the range that the format gives its numbers."""
    import numpy as np
    from PIL import Image

    values_HW = np.asarray(file)
    if file.mode == "F":
        # numbers beyond 0 … 1 (and NaN, which fails any comparison) have no black and white that a file tells
        if not (values_HW.min() >= 0 and values_HW.max() <= 1):
            raise InputError("has pixels as fractions that are not all within 0 … 1; scale them, or save 8 or 16 bits")
        return Image.fromarray(np.rint(values_HW * 255).astype(np.uint8))
    tags: Any = getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
    if file.mode == "I" and file.format not in ("PNG", "PPM"):
        raise InputError("has pixels as 32-bit or signed numbers, of which no range is known; save 8 or 16 bits")
    bits = min(tags.get(258, (16,))[0], 16)  # BitsPerSample
    whitest = 2**bits - 1
    grey_of = np.rint(np.arange(whitest + 1) * (255 / whitest)).astype(np.uint8)
    grey_HW = grey_of[values_HW.clip(0, whitest)]
    if tags.get(262) == 0:  # PhotometricInterpretation: white is 0
        grey_HW = 255 - grey_HW
    return Image.fromarray(_over_clear(grey_HW, values_HW, file.info.get("transparency")))


def _over_clear(grey_HW: np.ndarray, values_HW: np.ndarray, clear: Any) -> np.ndarray:
    """The ground where a 16-bit picture has the one value that stands for transparent."""
    import numpy as np

    if not isinstance(clear, int) or not (seen_HW := values_HW != clear).any():
        return grey_HW
    ground = 255 if grey_HW[seen_HW].min() < _LIGHT else 0
    return np.where(seen_HW, grey_HW, np.uint8(ground))
