"""Pictures from files that nobody vouches for: the size is checked in the header, before anything is
decoded."""

import hashlib
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from mote.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is opened; Pillow would hand some of the others (EPS) to programs outside of Python."""
MAX_PIXELS = 40_000_000
"""Default cap on width times height: a large photograph passes, a decompression bomb does not."""


def open_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB, upright (EXIF orientation applied); the first frame of an animation.

    Raises DataError, naming the file, when it is missing, not a picture, truncated, or larger than
    `max_pixels`.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for without an end
            raise DataError(f"{path}: not a picture file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as opened:
                _check_size(path, opened.size, max_pixels)
                opened.load()
                upright = ImageOps.exif_transpose(opened)
                return upright.convert("RGB")
    except Image.DecompressionBombError:
        raise DataError(f"{path}: far more pixels than the cap of {max_pixels:,}; scale it down") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything for damaged files
        raise DataError(f"{path}: {_reason(error)}") from None


def picture_hash(path: Path) -> str:
    """Hex SHA-256 of a picture's file, by which its features are kept. Raises DataError when it cannot be read."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without an end
            raise DataError(f"{path}: not a picture file")
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def check_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raise what `open_image` would raise; costs a full decoding, since a truncated file shows only then."""
    open_image(path, max_pixels=max_pixels).close()


def _check_size(path: Path | str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise DataError(f"{path}: {width} x {height} pixels, more than the cap of {max_pixels:,}; scale it down")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "cannot identify" in text:
        return f"not a picture that can be read ({', '.join(FORMATS)})"
    return f"damaged picture: {text}"
