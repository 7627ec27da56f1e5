"""Greedy k-means++ seeding of several restarts at once (Arthur and Vassilvitskii, 2007)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kmeans_plus_plus(x: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """Draw R sets of K starting centres.

    A new centre is a point drawn in proportion to its squared distance to the centres so far. Of
    2 + ln K draws the one that lowers the inertia most is kept.

    Args:
        x: points (N, D), float64.
        k: number of centres.
        restarts: number of sets, R.
        generator: source of randomness, on the CPU.

    Returns:
        Centres (R, K, D).
    """
    draws = 2 + int(math.log(k))
    uniform = torch.rand(restarts, k, draws, generator=generator, dtype=torch.float64)
    squares = x.square().sum(1)
    index = (uniform[:, 0, 0] * len(x)).long().clamp_(max=len(x) - 1).to(x.device)
    chosen = [index]
    closest = squared_distances(x, squares, index)
    restart = torch.arange(restarts, device=x.device)
    for step in range(1, k):
        candidates = draw(closest, uniform[:, step])
        distances = squared_distances(x, squares, candidates.flatten())
        distances = distances.view(restarts, draws, -1).minimum(closest[:, None])
        best = distances.sum(2).argmin(1)
        chosen.append(candidates[restart, best])
        closest = distances[restart, best]
    return x[torch.stack(chosen, 1)]


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices (R, L) drawn in proportion to weights (R, N) from uniform numbers (R, L)."""
    # On the CPU, because CUDA's cumulative sum is not deterministic. One transfer per centre.
    cumulative = weights.cpu().cumsum(1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return drawn.clamp_(max=weights.shape[1] - 1).to(weights.device)


def squared_distances(x: Tensor, squares: Tensor, index: Tensor) -> Tensor:
    """Squared distances (M, N) from the points at `index` (M,) to all points."""
    distances = torch.addmm(squares[None], x[index], x.T, alpha=-2)
    distances = (distances + squares[index, None]).clamp_(min=0)
    # Rounding would otherwise leave a chosen point a chance of being chosen again.
    return distances.scatter_(1, index[:, None], 0.0)
