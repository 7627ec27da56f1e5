"""A trained model, ready for single images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T

from ..modeling import attached_routing
from .trained import load_trained


class Predictor:
    """Runs the model of a config on one image at a time, as its evaluation does.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` names the checkpoint.

    Attributes:
        model: the model, in evaluation mode.
        metadata: of the first data set of ``DATASETS.TEST`` (names and colours of classes).

    Raises:
        CheckpointError: no weights, or weights of another model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.model = load_trained(cfg)
        self.routing = attached_routing(self.model)
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__none")
        self._resize = T.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
        )

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """The model's output for an image; for a routed model with its ``routing`` record.

        Args:
            image: (H, W, 3) uint8, RGB.
        """
        height, width = image.shape[:2]
        pixels = image if self.cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        resized = self._resize.get_transform(pixels).apply_image(pixels)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
        return self.model([{"image": tensor, "height": height, "width": width}])[0]

    def expert(self, output: dict[str, Any]) -> int | None:
        """Which local expert an output's route belongs to; None without experts."""
        if self.routing is None or self.routing.experts is None or not self.routing.experts.ready:
            return None
        values = self.routing.clustered_values(output["routing"])
        return int(self.routing.experts.assign(values)[0])
