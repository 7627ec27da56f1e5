"""Lloyd's algorithm for several restarts at once, and the sums it shares with other searches.

A solution is its labels: (R, N) of int64 for R restarts. Tensors with one entry per restart, centre
and point are laid out (R, K, N), so that every reduction runs along contiguous points.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lloyd(x: Tensor, centres: Tensor, max_iterations: int, tolerance: float = 0.0) -> Tensor:
    """Alternate nearest centres and means until no label changes, or little is gained.

    Restarts that have converged leave the batch. A centre without members moves to the point that
    is farthest from its own centre (several such centres: to the farthest points, in order).

    Args:
        x: points (N, D), float64.
        centres: starting centres (R, K, D).
        max_iterations: limit on the steps.
        tolerance: a run also ends when a step lowers its inertia by less than this part of it.

    Returns:
        Labels (R, N).
    """
    restarts, k, _ = centres.shape
    squares = x.square().sum(1)
    labels = torch.full((restarts, len(x)), -1, dtype=torch.long, device=x.device)
    active = torch.arange(restarts, device=x.device)
    current = labels
    inertia = torch.full((restarts,), torch.inf, dtype=x.dtype, device=x.device)
    total = squares.sum()
    # Reading a result stalls a CUDA stream, so look only now and then; a step more changes nothing.
    interval = 8 if x.is_cuda else 1
    for step in range(1, max_iterations + 1):
        new, closest = nearest(x, centres)
        settled = (new == current).all(1)
        current = new
        if tolerance > 0:
            new_inertia = closest.sum(1) + total
            settled |= inertia - new_inertia <= tolerance * new_inertia
            inertia = new_inertia
        if step % interval == 0 or step == max_iterations:
            labels[active] = current
            keep = (~settled).nonzero().flatten()
            if len(keep) == 0 or step == max_iterations:
                break
            if len(keep) < len(active):
                active, current = active[keep], current[keep]
                closest, inertia = closest[keep], inertia[keep]
        centres, counts = means(x, current, k)
        centres = _fill_empty(x, centres, counts, closest + squares)
    return labels


def nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (R, N) of the nearest centres and ‖x−c‖² − ‖x‖² to them, (R, N)."""
    return smallest(partial_distances(x, centres))


def smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Index and value (R, N) of the smallest of values (R, K, N) over K, ties to the lowest."""
    # K is small: a pass per centre is several times faster on a CPU than argmin over this axis.
    value = values[:, 0]
    index = torch.zeros_like(value, dtype=torch.long)
    for k in range(1, values.shape[1]):
        index = index.masked_fill(values[:, k] < value, k)
        value = torch.minimum(values[:, k], value)
    return index, value


def partial_distances(x: Tensor, centres: Tensor) -> Tensor:
    """‖x−c‖² − ‖x‖² for centres (R, K, D): (R, K, N). Enough to compare centres."""
    restarts, k, dim = centres.shape
    flat = centres.reshape(restarts * k, dim)
    distances = torch.addmm(flat.square().sum(1, keepdim=True), flat, x.T, alpha=-2)
    return distances.view(restarts, k, len(x))


def means(x: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Means (R, K, D) of the labelled points and their counts (R, K); the mean of none is 0."""
    # A product with the indicator matrix sums in a fixed order, which index_add on CUDA does not.
    one_hot = (labels[:, None] == torch.arange(k, device=x.device)[:, None]).to(x.dtype)
    counts = one_hot.sum(2)
    sums = (one_hot.view(-1, len(x)) @ x).view(len(labels), k, -1)
    return sums / counts.clamp(min=1)[..., None], counts


def inertia_of(x: Tensor, labels: Tensor, k: int) -> Tensor:
    """Inertia (R,) of labels (R, N), with every centre at the mean of its members."""
    return inertia_of_means(x.square().sum(), *means(x, labels, k))


def inertia_of_means(total: Tensor, centres: Tensor, counts: Tensor) -> Tensor:
    """Σ‖x‖² − Σ n_k‖c_k‖², the inertia (R,) when centres (R, K, D) are means; total is Σ‖x‖²."""
    return total - (counts * centres.square().sum(2)).sum(1)


def _fill_empty(x: Tensor, centres: Tensor, counts: Tensor, closest: Tensor) -> Tensor:
    empty = counts == 0
    if not x.is_cuda and not bool(empty.any()):
        return centres
    farthest = closest.topk(centres.shape[1], dim=1).indices
    rank = (empty.long().cumsum(1) - 1).clamp_(min=0)
    return torch.where(empty[..., None], x[farthest.gather(1, rank)], centres)
