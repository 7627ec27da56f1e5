"""What a report is made of: sections, words for numbers, names and colours of classes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import Metadata
from matplotlib.axes import Axes
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
class TableEntry:
    """A cell of a table: a text and a second, smaller one."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with a heading each; ``header`` names all columns, that of the headings included."""

    caption: str
    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[TableEntry]]]


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


MISSING = "–"
_MINUS = "−"


def figures(value: float | None, digits: int = 3) -> str:
    """A number with at least ``digits`` significant figures and no exponent in the usual range."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4 or size >= 7:
        return f"{value:.{digits - 1}e}".replace("-", _MINUS)
    return fixed(value, max(digits - 1 - size, 0))


def fixed(value: float | None, decimals: int) -> str:
    """A number with a fixed number of decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{decimals}f}"
    return text.replace("-", _MINUS) if float(text) else text.lstrip("-")


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; ``±0`` where it rounds to nothing."""
    text = fixed(value, decimals)
    if float(text.replace(_MINUS, "-")) == 0:
        return "±" + text
    return text if text.startswith(_MINUS) else "+" + text


def change(name: str, first: float, last: float) -> str:
    """``inter rose from 1.20 to 2.31``, as the two numbers show after rounding."""
    before, after = figures(first), figures(last)
    if not (math.isfinite(first) and math.isfinite(last)):
        return f"{name} went from {before} to {after}"
    if before == after:
        return f"{name} stayed at {after}"
    return f"{name} {'rose' if last > first else 'fell'} from {before} to {after}"


def runs_words(real: float, whole: float | None = None) -> str:
    """``runs 0.073 of 0.105 GFLOPs``: what runs, of what would with every gate open.

    Args:
        real: multiply-adds, the stem's included.
        whole: likewise with every gate open; None where it is not known.
    """
    if whole is None:
        return f"runs {figures(real / 1e9)} GFLOPs"
    whole /= 1e9
    decimals = 0 if whole <= 0 else max(0, 2 - math.floor(math.log10(whole)))
    return f"runs {fixed(real / 1e9, decimals)} of {fixed(whole, decimals)} GFLOPs"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 image``, ``3 images``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


LINE = 3
"""Points that a drawn line needs: one through two says nothing."""

NO_EXPERT = "#b8bcc2"
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">")
# Okabe and Ito's colours, which people with any common colour vision tell apart, then Tol's.
_DISTINCT = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#882255",
    "#999933",
    "#444444",
)


def colour(index: int) -> str:
    """Colour of an expert or run by its number; grey below 0; they repeat after ten."""
    return NO_EXPERT if index < 0 else _DISTINCT[index % len(_DISTINCT)]


def marker(index: int) -> str:
    """Shape of a run by its number; with its colour it repeats after a hundred."""
    return MARKERS[(index + index // len(_DISTINCT)) % len(MARKERS)]


def label_axes(axes: Axes, horizontal: str, vertical: str = "") -> None:
    """Name a panel's axes, with a light grid behind what is drawn and no frame at top and right."""
    axes.set_xlabel(horizontal, fontsize=9)
    axes.set_ylabel(vertical, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def to_rgb(colour: Sequence[int] | np.ndarray) -> tuple[float, float, float]:
    """Matplotlib's colour of (R, G, B), 0 to 255."""
    red, green, blue = (int(part) / 255 for part in colour)
    return red, green, blue


def default_palette(classes: int) -> np.ndarray:
    """(classes, 3) uint8 for data sets that bring no colours of their own."""
    base = np.asarray(matplotlib.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    rounds = np.arange(classes) // len(base)
    shades = base[np.arange(classes) % len(base)] * (0.75**rounds)[:, None]
    return np.round(shades * 255).astype(np.uint8)


def class_colours(metadata: Metadata) -> list[tuple[int, int, int]] | None:
    """(R, G, B) of each semantic class: the metadata's own, or Cityscapes' for its classes.

    Detectron2 registers Cityscapes without colours, which would then be drawn at random.
    """
    colours = metadata.get("stuff_colors")
    if colours is not None:
        return [tuple(c) for c in colours]
    names = metadata.get("stuff_classes")
    labels = [trainId2label[i] for i in range(19)]
    if names is not None and list(names) == [label.name for label in labels]:
        return [label.color for label in labels]
    return None
