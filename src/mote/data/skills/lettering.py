"""Fonts for pictures with text, from pinned wheels: Source Sans Pro, Source Serif Pro, Fredoka One (all
OFL-1.1)."""

import io
from functools import lru_cache

from PIL import ImageFont

from mote.data.sources import read_member

SANS = "font_source_sans_pro/files/SourceSansPro-{}.ttf"
SERIF = "font_source_serif_pro/files/SourceSerifPro-{}.ttf"
FONTS: dict[str, tuple[str, str]] = {
    "sans": ("source-sans", SANS.format("Regular")),
    "sans-semibold": ("source-sans", SANS.format("Semibold")),
    "sans-bold": ("source-sans", SANS.format("Bold")),
    "sans-italic": ("source-sans", SANS.format("It")),
    "serif": ("source-serif", SERIF.format("Regular")),
    "serif-bold": ("source-serif", SERIF.format("Bold")),
    "serif-italic": ("source-serif", SERIF.format("It")),
    "round": ("fredoka", "font_fredoka_one/files/FredokaOne-Regular.ttf"),
}


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS` at a size in pixels."""
    return ImageFont.truetype(io.BytesIO(_file(name)), size)


@lru_cache(maxsize=16)
def _file(name: str) -> bytes:
    return read_member(*FONTS[name])
