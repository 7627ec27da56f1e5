"""Predictions beside the truth: label maps as colours, and rows of pictures with a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from .parts import to_rgb

VOID = (0, 0, 0)  # colour of pixels that belong to no class


def colour_labels(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colour a label map; labels outside 0..C-1 (255, -1) become black.

    Args:
        labels: (H, W) integers.
        palette: (C, 3) uint8.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: a shape is not as above.
    """
    labels, palette = np.asarray(labels), np.asarray(palette)
    if labels.ndim != 2 or palette.ndim != 2 or palette.shape[1] != 3:
        raise ValueError(
            f"expected labels (H, W), palette (C, 3); got {labels.shape}, {palette.shape}"
        )
    known = (labels >= 0) & (labels < len(palette))
    table = np.concatenate([palette.astype(np.uint8), np.array([VOID], dtype=np.uint8)])
    return table[np.where(known, labels, len(palette))]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
    """Lay class colours over an image; pixels of no class keep the image.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W) integers.
        palette: (C, 3) uint8.
        alpha: weight of the class colour, 0 to 1.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: sizes differ, or alpha is outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    labels = np.asarray(labels)
    colours = colour_labels(labels, palette)
    if image.shape != colours.shape:
        raise ValueError(f"image {image.shape} and labels {labels.shape} differ in size")
    mixed = np.round((1 - alpha) * image + alpha * colours.astype(np.float64)).astype(np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    return np.where(known[..., None], mixed, image)


def side_by_side_figure(
    images: Sequence[np.ndarray],
    predictions: Sequence[Mapping[str, np.ndarray]],
    truths: Sequence[np.ndarray | None],
    palette: np.ndarray,
    titles: Sequence[str],
    class_names: Sequence[str] = (),
    legend: Mapping[str, Sequence[int]] | None = None,
) -> Figure:
    """Show a row an image: input, the prediction of each run, the truth.

    Args:
        images: R images (H, W, 3) uint8.
        predictions: for each image, by run, its label map (H, W), or a picture (H, W, 3) uint8 that
            is shown as it is; a run may lack an image.
        truths: R likewise, None where it is not known.
        palette: (C, 3) uint8.
        titles: R texts.
        class_names: C names for the legend, which lists the classes in the label maps.
        legend: colours, 0 to 255, by name, that are in the pictures.

    Raises:
        ValueError: no image, or the lists differ in length.
    """
    if not images or not len(images) == len(predictions) == len(truths) == len(titles):
        raise ValueError(
            f"{len(images)} images, {len(predictions)} predictions, {len(truths)} truths and "
            f"{len(titles)} titles: as many of each are needed, and at least one"
        )
    runs = list(dict.fromkeys(run for row in predictions for run in row))
    with_truth = any(truth is not None for truth in truths)
    headings = ["input", *runs, *(["truth"] if with_truth else [])]
    shape = np.median([image.shape[:2] for image in images], axis=0)
    height = 2.6 * float(np.clip(shape[0] / shape[1], 0.3, 2.0))
    present = _present([*(m for row in predictions for m in row.values()), *truths], len(palette))
    names = {c: class_names[c] if c < len(class_names) else f"class {c}" for c in present}
    shown_colours = {names[c]: palette[c] for c in present} | dict(legend or {})
    legend_rows = -(-len(shown_colours) // _legend_columns(len(headings)))
    figure = Figure(
        figsize=(2.6 * len(headings), (height + 0.3) * len(images) + 0.3 + 0.22 * legend_rows),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    axes = figure.subplots(len(images), len(headings), squeeze=False)
    for number, row in enumerate(axes):
        shown: list[np.ndarray | None] = [images[number]]
        maps = [*(predictions[number].get(run) for run in runs)]
        maps += [truths[number]] if with_truth else []
        shown += [
            labels if labels is None or labels.ndim == 3 else colour_labels(labels, palette)
            for labels in maps
        ]
        for axis, heading, picture in zip(row, headings, shown, strict=True):
            axis.set_axis_off()
            if picture is not None:
                axis.imshow(picture, interpolation_stage="rgba")
            if number == 0:
                _head(axis, heading)
        row[0].set_title(titles[number], fontsize=9, loc="left")
    if shown_colours:
        figure.legend(
            handles=[
                Patch(color=to_rgb(colour), label=name) for name, colour in shown_colours.items()
            ],
            loc="outside lower center",
            ncols=_legend_columns(len(headings)),
            fontsize=8,
            frameon=False,
        )
    return figure


def _head(axis: Axes, heading: str) -> None:
    """Name a column, above the place of the row's title."""
    axis.annotate(
        heading,
        (0.5, 1.0),
        (0, 20),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        fontsize=9.5,
        fontweight="bold",
    )


def _legend_columns(columns: int) -> int:
    return max(2, 2 * columns)


def _present(maps: Sequence[np.ndarray | None], classes: int) -> list[int]:
    found: set[int] = set()
    for labels in maps:
        if labels is not None and labels.ndim == 2:
            found |= {int(v) for v in np.unique(labels) if 0 <= v < classes}
    return sorted(found)
