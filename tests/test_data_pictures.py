"""What a picture file becomes: its range, its alpha, its orientation and its colour, whatever it is stored as."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_folders import make_folder, open_folder
from PIL import Image, PngImagePlugin

from wmlc.data.pictures import on_ground, read_header, read_picture
from wmlc.errors import InputError

GREY_HW = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLOUR_HWC = np.stack([GREY_HW, GREY_HW[::-1], 255 - GREY_HW], axis=-1)


def saved(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> str:
    """The file's path, as text, once it is written."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return str(path)


def raw_png(path: Path, pixels_HWC: np.ndarray, colour_type: int, clear: bytes = b"") -> str:
    """A PNG of 16 bits, which Pillow writes in grey only; `clear` is what stands for transparent."""
    height, width = pixels_HWC.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels_HWC)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    ]
    chunks[1:1] = [(b"tRNS", clear)] if clear else []
    chunks.append((b"IEND", b""))
    made = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(made))
    return str(path)


def test_ordinary_pictures_stay_as_they_are(tmp_path):
    for name, pixels in (("a.png", GREY_HW), ("b.png", COLOUR_HWC), ("c.bmp", COLOUR_HWC), ("d.ppm", COLOUR_HWC)):
        assert np.array_equal(read_picture(saved(tmp_path / name, pixels)), pixels)
    jpeg = saved(tmp_path / "e.jpg", COLOUR_HWC)
    assert np.array_equal(read_picture(jpeg), Image.open(jpeg))
    bits = saved(tmp_path / "f.png", Image.fromarray(GREY_HW > 100))
    assert np.array_equal(read_picture(bits), np.where(GREY_HW > 100, 255, 0))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path, name):
    path = saved(tmp_path / name, GREY_HW.astype(np.uint16) * 257)
    picture = read_picture(path)
    assert picture.mode == "L" and read_header(path).grey
    assert np.array_equal(picture, GREY_HW)


def test_sixteen_bits_of_grey_with_alpha_and_of_colour(tmp_path):
    opaque = np.stack([GREY_HW, np.full_like(GREY_HW, 255)], axis=-1).astype(np.uint16) * 257
    half = opaque.copy()
    half[:3, :, 1] = 0
    assert np.array_equal(read_picture(raw_png(tmp_path / "a.png", opaque, 4)), GREY_HW)
    assert np.array_equal(np.asarray(read_picture(raw_png(tmp_path / "b.png", half, 4)))[:3], np.full((3, 8), 255))
    assert read_header(str(tmp_path / "b.png")).grey
    assert np.array_equal(read_picture(raw_png(tmp_path / "c.png", COLOUR_HWC.astype(np.uint16) * 257, 2)), COLOUR_HWC)
    keyed = np.asarray(read_picture(raw_png(tmp_path / "d.png", opaque[..., :1], 0, clear=struct.pack(">H", 25 * 257))))
    assert keyed[0, 5] == 255 and np.array_equal(np.delete(keyed, 5), np.delete(GREY_HW, 5))


def test_a_shape_in_the_alpha_channel_is_seen(tmp_path):
    alpha_HW = np.zeros((6, 8), np.uint8)
    alpha_HW[:3] = 255
    for colour, shape, ground in ((0, 0, 255), (255, 255, 0), (240, 240, 0), (100, 100, 255)):
        pixels = np.full((6, 8, 4), colour, np.uint8)
        pixels[..., 3] = alpha_HW
        expected = np.where(alpha_HW == 255, shape, ground)
        rgb = read_picture(saved(tmp_path / "a.png", pixels))
        assert rgb.mode == "RGB" and np.array_equal(np.asarray(rgb)[..., 1], expected)
        grey = read_picture(saved(tmp_path / "b.png", pixels[..., 2:]))  # grey with alpha
        assert grey.mode == "L" and np.array_equal(grey, expected)
    palette = Image.fromarray(COLOUR_HWC).quantize(8)
    path = saved(tmp_path / "c.png", palette, transparency=int(palette.getpixel((0, 0))))
    assert read_picture(path).getpixel((0, 0)) == (255, 255, 255)
    assert read_header(path).alpha


