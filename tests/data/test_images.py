import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from mote.data.images import open_image
from mote.errors import DataError


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.effect_noise((40, 30), 50).save(path)
    return path


def header_only_png(path: Path, width: int, height: int) -> None:
    """A PNG whose header claims a size and whose pixels are missing: decoding it would fail or need much memory."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + struct.pack(">I", 99) + b"IDAT")


def test_a_picture_becomes_rgb(picture: Path) -> None:
    opened = open_image(picture)

    assert (opened.mode, opened.size) == ("RGB", (40, 30))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)

    assert open_image(tmp_path / "a.jpg").size == (30, 40)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        open_image(tmp_path / "gone.png")


def test_a_truncated_picture_is_named(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:-300])

    with pytest.raises(DataError, match=r"a\.png: damaged picture"):
        open_image(picture)


def test_a_text_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")

    with pytest.raises(DataError, match=r"a\.png: not a picture"):
        open_image(tmp_path / "a.png")


@pytest.mark.parametrize(("width", "height"), [(8000, 6000), (14_000, 8000), (60_000, 60_000)])
def test_the_cap_on_pixels_is_checked_before_decoding(tmp_path: Path, width: int, height: int) -> None:
    header_only_png(tmp_path / "bomb.png", width, height)

    with pytest.raises(DataError, match=r"bomb\.png: .* cap of 40,000,000"):
        open_image(tmp_path / "bomb.png")


def test_the_cap_can_be_lowered(picture: Path) -> None:
    with pytest.raises(DataError, match="40 x 30 pixels, more than the cap of 1,199"):
        open_image(picture, max_pixels=1199)
    open_image(picture, max_pixels=1200)


def test_only_files_of_plain_formats_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not a picture that can be read"):  # Ghostscript would run it
        open_image(tmp_path / "a.eps")
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png"):  # a pipe would be waited for
        with pytest.raises(DataError, match="not a picture file"):
            open_image(path)
