"""ROI heads of Faster and Mask R-CNN whose box head is a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...errors import ConfigError
from .mixture import BoxMixture, BoxPrediction


@ROI_HEADS_REGISTRY.register()
class MixtureROIHeads(StandardROIHeads):
    """Detectron2's standard ROI heads around a :class:`BoxMixture`; masks and keypoints as there.

    Args:
        arguments: of ``StandardROIHeads``; ``box_head`` is a mixture.

    Attributes:
        ran: (N, E) bool of the last evaluated batch, all proposals one after the other; None
            before.

    Raises:
        ConfigError: the box head is no mixture.
    """

    @configurable
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if not isinstance(self.box_head, BoxMixture):
            raise ConfigError(
                "MODEL.ROI_HEADS.NAME MixtureROIHeads needs MODEL.ROI_BOX_HEAD.NAME HydraBoxHead "
                f"or CoEBoxHead, not {type(self.box_head).__name__}"
            )
        self.ran: Tensor | None = None

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, detected boxes in evaluation."""
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        if self.training:
            prediction, losses = self.box_head.losses(pooled, self.box_predictor, proposals)
            if self.train_on_pred_boxes:
                self._replace_boxes(prediction, proposals)
            return losses
        prediction = self.box_head.predict(pooled, self.box_predictor)
        self.ran = prediction.ran
        pair = (prediction.scores, prediction.deltas)
        return self.box_predictor.inference(pair, proposals)[0]

    @torch.no_grad()
    def _replace_boxes(self, prediction: BoxPrediction, proposals: list[Instances]) -> None:
        """Let the other heads train on predicted boxes (``TRAIN_ON_PRED_BOXES``)."""
        pair = (prediction.scores, prediction.deltas)
        predicted = self.box_predictor.predict_boxes_for_gt_classes(pair, proposals)
        for instances, boxes in zip(proposals, predicted, strict=True):
            instances.proposal_boxes = Boxes(boxes)
