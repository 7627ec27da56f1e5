"""Fonts on this machine, and which of a script's letters they have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from divdr.errors import DataError

from .scripts import Script

# Claims every letter, and draws the same frame for all of a script.
_PLACEHOLDERS = "LastResort"
LEAST = 5
"""Letters below which a script is left out."""


class Face(NamedTuple):
    """A font file.

    Attributes:
        path: of the file.
        points: code points of its glyphs.
    """

    path: Path
    points: frozenset[int]


class Coverage(NamedTuple):
    """What fonts have of a script.

    Attributes:
        letters: those of the font that has most.
        fonts: files that have all of these.
    """

    letters: list[str]
    fonts: list[Path]


def find_faces(folder: str = "") -> list[Face]:
    """Fonts in a folder and below it; of matplotlib and of the system if none is given.

    Of files of one name the first counts: systems have matplotlib's fonts as well.

    Raises:
        DataError: the folder does not exist, or there is no font.
    """
    if folder and not Path(folder).is_dir():
        raise DataError(f"fonts are looked for in {folder}, which is no folder")
    if folder:
        files = sorted(f for kind in ("ttf", "otf") for f in Path(folder).rglob(f"*.{kind}"))
    else:
        own = Path(matplotlib.get_data_path()) / "fonts/ttf"
        system = (Path(file) for file in font_manager.findSystemFonts())
        # matplotlib's other fonts have glyphs of formulas at the places of letters.
        files = [*own.glob("DejaVu*.ttf"), *sorted(system)]
    once: dict[str, Path] = {}
    for file in files:
        if not file.name.startswith(_PLACEHOLDERS):
            once.setdefault(file.name, file)
    faces = [face for name in sorted(once) if (face := _face(once[name])) is not None]
    if not faces:
        raise DataError(f"there is no font in {folder or 'this system'}")
    return faces


def cover(script: Script, faces: Sequence[Face], limit: int) -> Coverage | None:
    """The script's first ``limit`` letters that some font has, or None if it is too few.

    Args:
        script: an alphabet.
        faces: fonts to choose from.
        limit: letters at most.
    """
    letters = script.letters()
    held = [[letter for letter in letters if ord(letter) in face.points] for face in faces]
    best = max(held, key=len)[:limit]
    if len(best) < min(LEAST, limit):
        return None
    fonts = [f.path for f, own in zip(faces, held, strict=True) if set(best) <= set(own)]
    return Coverage(best, fonts)


def _face(path: Path) -> Face | None:
    """None for a file that cannot be read as a font."""
    try:
        return Face(path, frozenset(FT2Font(str(path)).get_charmap()))
    except (RuntimeError, OSError):
        return None
