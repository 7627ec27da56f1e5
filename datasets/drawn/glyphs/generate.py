"""Draws every letter several times, each time in another font, slanted, turned and bent."""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from divdr.errors import DataError

from ..files import available_cores, check_counts, run_jobs
from .fonts import cover, find_faces
from .scripts import SCRIPTS

SIZE = 105
"""Rows and columns of an image, as Omniglot has."""
RECORD = "glyphs.json"
logger = logging.getLogger(__name__)


class Letter(NamedTuple):
    """Work for one process: all drawings of a letter.

    Attributes:
        text: the letter.
        folder: of its drawings.
        number: of the letter among all, from 1, for the names of the files.
        fonts: to draw it in.
        drawings: how many.
        seed: of the whole data set.
    """

    text: str
    folder: Path
    number: int
    fonts: tuple[Path, ...]
    drawings: int
    seed: int


def make_glyphs(
    output: str | Path,
    *,
    scripts: Sequence[str] = (),
    letters: int = 20,
    drawings: int = 20,
    fonts: str = "",
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Draw alphabets into ``output``/glyphs, as ALPHABET/characterNN/NNNN_DD.png.

    A script that no font has is left out with a warning. What an earlier call drew is replaced.

    Args:
        output: gets the folder "glyphs".
        scripts: names of alphabets; empty: all.
        letters: of each alphabet, at most.
        drawings: of each letter.
        fonts: folder of the fonts; "": those of matplotlib and of the system.
        seed: chooses fonts and distortions; a letter's drawings do not depend on other letters.
        workers: processes; None: all cores.

    Returns:
        The folder.

    Raises:
        ConfigError: a number is out of range.
        DataError: a script is unknown, no font has any, or the folder holds something else.
    """
    check_counts(letters=letters, drawings=drawings, workers=workers or 1, seed=seed)
    known = {script.name: script for script in SCRIPTS}
    unknown = [name for name in scripts if name not in known]
    if unknown:
        raise DataError(f"there is no script {unknown[0]!r}; known are {', '.join(known)}")
    faces, drawn = find_faces(fonts), {}
    jobs: list[Letter] = []
    folder = Path(output) / "glyphs"
    for name in scripts or known:
        found = cover(known[name], faces, letters)
        if found is None:
            logger.warning(
                "%s is left out: none of %d fonts has its letters (Debian's package "
                "fonts-noto-core has)",
                name,
                len(faces),
            )
            continue
        drawn[name] = "".join(found.letters)
        for place, text in enumerate(found.letters, start=1):
            where = folder / name / f"character{place:02d}"
            jobs.append(Letter(text, where, len(jobs) + 1, tuple(found.fonts), drawings, seed))
    if not jobs:
        raise DataError(f"no font of {fonts or 'this system'} has letters of these scripts")
    _make_room(folder)
    run_jobs(jobs, draw_letter, workers or available_cores(), "letters")
    settings = {"letters": letters, "drawings": drawings, "seed": seed, "alphabets": drawn}
    (folder / RECORD).write_text(json.dumps(settings, indent=1) + "\n")
    return folder


def draw_letter(letter: Letter) -> None:
    """Draw and save all drawings of a letter: black on white, one bit a pixel, as Omniglot's."""
    letter.folder.mkdir(parents=True)
    name = f"{letter.folder.parent.name}/{letter.text}".encode()
    for drawing in range(1, letter.drawings + 1):
        generator = np.random.default_rng([letter.seed, zlib.crc32(name), drawing])
        font = letter.fonts[generator.integers(len(letter.fonts))]
        ink = _distorted(_printed(letter.text, font), generator)
        picture = Image.fromarray(np.where(ink > 110, 0, 255).astype(np.uint8)).convert("1")
        picture.save(letter.folder / f"{letter.number:04d}_{drawing:02d}.png")


def _printed(text: str, font: Path) -> np.ndarray:
    """(SIZE, SIZE) uint8 ink, 0 to 255, of a letter that fills about two thirds of the square."""
    face = ImageFont.truetype(str(font), 64)
    left, top, right, bottom = face.getbbox(text)
    side = max(right - left, bottom - top, 1)
    face = ImageFont.truetype(str(font), max(8, round(64 * 0.66 * SIZE / side)))
    left, top, right, bottom = face.getbbox(text)
    picture = Image.new("L", (SIZE, SIZE))
    corner = ((SIZE - right - left) / 2, (SIZE - bottom - top) / 2)
    ImageDraw.Draw(picture).text(corner, text, fill=255, font=face)
    return np.asarray(picture)


def _distorted(ink: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same under a random affine map and a random smooth field."""
    turn, shear = generator.uniform(-0.25, 0.25), generator.uniform(-0.3, 0.3)
    scale = generator.uniform(0.75, 1.2, size=2)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag(1 / scale)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    centre = (SIZE - 1) / 2
    places = np.stack([columns - centre, rows - centre]).reshape(2, -1)
    x, y = (matrix @ places).reshape(2, SIZE, SIZE) + centre
    shift = generator.uniform(-6, 6, size=2)
    # Noise, made smooth, of which the largest move is of so many pixels.
    fields = []
    for _ in range(2):
        field = cv2.GaussianBlur(generator.standard_normal((SIZE, SIZE)), (0, 0), 10)
        fields.append(field / np.abs(field).max() * generator.uniform(2, 6))
    across = (x + shift[0] + fields[0]).astype(np.float32)
    down = (y + shift[1] + fields[1]).astype(np.float32)
    return cv2.remap(ink, across, down, cv2.INTER_LINEAR)


def _make_room(folder: Path) -> None:
    """Remove what this generator made.

    Raises:
        DataError: the folder holds something, and the generator's record is not there.
    """
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise DataError(
            f"{folder} holds files that this generator did not make; choose another output folder."
        )
    shutil.rmtree(folder)
