"""The pictures of one run on a single sheet, for pages that show them beside their words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .overlay import Example, examples_section
from .routes_section import montage_section, plane_section, routes_section
from .run_data import RunData

_WIDTH = 1000  # pixels
_ROUTES = 0.56  # of the width; the rest is the plane's
_GAP = 10  # pixels
_EXAMPLES = 4


def compose(rows: Sequence[Sequence[tuple[Figure, float]]], width: int = _WIDTH) -> Image.Image:
    """Figures below each other, and beside each other within a row.

    Args:
        rows: in each row figures with their shares of the width, from left to right.
        width: pixels of the sheet.

    Raises:
        ValueError: there is no figure.
    """
    drawn = [[_drawn(figure, round(share * width)) for figure, share in row] for row in rows if row]
    if not drawn:
        raise ValueError("a sheet needs at least one figure")
    heights = [max(picture.height for picture in row) for row in drawn]
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(drawn) - 1)), "white")
    top = 0
    for row, height in zip(drawn, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top + (height - picture.height) // 2))
            left += picture.width
        top += height + _GAP
    return sheet


def write_sheet(
    path: str | Path,
    runs: Sequence[RunData],
    dataset_name: str,
    *,
    examples: Sequence[Example] = (),
    palette: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    characters: Mapping[str, str] | None = None,
) -> None:
    """Save examples of all runs, and routes, plane and nearest images of the last one.

    What there is no picture of is left out.

    Args:
        path: of the picture; its ending tells the format.
        runs: as in the report.
        dataset_name: the data set whose evaluation is shown.
        examples: of which the first few are shown.
        palette: (C, 3) uint8 class colours; made up if None.
        class_names: C names for the legend.
        characters: scene character by image file name without folder and ending.

    Raises:
        ValueError: there is no picture at all.
        DataError: an image of the data set is damaged.
    """
    last = runs[-1:]
    rows = []
    for shares, sections in (
        ([1.0], [examples_section(examples[:_EXAMPLES], palette, class_names)]),
        (
            [_ROUTES, 1 - _ROUTES],
            [routes_section(last, dataset_name), plane_section(last, dataset_name, characters)],
        ),
        ([1.0], [montage_section(last, dataset_name)]),
    ):
        pairs = zip(sections, shares, strict=True)
        rows.append([(s.pictures[0].figure, share) for s, share in pairs if s.pictures])
    compose(rows).save(path, quality=88)


def _drawn(figure: Figure, width: int) -> Image.Image:
    """A figure so many pixels wide."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=width / figure.get_figwidth(), facecolor="white")
    picture = Image.open(raw).convert("RGB")
    # A figure's width in pixels is rounded down.
    return picture if picture.width == width else picture.resize((width, picture.height))
