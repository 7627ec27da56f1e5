"""Predictions beside the truth: label maps as colours, boxes, and the report's examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from PIL import Image

from .parts import Picture, Section, class_colours, default_palette, fixed, listing

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
) -> Figure:
    """Show a row an image: input, the prediction of each run, the truth.

    Args:
        images: R images (H, W, 3) uint8.
        predictions: for each image, by run, its label map (H, W), or a picture (H, W, 3) uint8 that
            is shown as it is; a run may lack an image.
        truths: R label maps (H, W), None where it is not known.
        palette: (C, 3) uint8.
        titles: R texts.
        class_names: C names for the legend, which lists the classes in the picture.

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
    legend_rows = -(-len(present) // _legend_columns(len(headings)))
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
    if present:
        names = {c: class_names[c] if c < len(class_names) else f"class {c}" for c in present}
        figure.legend(
            handles=[Patch(color=palette[c] / 255.0, label=names[c]) for c in present],
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


LARGEST = 1024 * 2048
"""Pixels of a picture, at most: drawing takes time and memory with every one of them."""

CONFIDENCE = 0.5
"""Least score of a detection that pictures show."""

_SHOWN = 5
_DPI = 100


def drawing_size(rows: int, columns: int, largest: int = LARGEST) -> tuple[int, int]:
    """(rows, columns) of the picture for an image: its own, or smaller ones in proportion."""
    scale = min(1.0, math.sqrt(largest / (rows * columns)))
    return max(1, int(rows * scale)), max(1, int(columns * scale))


def reduced(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 at a size (rows, columns) that is not larger."""
    if image.shape[:2] == tuple(size):
        return image
    rows, columns = size
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX))


def prediction_picture(
    image: np.ndarray, output: dict[str, Any], metadata: Metadata, *, confidence: float = 0.0
) -> np.ndarray:
    """The image with everything that the model found drawn over it, or with its class below it.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: of a Detectron2 model: "sem_seg", "panoptic_seg", "instances", or several, of the
            image's size; or of a classifier: "scores".
        metadata: names and colours of classes.
        confidence: instances of a lower score are left out.

    Returns:
        (H, W, 3) uint8, RGB; of a classifier another size.
    """
    if "scores" in output:
        return _class_picture(image, best_classes(output, metadata.classes))
    colours = class_colours(metadata)
    if colours is not None:
        named = {**metadata.as_dict(), "name": f"{metadata.name}_coloured", "stuff_colors": colours}
        metadata = Metadata(**named)
    visualizer = Visualizer(image, metadata, instance_mode=ColorMode.SEGMENTATION)
    if "panoptic_seg" in output:
        segments, info = output["panoptic_seg"]
        return visualizer.draw_panoptic_seg(segments.cpu(), info).get_image()
    drawn = visualizer.get_output()
    if "sem_seg" in output:
        drawn = visualizer.draw_sem_seg(semantic_labels(output))
    if "instances" in output:
        instances = output["instances"].to("cpu")
        drawn = visualizer.draw_instance_predictions(instances[instances.scores >= confidence])
    return drawn.get_image()


def semantic_labels(output: dict[str, Any]) -> torch.Tensor:
    """(H, W) class numbers of a semantic segmentation output."""
    return output["sem_seg"].argmax(dim=0).cpu()


def best_classes(
    output: dict[str, Any], names: Sequence[str], count: int = _SHOWN
) -> list[tuple[str, float]]:
    """Names and scores, from 0 to 1, of the classes that a classifier finds likeliest."""
    # A task of a model of several can have fewer classes than there are scores.
    count = min(count, len(output["scores"]), len(names))
    scores, classes = output["scores"].float().cpu().topk(count)
    return [
        (names[number] if number < len(names) else str(number), score)
        for number, score in zip(classes.tolist(), scores.tolist(), strict=True)
    ]


def _class_picture(image: np.ndarray, classes: Sequence[tuple[str, float]]) -> np.ndarray:
    rows, columns = image.shape[:2]
    width = 5.0
    height = width * float(np.clip(rows / columns, 0.2, 2.0))
    figure = Figure(figsize=(width, height + 0.7), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0.7 / (height + 0.7), 1, height / (height + 0.7)))
    axis.set_axis_off()
    axis.imshow(image, interpolation="nearest" if max(rows, columns) < _DPI * width else None)
    (name, score), *others = classes
    place = 0.7 / (height + 0.7)
    figure.text(0.02, 0.62 * place, f"{name} ({score:.2f})", fontsize=12, fontweight="bold")
    rest = ", ".join(f"{name} {score:.2f}" for name, score in others)
    figure.text(0.02, 0.2 * place, rest, fontsize=8, color="0.4")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


@dataclass(frozen=True)
class Example:
    """An image that the report shows in full.

    Attributes:
        name: text above the image.
        image: (H, W, 3) uint8.
        truth: (H, W) integer labels, None if not known.
        predictions: for each run its labels (H, W), or a picture (H, W, 3) uint8 of what it found;
            a run may be missing.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    predictions: Mapping[str, np.ndarray]


def examples_section(
    examples: Sequence[Example], palette: np.ndarray | None, class_names: Sequence[str]
) -> Section:
    """Build one picture with a row an example."""
    section = Section("Examples")
    if not examples:
        section.sentences.append("No example images were given.")
        return section
    if palette is None:
        palette = default_palette(max(len(class_names), _classes(examples)))
    figure = side_by_side_figure(
        [example.image for example in examples],
        [example.predictions for example in examples],
        [example.truth for example in examples],
        palette,
        [example.name for example in examples],
        class_names,
    )
    caption = "From left to right: the input, what each run predicts, and the truth where known."
    agreement = _agreement(examples)
    caption += f" {agreement}" if agreement else ""
    if _maps(examples):
        caption += " Black pixels belong to no class."
    section.pictures.append(Picture(figure, caption, "wide"))
    return section


def _maps(examples: Sequence[Example]) -> list[np.ndarray]:
    """Label maps, predicted and true; not pictures of instances."""
    maps = [m for e in examples for m in (*e.predictions.values(), e.truth)]
    return [m for m in maps if m is not None and m.ndim == 2]


def _classes(examples: Sequence[Example]) -> int:
    return 1 + max((int(m[m < 255].max(initial=0)) for m in _maps(examples)), default=0)


def _agreement(examples: Sequence[Example]) -> str:
    right: dict[str, list[int]] = {}
    for example in examples:
        if example.truth is None:
            continue
        known = (example.truth >= 0) & (example.truth != 255)
        for run, labels in example.predictions.items():
            if labels.ndim != 2:
                continue
            found = right.setdefault(run, [0, 0])
            found[0] += int((labels == example.truth)[known].sum())
            found[1] += int(known.sum())
    parts = [f"{run} {fixed(100 * r / n, 1)} %" for run, (r, n) in right.items() if n]
    return f"Pixels of these images that agree with the truth: {listing(parts)}." if parts else ""
