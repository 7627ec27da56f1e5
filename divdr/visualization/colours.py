"""Colours of experts, runs and classes, and the marker shapes of a second label."""

from __future__ import annotations

import matplotlib
import numpy as np

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


def default_palette(classes: int) -> np.ndarray:
    """(classes, 3) uint8 for data sets that bring no colours of their own."""
    base = np.asarray(matplotlib.colormaps["tab20"].colors)  # type: ignore[attr-defined]
    rounds = np.arange(classes) // len(base)
    shades = base[np.arange(classes) % len(base)] * (0.75**rounds)[:, None]
    return np.round(shades * 255).astype(np.uint8)
