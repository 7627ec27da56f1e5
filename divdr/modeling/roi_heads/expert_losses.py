"""Losses of the experts of a collaboration, weighted by sample (WGM, Eq. 6 and 10)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...moe import true_class_probability
from .expert import BoxExpert, BoxTargets


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

    def box_loss(self, weights: Tensor, targets: BoxTargets) -> Tensor:
        """Sum of the proposals' losses of boxes by their weights (M,).

        Detectron2 gives sums alone, and the weights of an expert know but two values (Eq. 5): one
        sum a value gives the weighted one.
        """
        loss = self.deltas[:0].sum()
        for value in weights.unique():
            rows = (weights == value).nonzero()[:, 0]
            loss = loss + value * self.expert.box_loss_sum(self.deltas[rows], targets.at(rows))
        return loss


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
        boxes.append(seen.box_loss(own, targets))
    return {
        "loss_expert_cls": torch.stack(classes).sum(),
        "loss_expert_box_reg": torch.stack(boxes).sum(),
    }
