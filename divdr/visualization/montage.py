"""The images closest to each centre, a row an expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from ..image_files import read_image
from .run_data import RouteData

_CELL = 1.6  # inches, width of a picture


def nearest_to_centres(
    activations: np.ndarray, centres: np.ndarray, expert: np.ndarray, count: int
) -> list[list[int]]:
    """Find the members of every cluster that lie closest to its centre.

    Args:
        activations: (N, D).
        centres: (K, D).
        expert: (N,) cluster of each image, -1 for none.
        count: members a centre, at most.

    Returns:
        K lists of image numbers, closest first, ties by the lower number.

    Raises:
        ValueError: shapes do not fit, or count is negative.
    """
    activations = np.asarray(activations, dtype=np.float64)
    centres = np.asarray(centres, dtype=np.float64)
    expert = np.asarray(expert)
    if activations.ndim != 2 or centres.ndim != 2 or expert.shape != (len(activations),):
        raise ValueError(
            f"activations {activations.shape}, centres {centres.shape} and expert "
            f"{expert.shape} do not fit"
        )
    if len(centres) and centres.shape[1] != activations.shape[1]:
        raise ValueError(f"activations {activations.shape} and centres {centres.shape} do not fit")
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    nearest = []
    for k, centre in enumerate(centres):
        members = np.flatnonzero(expert == k)
        distance = np.linalg.norm(activations[members] - centre, axis=1)
        order = np.argsort(distance, kind="stable")[:count]
        nearest.append([int(i) for i in members[order]])
    return nearest


def read_thumbnail(path: str | Path, longest: int = 320) -> np.ndarray:
    """Read an image, shrunk so that no side exceeds ``longest`` pixels: (H, W, 3) uint8.

    Raises:
        DataError: the file is not there or not an image.
    """
    picture = Image.fromarray(read_image(path, "RGB"))
    picture.thumbnail((longest, longest))
    return np.asarray(picture)


def thumbnail(name: str) -> np.ndarray | None:
    """The thumbnail of an image file; None if it is not where its name says.

    Raises:
        DataError: it is no image.
    """
    return read_thumbnail(name) if Path(name).is_file() else None


def read_nearest(routes: RouteData, count: int) -> tuple[list[list[np.ndarray]], int]:
    """Read the images closest to each centre.

    Args:
        routes: of a run with K experts.
        count: images a centre, at most.

    Returns:
        For each of the K centres its thumbnails (H, W, 3) uint8, closest first, and how many
        images are not where their names say.

    Raises:
        DataError: a file is no image.
    """
    nearest = nearest_to_centres(routes.activations, routes.centres, routes.expert, count)
    names = [[routes.file_names[i] for i in row] for row in nearest]
    found = [[thumbnail(name) for name in row] for row in names]
    images = [[picture for picture in row if picture is not None] for row in found]
    return images, sum(len(row) for row in names) - sum(len(row) for row in images)


def montage_figure(images: Sequence[Sequence[np.ndarray]], row_titles: Sequence[str]) -> Figure:
    """Show rows of images, closest to the centre first.

    Args:
        images: for each row its images (H, W, 3) uint8; rows may differ in length or be empty.
        row_titles: a text for each row.

    Raises:
        ValueError: no row, no image at all, or another number of titles than rows.
    """
    if len(images) != len(row_titles):
        raise ValueError(f"{len(images)} rows need as many titles, got {len(row_titles)}")
    columns = max((len(row) for row in images), default=0)
    if columns == 0:
        raise ValueError("a montage needs at least one image")
    shape = np.median([picture.shape[:2] for row in images for picture in row], axis=0)
    height = _CELL * float(np.clip(shape[0] / shape[1], 0.3, 2.0))
    figure = Figure(
        figsize=(_CELL * columns + 0.2, (height + 0.32) * len(images) + 0.1),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0),
    )
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, title, pictures in zip(axes, row_titles, images, strict=True):
        row[0].set_title(title, fontsize=9, loc="left")
        for number, axis in enumerate(row):
            axis.set_axis_off()
            axis.set_anchor("N")  # a tall picture would reach into the title above its row
            if number < len(pictures):
                axis.imshow(pictures[number])
    return figure
