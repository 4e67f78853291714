"""An image file as 8-bit RGB, and remarks about files that other programs may show differently.

Pixels equal those of torchvision's loader, except those of 16 bits, which that loader makes white.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from studies.failures import BadData

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""The exceptions that PIL's decoders raise for a damaged file."""
LARGEST = 65_535
"""The largest value of 16 bits."""


def read(path: Path) -> Image.Image:
    """The image in RGB. Raises BadData, which names the file, if it cannot be read."""
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except UNREADABLE as error:
        raise BadData(f"{path} cannot be read as an image ({_reason(error)}); replace it or remove it") from None


def _rgb(image: Image.Image) -> Image.Image:
    if _has_16_bits(image):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray(((values * 255 + LARGEST // 2) // LARGEST).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of 32 bits, whose range is unknown; convert them to 8 or 16 bits")
    return image.convert("RGB")


def _has_16_bits(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def remarks(path: Path) -> list[str]:
    """How the pixels of an image that can be read may differ from what other programs show."""
    try:
        with Image.open(path) as image:
            return list(_remarks(image))
    except UNREADABLE as error:
        return [f"the metadata are damaged ({_reason(error)})"]


def _remarks(image: Image.Image) -> Iterator[str]:
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        yield "the EXIF orientation is not applied"
    if getattr(image, "n_frames", 1) > 1:
        yield "the first of several frames is used"
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        yield "the transparency is dropped"
    if _has_16_bits(image):
        dark = np.asarray(image).max() <= LARGEST // 4
        yield "16 bits are reduced to 8" + (", and the image is dark, below a quarter of the range" if dark else "")


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
