"""Wide and cheap search for good starting solutions of K-means.

Where data have no clear clusters, hundreds of local optima lie close together and the best of ten
restarts is a matter of luck. So many more runs are made on a small copy of the problem: a sample of
the points, in their leading principal directions. Only the best go on to the real data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._lloyd import inertia_of, lloyd, means, nearest
from ._seeding import draw, kmeans_plus_plus

# The small copy has at most so many points, and about so many numbers.
SAMPLE_POINTS = 4096
_SAMPLE_ENTRIES = 2**17
# Runs from k-means++ seeds, and descendants per generation, for each solution returned.
_SEEDINGS = 6
_DESCENDANTS = 3
_GENERATIONS = 4
# A run ends when a step improves its inertia by less than this part; finalists are polished later.
_TOLERANCE = 1e-4
_MAX_STEPS = 100


def explore(x: Tensor, k: int, count: int, generator: torch.Generator, group: int) -> Tensor:
    """Find starting centres for `count` runs.

    Greedy k-means++ seeds the first runs. Then the best solutions have descendants: one centre,
    drawn at random, moves to a point drawn in proportion to its squared distance to the centres.

    Args:
        x: points (N, D), float64, with zero mean.
        k: number of centres.
        count: number of solutions, R.
        generator: source of randomness, on the CPU.
        group: how many runs are made side by side.

    Returns:
        Centres (R, K, D) in the space of `x`, best first.
    """
    sample = x
    if len(x) > SAMPLE_POINTS:
        picked = torch.randperm(len(x), generator=generator)[:SAMPLE_POINTS].sort().values
        sample = x[picked.to(x.device)]
    small = _principal(sample, max(16, _SAMPLE_ENTRIES // len(sample)))

    def run(starts: Tensor) -> tuple[Tensor, Tensor]:
        parts = starts.split(group)
        labels = torch.cat([lloyd(small, part, _MAX_STEPS, _TOLERANCE) for part in parts])
        return labels, torch.cat([inertia_of(small, part, k) for part in labels.split(group)])

    seeds = [
        kmeans_plus_plus(small, k, min(group, _SEEDINGS * count - first), generator)
        for first in range(0, _SEEDINGS * count, group)
    ]
    labels, scores = run(torch.cat(seeds))
    labels, scores = _best_distinct(labels, scores, count)
    for _ in range(_GENERATIONS if k > 1 else 0):
        new_labels, new_scores = run(_descendants(small, labels, k, generator))
        labels, scores = _best_distinct(
            torch.cat([labels, new_labels]), torch.cat([scores, new_scores]), count
        )
    return means(sample, labels, k)[0]


def _principal(x: Tensor, dim: int) -> Tensor:
    """Coordinates (N, dim) in the leading principal directions; x itself if D <= dim."""
    if x.shape[1] <= dim:
        return x
    _, vectors = torch.linalg.eigh(x.T @ x)
    return x @ vectors[:, -dim:]


def _best_distinct(labels: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best solutions; those with the score of a better one come last."""
    scores, order = scores.sort(stable=True)
    repeated = torch.zeros_like(scores, dtype=torch.bool)
    repeated[1:] = scores[1:] - scores[:-1] <= 1e-9 * scores[1:].abs()
    chosen = repeated.long().argsort(stable=True)[:count]
    return labels[order[chosen]], scores[chosen]


def _descendants(x: Tensor, labels: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres (R·descendants, K, D), each with one centre of its parent relocated."""
    parents = labels.repeat(_DESCENDANTS, 1)
    centres = means(x, parents, k)[0]
    squares = x.square().sum(1)
    closest = (nearest(x, centres)[1] + squares).clamp_(min=0)
    place = draw(closest, torch.rand(len(parents), 1, generator=generator, dtype=torch.float64))
    removed = torch.randint(k, (len(parents),), generator=generator).to(x.device)
    centres[torch.arange(len(parents), device=x.device), removed] = x[place[:, 0]]
    return centres
