"""What a report is made of: sections with sentences, tables and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure
from PIL import Image

_DPI = 130
_LOWEST_DPI = 45
_STEP = 0.8


@dataclass
class Picture:
    """A figure and the words under it.

    Attributes:
        figure: drawn once the report is put together.
        caption: says in words what the picture shows; the alternative text too.
        shape: "wide" scrolls sideways on a narrow screen in place of shrinking, "half" shares a
            row with the next one where there is room, "" does neither.
        source: the picture as a ``data:`` address, set by ``draw``.
    """

    figure: Figure
    caption: str
    shape: str = ""
    source: str = ""


@dataclass(frozen=True)
class Entry:
    """A cell of a table: a text and a second, smaller one."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with a heading each; ``header`` names all columns, that of the headings included."""

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Entry]]]


@dataclass
class Section:
    """One chapter; one without tables and pictures says in its sentences why."""

    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def draw(pictures: Sequence[Picture], limit: int) -> None:
    """Turn figures into PNG, coarser where they would exceed ``limit`` bytes of text together."""
    dpi = [float(_DPI)] * len(pictures)
    files = [_png(picture.figure, _DPI) for picture in pictures]
    while files and sum(len(f) for f in files) * 4 / 3 > limit:
        shrinkable = [i for i in range(len(files)) if dpi[i] * _STEP >= _LOWEST_DPI]
        if not shrinkable:
            break
        largest = max(shrinkable, key=lambda i: len(files[i]))
        dpi[largest] *= _STEP
        files[largest] = _png(pictures[largest].figure, dpi[largest])
    for picture, data in zip(pictures, files, strict=True):
        picture.source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _png(figure: Figure, dpi: float) -> bytes:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor="white")
    raw.seek(0)
    packed = io.BytesIO()
    with Image.open(raw) as image:
        image.convert("RGB").save(packed, format="PNG", optimize=True)
    return packed.getvalue()