def test_an_opaque_alpha_channel_changes_nothing():
    opaque = Image.fromarray(COLOUR_HWC).convert("RGBA")
    assert np.array_equal(on_ground(opaque).convert("RGB"), COLOUR_HWC)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_exif_sets_pictures_upright(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(tmp_path / name, COLOUR_HWC, exif=exif, **options)
    turned = {
        1: COLOUR_HWC, 2: COLOUR_HWC[:, ::-1], 3: COLOUR_HWC[::-1, ::-1], 4: COLOUR_HWC[::-1],
        5: COLOUR_HWC.swapaxes(0, 1), 6: np.rot90(COLOUR_HWC, -1), 7: np.rot90(COLOUR_HWC, 2).swapaxes(0, 1),
        8: np.rot90(COLOUR_HWC),
    }[orientation]  # fmt: skip
    assert np.array_equal(read_picture(path), turned)
    assert (read_header(path).height, read_header(path).width) == turned.shape[:2]


def test_a_damaged_exif_turns_nothing(tmp_path):
    path = saved(tmp_path / "a.png", COLOUR_HWC, exif=b"Exif\0\0no exif at all")
    assert np.array_equal(read_picture(path), COLOUR_HWC)


def test_fractions_from_black_to_white_are_read_and_other_numbers_refused(tmp_path):
    assert np.array_equal(read_picture(saved(tmp_path / "a.tif", GREY_HW.astype(np.float32) / 255)), GREY_HW)
    for values, why in (
        (GREY_HW.astype(np.float32), "has pixels as fractions that are not all within 0 … 1"),
        (np.full((2, 2), np.nan, np.float32), "has pixels as fractions that are not all within 0 … 1"),
        (GREY_HW.astype(np.int32), "has pixels as 32-bit or signed numbers, of which no range is known"),
    ):
        path = saved(tmp_path / "b.tif", values)
        with pytest.raises(InputError, match=f"{path} {why}"):
            read_picture(path)
    lab = saved(tmp_path / "c.tif", Image.new("LAB", (4, 4)))
    with pytest.raises(
        InputError, match="has pixels of mode LAB, which has no one meaning here; save it as RGB or grey"
    ):
        read_header(lab)


def test_colours_of_print_and_palettes_are_read(tmp_path):
    cmyk = Image.fromarray(COLOUR_HWC).convert("CMYK")
    assert np.abs(np.asarray(read_picture(saved(tmp_path / "a.tif", cmyk))).astype(int) - COLOUR_HWC).max() <= 1
    gif = saved(tmp_path / "b.gif", Image.fromarray(GREY_HW))
    assert read_header(gif).grey and np.array_equal(read_picture(gif), GREY_HW)
    assert not read_header(saved(tmp_path / "c.gif", Image.fromarray(COLOUR_HWC))).grey
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    assert (
        read_picture(saved(tmp_path / "d.gif", frames[0], save_all=True, append_images=frames[1:])).getpixel((0, 0))
        == 10
    )


def test_only_decoders_of_the_endings_are_tried(tmp_path, monkeypatch):
    pretender = tmp_path / "a.png"
    pretender.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was asked"))
    with pytest.raises(
        InputError, match=r"a\.png is not a readable image \(it is none of JPEG, PNG, GIF, BMP, PPM, TIFF"
    ):
        read_picture(str(pretender))
    icon = tmp_path / "b.png"
    Image.fromarray(COLOUR_HWC).save(icon, format="TGA")
    with pytest.raises(InputError, match="it is none of"):
        read_picture(str(icon))


def test_a_text_of_a_png_that_would_unpack_to_much_is_refused(tmp_path):
    about = PngImagePlugin.PngInfo()
    about.add_text("a", "x" * (2 << 20), zip=True)
    path = saved(tmp_path / "a.png", GREY_HW, pnginfo=about)
    with pytest.raises(InputError, match="is not a readable image"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_training_set_of_one_colour_is_refused(tmp_path, mode):
    make_folder(tmp_path, mode=mode)
    for path in tmp_path.glob("train/*/*.png"):
        Image.new(mode, (8, 8), 7 if mode == "L" else (7, 8, 9)).save(path)
    colour = "7" if mode == "L" else "7, 8, 9"
    with pytest.raises(InputError) as caught:
        _ = open_folder(tmp_path).record
    assert str(caught.value) == (
        f"the training images are all one colour ({colour} of 255), so there is nothing to learn; "
        f"look at what {tmp_path / 'train'} holds"
    )


def test_images_of_one_colour_each_are_counted(tmp_path, capsys):
    make_folder(tmp_path)
    for path in tmp_path.glob("train/dog/*.png"):
        Image.new("RGB", (8, 8), (int(path.stem), 0, 0)).save(path)
    count = open_folder(tmp_path).train_pixels(18).flatten(1, 2).eq(0)[..., 1].all(1).sum()
    _ = open_folder(tmp_path).record
    assert capsys.readouterr().err == f"{count} training images are of one colour each; 'wmlc data' names them\n"


@pytest.mark.parametrize("size", [(8, 8), (80, 70)])
def test_a_damaged_test_picture_is_found_when_the_test_images_are_checked(tmp_path, size):
    bad = make_folder(tmp_path, size=size) / "test" / "dog" / "02.png"
    open_folder(tmp_path, image_size=size[0]).check_test()
    bad.write_bytes(bad.read_bytes()[:-60])
    data = open_folder(tmp_path, image_size=size[0])
    with pytest.raises(InputError, match=r"02\.png is not a readable image"):
        data.check_test()


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about damaged tags
def test_a_damaged_file_is_a_picture_or_a_refusal_in_one_line(tmp_path):
    draw = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.ppm", "a.bmp"):
        path = Path(saved(tmp_path / name, COLOUR_HWC, exif=exif))
        whole = path.read_bytes()
        for _ in range(30):
            damaged = bytearray(whole)
            for place in draw.integers(0, len(whole), 2):
                damaged[place] = draw.integers(256)
            path.write_bytes(damaged[: draw.integers(1, 2 * len(whole))])
            try:
                header, picture = read_header(str(path)), read_picture(str(path))
            except InputError as error:
                assert str(error).isprintable() and str(path) in str(error)
            else:
                assert (header.width, header.height) == picture.size and header.grey == (picture.mode == "L")
