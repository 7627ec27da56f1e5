"""One image with its truth and the predictions of the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


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
