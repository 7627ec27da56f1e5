"""Losses of the experts of a collaboration, weighted by sample (WGM, Eq. 5, 6 and 10)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .collaboration import smoothed, training_assignment
from .expert import BoxExpert, BoxTargets


def expert_losses(
    experts: Iterable[nn.Module],
    pooled: Tensor,
    selector_logits: Tensor,
    targets: BoxTargets,
    alpha: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """All experts on all proposals.

    Args:
        experts: E of :class:`BoxExpert`.
        pooled: (M, C, H, W) features of the proposals.
        selector_logits: (M, E).
        targets: of the proposals.
        alpha: α.

    Returns:
        ``loss_expert_cls`` and ``loss_expert_box_reg``, and (M, E) the true class's probabilities.
    """
    assigned = training_assignment(selector_logits.float().softmax(1))
    base, total = smoothed(assigned, alpha)
    weights = (base + alpha * assigned.float()) / total
    classes, boxes, true_class = [], [], []
    for number, expert in enumerate(experts):
        assert isinstance(expert, BoxExpert)
        scores, deltas = expert.split(expert(pooled))
        each = F.cross_entropy(scores, targets.labels, reduction="none")
        classes.append((weights[:, number] * each).sum())
        true_class.append((-each.detach()).exp())
        # W knows two values an expert, so that two plain sums give the weighted one.
        own = assigned[:, number].nonzero()[:, 0]
        every_sum = expert.box_loss_sum(deltas, targets)
        own_sum = expert.box_loss_sum(deltas[own], targets.at(own))
        boxes.append((base * every_sum + alpha * own_sum) / total[number])
    losses = {
        "loss_expert_cls": torch.stack(classes).sum(),
        "loss_expert_box_reg": torch.stack(boxes).sum(),
    }
    return losses, torch.stack(true_class, dim=1)
