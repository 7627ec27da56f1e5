"""An expert of a collaboration: a whole plain box head, and its losses by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor, nn

from ...errors import ConfigError
from ...moe import true_class_probability


class BoxTargets(NamedTuple):
    """What sampled proposals should give.

    Attributes:
        labels: (M,) int64 classes; background is the class after the last.
        proposals: (M, 4) their boxes.
        boxes: (M, 4) the true ones; those of background are never looked at.
    """

    labels: Tensor
    proposals: Tensor
    boxes: Tensor

    @classmethod
    def of(cls, sampled: list[Instances]) -> BoxTargets:
        """Of proposals as Detectron2 samples them; without objects an image has no ``gt_boxes``."""
        true = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in sampled]
        return cls(
            torch.cat([p.gt_classes for p in sampled]),
            torch.cat([p.proposal_boxes.tensor for p in sampled]),
            torch.cat([boxes.tensor for boxes in true]),
        )

    def at(self, rows: Tensor) -> BoxTargets:
        """Those of some rows."""
        return BoxTargets(*(values[rows] for values in self))


class BoxExpert(nn.Module):
    """A whole plain box head: its layers and its own predictor.

    Args:
        layers: pooled features to a vector.
        predictor: from that to scores and deltas.
    """

    def __init__(self, layers: nn.Module, predictor: FastRCNNOutputLayers) -> None:
        super().__init__()
        self.layers = layers
        self.predictor: FastRCNNOutputLayers = predictor

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C + 1 + B): scores and deltas side by side, one tensor, as groups hold."""
        return torch.cat(self.predictor(self.layers(pooled)), dim=1)

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, C + 1) and deltas (R, B), in float32, of what :meth:`forward` gave."""
        classes = self.predictor.num_classes + 1
        return outputs[:, :classes].float(), outputs[:, classes:].float()

    def box_losses(self, deltas: Tensor, targets: BoxTargets) -> Tensor:
        """(M,) loss of each proposal's box, weighted as Detectron2 does; 0 for background.

        Raises:
            ConfigError: ``BBOX_REG_LOSS_TYPE`` is none of Detectron2's.
        """
        predictor = self.predictor
        losses = deltas.new_zeros(len(deltas))
        objects = ((targets.labels >= 0) & (targets.labels < predictor.num_classes)).nonzero()[:, 0]
        own = targets.at(objects)
        moved = deltas[objects]
        if deltas.shape[1] > self._box_dim:  # one box a class
            moved = moved.unflatten(1, (-1, self._box_dim))
            moved = moved[torch.arange(len(objects), device=deltas.device), own.labels]
        found = _box_losses(predictor, moved, own)
        weight = predictor.loss_weight.get("loss_box_reg", 1.0)
        return losses.index_add(0, objects, weight * found)

    @property
    def _box_dim(self) -> int:
        return len(self.predictor.box2box_transform.weights)


def _box_losses(predictor: FastRCNNOutputLayers, deltas: Tensor, targets: BoxTargets) -> Tensor:
    """(R,) unweighted loss of objects' deltas (R, 4), by ``BBOX_REG_LOSS_TYPE``."""
    kind = predictor.box_reg_loss_type
    if kind == "smooth_l1":
        true = predictor.box2box_transform.get_deltas(targets.proposals, targets.boxes)
        return smooth_l1_loss(deltas, true, predictor.smooth_l1_beta, reduction="none").sum(1)
    overlaps = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if kind not in overlaps:
        raise ConfigError(f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE {kind!r} is unknown")
    boxes = predictor.box2box_transform.apply_deltas(deltas, targets.proposals)
    return overlaps[kind](boxes, targets.boxes, reduction="none")


class ExpertPass(NamedTuple):
    """What an expert made of M proposals in training.

    Attributes:
        expert: which.
        scores: (M, C + 1).
        deltas: (M, B).
        true_class: (M,) the true class's probability (Eq. 1), detached.
    """

    expert: BoxExpert
    scores: Tensor
    deltas: Tensor
    true_class: Tensor

    @classmethod
    def of(cls, expert: nn.Module, pooled: Tensor, targets: BoxTargets) -> ExpertPass:
        """Run it on features (M, C, H, W)."""
        assert isinstance(expert, BoxExpert)
        scores, deltas = expert.split(expert(pooled))
        return cls(expert, scores, deltas, true_class_probability(scores, targets.labels))


def expert_losses(
    passes: Iterable[ExpertPass], weights: Tensor, targets: BoxTargets
) -> dict[str, Tensor]:
    """``loss_expert_cls`` and ``loss_expert_box_reg``, summed over experts and proposals.

    Args:
        passes: of E experts.
        weights: (M, E), W of Eq. 6.
        targets: of the proposals.
    """
    classes, boxes = [], []
    for number, seen in enumerate(passes):
        own = weights[:, number]
        each = F.cross_entropy(seen.scores, targets.labels, reduction="none")
        classes.append((own * each).sum())
        boxes.append((own * seen.expert.box_losses(seen.deltas, targets)).sum())
    return {
        "loss_expert_cls": torch.stack(classes).sum(),
        "loss_expert_box_reg": torch.stack(boxes).sum(),
    }
