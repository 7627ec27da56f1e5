"""Which characters make an alphabet: ranges of Unicode, of scripts whose letters stand alone.

Of scripts with two cases the capitals. The first fourteen are in matplotlib's own DejaVu fonts; the
others in those of Debian's package fonts-noto-core.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple


class Script(NamedTuple):
    """An alphabet.

    Attributes:
        name: of its folder.
        ranges: first and last code point, both of it, of each range; only letters in them count.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]

    def letters(self) -> list[str]:
        """Its characters, in the order of the ranges."""
        points = (point for first, last in self.ranges for point in range(first, last + 1))
        return [chr(p) for p in points if unicodedata.category(chr(p)) in ("Lu", "Ll", "Lo")]


SCRIPTS = (
    Script("Latin", ((0x41, 0x5A),)),
    Script("Greek", ((0x391, 0x3A9),)),
    Script("Cyrillic", ((0x410, 0x42F),)),
    Script("Armenian", ((0x531, 0x556),)),
    Script("Georgian", ((0x10D0, 0x10F0),)),
    Script("Hebrew", ((0x5D0, 0x5EA),)),
    Script("Arabic", ((0x627, 0x64A),)),
    Script("Nko", ((0x7CA, 0x7EA),)),
    Script("Tifinagh", ((0x2D30, 0x2D65),)),
    Script("Inuktitut", ((0x1401, 0x1406), (0x142F, 0x1434), (0x144C, 0x1451), (0x146B, 0x1470))),
    Script("Lao", ((0xE81, 0xEAE),)),
    Script("Lisu", ((0xA4D0, 0xA4F7),)),
    Script("Ogham", ((0x1681, 0x169A),)),
    Script("Old_Italic", ((0x10300, 0x1031E),)),
    Script("Bengali", ((0x985, 0x9B9),)),
    Script("Gujarati", ((0xA85, 0xAB9),)),
    Script("Kannada", ((0xC85, 0xCB9),)),
    Script("Malayalam", ((0xD05, 0xD39),)),
    Script("Thai", ((0xE01, 0xE2E),)),
    Script("Ethiopic", ((0x1200, 0x1200), (0x1208, 0x1208), (0x1210, 0x1210), (0x1218, 0x1248))),
)
