"""Images as strangers send them."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from warpcache_ray.errors import InvalidRequest, PayloadTooLarge
from warpcache_ray.image import fit, read_image, to_png

RED, BLUE = (200, 30, 30), (30, 30, 200)
UPSIDE_DOWN = 3
"""EXIF's orientation tag is 0x0112."""


def two_halves(mode: str = "RGB") -> Image.Image:
    """48×32: the left half red, the right one blue."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24], pixels[:, 24:] = RED, BLUE
    image = Image.fromarray(pixels)
    return image.quantize(2) if mode == "P" else image.convert(mode)


def file_of(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One of a PNG's, with its checksum."""
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of very few bytes that says it is so large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def near(pixel: tuple[int, ...], color: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 24


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
    ],
)
def test_colours_are_kept(form, mode):
    """In RGB, whatever the file has."""
    image = read_image(file_of(two_halves(mode), form), "image")
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert near(image.getpixel((4, 16)), RED)
    assert near(image.getpixel((44, 16)), BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_greys_are_kept(mode):
    """Of one bit, eight and sixteen."""
    grey = Image.new("I;16", (8, 8), 100 * 256) if mode == "I;16" else Image.new("L", (8, 8), 100)
    image = read_image(file_of(grey.convert(mode), "PNG"), "image")
    wanted = 100 if mode != "1" else np.asarray(grey.convert("1").convert("L")).mean()
    assert image.mode == "RGB"
    assert np.asarray(image).mean() == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_it_stands_upright(form):
    """A camera held upside down says so in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = UPSIDE_DOWN
    image = read_image(file_of(two_halves(), form, exif=exif), "image")
    assert near(image.getpixel((4, 16)), BLUE)
    assert b"Exif" not in to_png(image)
    assert b"eXIf" not in to_png(image)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_begin(form):
    """Their first frame counts."""
    frames = [Image.new("RGB", (8, 8), color) for color in (RED, BLUE)]
    data = file_of(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    assert near(read_image(data, "image").getpixel((4, 4)), RED)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_kinds_are_refused(form):
    """Each further decoder would be one more to attack."""
    with pytest.raises(InvalidRequest, match=r"^input_reference: .*PNG, JPEG, WEBP") as caught:
        read_image(file_of(two_halves(), form), "input_reference")
    assert caught.value.param == "input_reference"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.95])
def test_half_an_image_is_none(form, kept):
    """Wherever it was cut off."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), form)
    with pytest.raises(InvalidRequest, match="not a whole image"):
        read_image(data[: int(kept * len(data))], "image")


def test_noise_is_none():
    """Bytes at random, also behind a right beginning, give the one error."""
    rng = np.random.default_rng(0)
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8 "):
        for _ in range(50):
            with pytest.raises(InvalidRequest):
                read_image(head + rng.bytes(64), "image", 1 << 20)


def test_one_flipped_byte_never_escapes():
    """A damaged file gives an image or that error."""
    for form in ("PNG", "JPEG", "WEBP"):
        whole = file_of(two_halves(), form)
        for place in range(0, len(whole), max(1, len(whole) // 60)):
            data = bytearray(whole)
            data[place] ^= 0x55
            with suppress(InvalidRequest):
                assert read_image(bytes(data), "image", 1 << 20).mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(1001, 1000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)]
)
def test_bombs_do_not_go_off(width, height):
    """Pixels are counted by what the header says; none is decoded, whatever Pillow would allow."""
    with pytest.raises(PayloadTooLarge) as caught:
        read_image(png_claiming(width, height), "image", 1_000_000)
    assert (caught.value.status, caught.value.param) == (413, "image")


def test_the_limit_itself_is_allowed():
    """One more pixel isn't."""
    data = file_of(two_halves(), "PNG")
    assert read_image(data, "image", 48 * 32).size == (48, 32)
    with pytest.raises(PayloadTooLarge, match="48×32 pixels; at most 1535"):
        read_image(data, "image", 48 * 32 - 1)


def test_text_bombs_do_not_go_off():
    """A compressed comment that would fill the memory."""
    header, rest = png_claiming(8, 8)[:33], png_claiming(8, 8)[33:]
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))
    with pytest.raises(InvalidRequest):
        read_image(header + bomb + rest, "image")


@pytest.mark.parametrize("size", [(48, 32), (96, 64)])
def test_an_image_that_fits_stays(size):
    """In the same proportion nothing is cut off."""
    image = fit(two_halves(), *size)
    assert image.size == size
    assert near(image.getpixel((2, 2)), RED)
    assert near(image.getpixel((size[0] - 3, size[1] - 3)), BLUE)


def test_others_are_cropped_in_their_centre():
    """Never stretched: the seam stays in the middle, as sharp as it was."""
    stripes = np.zeros((32, 96, 3), np.uint8)
    stripes[:, 32:64] = 255
    image = np.asarray(fit(Image.fromarray(stripes), 64, 32))
    assert image[:, 17:47].min() > 200
    assert image[:, :15].max() < 50


def test_png_keeps_every_pixel():
    """And is read back as it was."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))
    np.testing.assert_array_equal(np.asarray(read_image(to_png(noise), "image")), np.asarray(noise))
