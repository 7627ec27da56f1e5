"""Hartigan's single-point moves, several at a time, for several restarts at once.

Moving a point from cluster i (n_i members, squared distance d_i² to their mean) to j changes the
inertia by n_j/(n_j+1)·d_j² − n_i/(n_i−1)·d_i², because both means move too. Lloyd compares the
plain distances, so it stops at many points where such a move still helps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._lloyd import inertia_of_means, means, partial_distances, smallest

# Moves that are selected by their promise in one round, at most.
_MOST_SELECTED = 64


def hartigan(x: Tensor, labels: Tensor, k: int, max_rounds: int) -> Tensor:
    """Move points while that lowers the inertia.

    The rule is exact for one move. A round makes many moves of each restart together and keeps
    them if the inertia fell: first all that promise something, and once that fails the m best,
    where m is quartered on failure and doubled on success. A single move that does not help, or a
    success of less than 1e-7 of the inertia, ends the restart.

    Args:
        x: points (N, D), float64.
        labels: starting labels (R, N).
        k: number of clusters.
        max_rounds: limit on the rounds.

    Returns:
        Labels (R, N), of no larger inertia.
    """
    result = labels.clone()
    if k == 1 or len(x) <= k:
        return result
    squares = x.square().sum(1)
    total = squares.sum()
    # Gains below the rounding of the sums are not gains.
    smallest_gain = 1e-12 * total
    active = torch.arange(len(labels), device=x.device)
    current = labels
    centres, counts = means(x, current, k)
    inertia = inertia_of_means(total, centres, counts)
    bulk = torch.ones(len(labels), dtype=torch.bool, device=x.device)
    most = min(_MOST_SELECTED, len(x))
    allowed = torch.full((len(labels),), most, dtype=torch.long, device=x.device)
    position = torch.arange(most, device=x.device)
    interval = 8 if x.is_cuda else 1
    for step in range(1, max_rounds + 1):
        target, gain = _best_moves(x, squares, current, centres, counts)
        moving = gain > smallest_gain
        order = gain.topk(most, dim=1).indices
        selected = torch.zeros_like(moving).scatter_(1, order, position < allowed[:, None])
        moved = torch.where(moving & (selected | bulk[:, None]), target, current)
        new_centres, new_counts = means(x, moved, k)
        new_inertia = inertia_of_means(total, new_centres, new_counts)
        better = new_inertia < inertia
        slight = inertia - new_inertia <= 1e-7 * new_inertia
        single = (moving.sum(1) <= 1) | ((allowed == 1) & ~bulk)
        done = torch.where(better, slight & ~bulk, single)
        # A failure in bulk leads to the first selection; later ones shrink it.
        shrunk = torch.where(bulk, allowed, allowed // 4)
        allowed = torch.where(better & ~bulk, allowed * 2, shrunk).clamp_(1, most)
        bulk = bulk & better & ~slight
        current = torch.where(better[:, None], moved, current)
        centres = torch.where(better[:, None, None], new_centres, centres)
        counts = torch.where(better[:, None], new_counts, counts)
        inertia = torch.where(better, new_inertia, inertia)
        if step % interval == 0 or step == max_rounds:
            result[active] = current
            keep = (~done).nonzero().flatten()
            if len(keep) == 0:
                break
            if len(keep) < len(active):
                active, current = active[keep], current[keep]
                allowed, bulk = allowed[keep], bulk[keep]
                centres, counts, inertia = centres[keep], counts[keep], inertia[keep]
    return result


def _best_moves(
    x: Tensor, squares: Tensor, labels: Tensor, centres: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """For every point the best other cluster (R, N) and by how much the inertia falls (R, N)."""
    distances = (partial_distances(x, centres) + squares).clamp_(min=0)
    own = labels[:, None]
    own_count = counts.gather(1, labels)
    # The only member of a cluster sits on its mean: nothing is gained by taking it away.
    leaving = distances.gather(1, own)[:, 0] * own_count / (own_count - 1).clamp(min=1)
    leaving = torch.where(own_count > 1, leaving, 0.0)
    arriving = (distances * (counts / (counts + 1))[..., None]).scatter_(1, own, torch.inf)
    target, arrival = smallest(arriving)
    return target, leaving - arrival
