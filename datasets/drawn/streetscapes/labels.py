"""Label pictures from annotations, made by the Cityscapes scripts themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image


def label_images(annotation: dict[str, Any]) -> dict[str, Image.Image]:
    """Draws the label pictures of one annotation.

    Args:
        annotation: content of a ``polygons.json``.

    Returns:
        "labelIds" and "labelTrainIds" (mode "L") and "instanceIds" (mode "I;16": class id,
        or class id x 1000 + number for single instances), each of the annotation's size.
    """
    parsed = Annotation()
    parsed.fromJsonText(json.dumps(annotation))
    # Sixteen bits as in Cityscapes; not all versions of Pillow write 32-bit pictures as such.
    instances = np.asarray(createInstanceImage(parsed, "ids")).astype(np.uint16)
    return {
        "labelIds": createLabelImage(parsed, "ids"),
        "labelTrainIds": createLabelImage(parsed, "trainIds"),
        "instanceIds": Image.fromarray(instances),
    }
