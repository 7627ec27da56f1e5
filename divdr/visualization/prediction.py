"""Pictures of one prediction: what was found drawn over the image, or the class beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .parts import class_colours

LARGEST = 1024 * 2048
"""Pixels of a picture, at most: drawing takes time and memory with every one of them."""

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
    scores, classes = output["scores"].float().cpu().topk(min(count, len(output["scores"])))
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
