"""An expert of a collaboration: a whole plain box head, and its losses by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from ...moe import true_class_probability
from .box_losses import BoxTargets, box_losses


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
        boxes.append((own * box_losses(seen.expert.predictor, seen.deltas, targets)).sum())
    return {
        "loss_expert_cls": torch.stack(classes).sum(),
        "loss_expert_box_reg": torch.stack(boxes).sum(),
    }
