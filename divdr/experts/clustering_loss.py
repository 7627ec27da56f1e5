"""The loss that keeps local experts apart (DivDR, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..settings import ClusteringSettings
from .kmeans import nearest_centre


def clustering_loss(
    activations: Tensor,
    centres: Tensor,
    sigma2: Tensor | float,
    *,
    margin: float = ClusteringSettings.margin,
    squared: bool = ClusteringSettings.squared,
    assignment: Tensor | None = None,
) -> Tensor:
    """Pull every activation to its own centre and push it from the others.

    DivDR, Eq. 2, with μ the centre nearest to A, unless ``assignment`` names another, and d the
    norm (as printed) or its square (as in the magnet loss, from which it derives)::

        { margin + d(A, μ) / 2σ² + log Σ_{μ_k ≠ μ} exp(−d(A, μ_k) / 2σ²) }₊

    With a single centre there is nothing to push from and the loss is d(A, μ) / 2σ². "≠" goes by
    id: a second centre at the same place counts as another one.

    Args:
        activations: A (N, D).
        centres: μ_k (K, D); constants, as is σ².
        sigma2: σ² > 0, a number or a tensor with one element.
        margin: α >= 0.
        squared: whether d is the squared norm.
        assignment: centre (N,) of each activation, where it is known; None: the nearest.

    Returns:
        Losses (N,): float64 for float64 activations, else float32, under autocast too. The
        gradient of the norm is taken as 0 where A equals a centre.

    Raises:
        ValueError: shapes do not fit, or there is no centre.
    """
    dtype = torch.promote_types(activations.dtype, torch.float32)
    with torch.autocast(device_type=activations.device.type, enabled=False):
        a = activations.to(dtype)
        c = centres.detach().to(a)
        own = nearest_centre(a.detach(), c)[0] if assignment is None else assignment.to(c.device)
        scale = 0.5 / torch.as_tensor(sigma2, dtype=dtype, device=a.device).detach()
        # By differences: ‖A‖² − 2A·μ + ‖μ‖² cancels where A is close to a centre.
        distance = (a[:, None] - c).square().sum(2)  # (N, K)
        if not squared:
            distance = _safe_sqrt(distance)
        scaled = distance * scale
        pull = scaled.gather(1, own[:, None])[:, 0]  # (N,)
        if len(c) == 1:
            return pull
        is_own = torch.arange(len(c), device=a.device) == own[:, None]  # (N, K)
        push = torch.logsumexp((-scaled).masked_fill(is_own, -torch.inf), dim=1)
        return (margin + pull + push).clamp(min=0)


@torch.no_grad()
def cluster_variance(a: Tensor, centres: Tensor, assignment: Tensor, floor: float = 0.0) -> Tensor:
    """σ² = Σ‖A − μ(x)‖² / (N − 1) over the data set (DivDR, below Eq. 2).

    Args:
        a: activations (N, D).
        centres: (K, D).
        assignment: centre of each activation (N,).
        floor: least value, so that a collapsed clustering does not divide by zero.

    Returns:
        A tensor without dimensions, of the dtype of `centres`.
    """
    # In double precision only the sum: a copy of a large data set's activations would be huge.
    away = a - centres.to(a.dtype)[assignment]
    total = away.square_().sum(dtype=torch.double)
    return (total / max(len(a) - 1, 1)).clamp(min=floor).to(centres.dtype)


def _safe_sqrt(squares: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 and not infinite."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
