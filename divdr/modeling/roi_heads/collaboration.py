"""Labels and weights by which experts and their selector are trained, of the samples of a batch.

Collaboration of Experts, Sections 3.2 to 3.4; M samples, here proposals, and E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...classification import one_hot_choice, vogel_assignment


@torch.no_grad()
def suitability(true_class: Tensor) -> Tensor:
    """(M, E) S: each expert's true-class probabilities, standardised over samples (Eq. 2)."""
    if len(true_class) == 0:
        return true_class
    spread = true_class.std(0, correction=0).clamp(min=1e-6)
    return (true_class - true_class.mean(0)) / spread


def selection_labels(suited: Tensor) -> Tensor:
    """(M,) int64 the expert that the selector learns to name: LGM, Eq. 3, by Vogel's rule.

    Args:
        suited: (M, E) S.
    """
    return vogel_assignment(_finite(-suited))


@torch.no_grad()
def selection_weights(suited: Tensor) -> Tensor:
    """(M,) v: how much each sample depends on the choice, 1 in sum: SRM, Eq. 7.

    Args:
        suited: (M, E) S.
    """
    if len(suited) == 0:
        return suited.sum(1)
    spread = suited.std(1, correction=0)
    return spread / spread.sum().clamp(min=1e-6)


def training_assignment(probabilities: Tensor) -> Tensor:
    """(M, E) bool A: balanced, by the selector's own probabilities (M, E): WGM, Eq. 4."""
    assigned = vogel_assignment(_finite(-probabilities))
    return one_hot_choice(assigned, probabilities.shape[1])


def smoothed(assigned: Tensor, alpha: float) -> tuple[float, Tensor]:
    """The loss weights W of WGM (Eq. 5 and 6), which know two values an expert.

    W[j, k] = (base + alpha · A[j, k]) / Z[k], Z the sum over the samples.

    Args:
        assigned: (M, E) bool A.
        alpha: α, from 0 (all samples alike) to 1 (the assigned ones alone).

    Returns:
        The base (1 − α) / E, and (E,) float Z; 0 in Z (α = 1, nothing assigned) is given as 1.
    """
    rows, experts = assigned.shape
    base = (1 - alpha) / experts
    total = base * rows + alpha * assigned.sum(0).float()
    return base, total.where(total > 0, torch.ones_like(total))


def _finite(costs: Tensor) -> Tensor:
    """The losses say what is not finite; an assignment of it must not be what fails."""
    return torch.nan_to_num(costs.detach().float())
