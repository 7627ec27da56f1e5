"""What every mixture of experts promises as a box head, so that ROI heads know none of them.

Shapes: N proposals of all images of a batch, one after the other; C classes, and background as
class C; E branches or experts; B numbers of box deltas, 4·C or 4 if they are class-agnostic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import Cost
from ..single_gate_head import SingleGateHead


class BoxPrediction(NamedTuple):
    """Of all proposals of a batch.

    Attributes:
        scores: (N, C + 1) logits.
        deltas: (N, B) of the boxes.
        ran: (N, E) bool, branches or experts that ran.
    """

    scores: Tensor
    deltas: Tensor
    ran: Tensor


class BoxMixture(nn.Module):
    """A box head that decides for every proposal what runs.

    ``predictor`` is the ROI heads' own box predictor, to which ``output_shape`` goes.

    Attributes:
        in_shape: of the pooled features of a proposal.
        output_shape: of what the predictor takes.
        leaves_parameters_out: branches that no proposal of a batch needs get no gradient, and DDP
            has to look for them.
    """

    in_shape: ShapeSpec
    output_shape: ShapeSpec
    leaves_parameters_out = True

    def predict(self, pooled: Tensor, predictor: FastRCNNOutputLayers) -> BoxPrediction:
        """Predict from pooled features (N, C, H, W); what is not chosen does not run."""
        raise NotImplementedError

    def losses(
        self, pooled: Tensor, predictor: FastRCNNOutputLayers, proposals: list[Instances]
    ) -> tuple[BoxPrediction, dict[str, Tensor]]:
        """Predictions and weighted losses of sampled proposals, with their ``gt_classes``."""
        raise NotImplementedError

    def cost(self, predictor: nn.Module) -> Cost:
        """Multiply-adds for one proposal, from its pooled features on."""
        raise NotImplementedError

    def embed(self, pooled: Tensor) -> Tensor:
        """(N, D) features of proposals, the same function for every one of them."""
        raise NotImplementedError

    def forward(self, pooled: Tensor) -> Tensor:
        """Not what runs a mixture.

        Raises:
            ConfigError: always; it is asked by ROI heads that know no mixtures.
        """
        name = type(self).__name__
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.NAME {name} needs MODEL.ROI_HEADS.NAME MixtureROIHeads"
        )


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
                "MODEL.ROI_HEADS.NAME MixtureROIHeads needs MODEL.ROI_BOX_HEAD.NAME HydraBoxHead, "
                f"CoEBoxHead or SingleGateBoxHead, not {type(self.box_head).__name__}"
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

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Detectron2's; nothing while a mixture is made of a finished detector."""
        if self.training and isinstance(self.box_head, SingleGateHead):
            return {}
        return super()._forward_mask(features, instances)

    def _forward_keypoint(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Detectron2's; nothing while a mixture is made of a finished detector."""
        if self.training and isinstance(self.box_head, SingleGateHead):
            return {}
        return super()._forward_keypoint(features, instances)

    @torch.no_grad()
    def _replace_boxes(self, prediction: BoxPrediction, proposals: list[Instances]) -> None:
        """Let the other heads train on predicted boxes (``TRAIN_ON_PRED_BOXES``)."""
        pair = (prediction.scores, prediction.deltas)
        predicted = self.box_predictor.predict_boxes_for_gt_classes(pair, proposals)
        for instances, boxes in zip(proposals, predicted, strict=True):
            instances.proposal_boxes = Boxes(boxes)
