"""Names and colours of a data set's classes."""

from __future__ import annotations

from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import Metadata


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
