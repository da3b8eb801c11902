"""Images that videos begin with: what clients send, as pipelines take it."""

from __future__ import annotations

import io
import sys

from PIL import Image, ImageOps

from warpcache_ray.errors import InvalidRequest, PayloadTooLarge

FORMATS = ("PNG", "JPEG", "WEBP")


def read_image(data: bytes, param: str, most_pixels: int = sys.maxsize) -> Image.Image:
    """The image in a file, whatever the file is called, as diffusers' `load_image` has it: upright by its EXIF tag, in
    RGB, what is transparent in the colour that it has there; of an animation the first frame.

    Raises:
        InvalidRequest: it is no PNG, JPEG or WebP, or is broken; `param` is the field that it came in.
        PayloadTooLarge: it has more pixels, which are counted before any is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, param, most_pixels)
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except InvalidRequest:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PayloadTooLarge(f"{param}: {error}", param) from error
    except Exception as error:
        # Decoders raise whatever they stumble over in a hostile file.
        said = f"{param}: not a whole image; it must be one of {', '.join(FORMATS)}"
        raise InvalidRequest(f"{said} ({type(error).__name__})", param) from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled until it covers width × height (Lanczos, as diffusers scales), and cropped to that in its centre: a
    pipeline alone would stretch it."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_png(image: Image.Image) -> bytes:
    """As a PNG file that holds the pixels and nothing else."""
    plain = image.copy()
    plain.info.clear()
    data = io.BytesIO()
    plain.save(data, "PNG")
    return data.getvalue()


def _check_size(image: Image.Image, param: str, most_pixels: int) -> None:
    if image.width * image.height > most_pixels:
        size = f"{image.width}×{image.height}"
        raise PayloadTooLarge(f"{param}: {size} pixels; at most {most_pixels} are allowed", param)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey, which a plain conversion would clip at 255.
        image = image.convert("I").point(lambda grey: grey * (1 / 256)).convert("L")
    return image.convert("RGB")
