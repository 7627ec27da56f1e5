"""Pictures of one prediction, by Detectron2's own visualizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer

from .classes import class_colours


def prediction_picture(
    image: np.ndarray, output: dict[str, Any], metadata: Metadata, *, confidence: float = 0.0
) -> np.ndarray:
    """The image with everything that the model found drawn over it.

    Args:
        image: (H, W, 3) uint8, RGB.
        output: of a Detectron2 model: "sem_seg", "panoptic_seg", "instances", or several.
        metadata: names and colours of classes.
        confidence: instances of a lower score are left out.

    Returns:
        (H, W, 3) uint8, RGB.
    """
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
