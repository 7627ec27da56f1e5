"""Balanced assignment of samples to experts by Vogel's approximation, and exchanges after it.

Collaboration of Experts, Eq. 3 and 4, and its appendix A.1, which seeks the largest penalty among
rows alone. Rows are samples, columns experts: (M, N).
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ..errors import ConfigError


def balanced_capacities(samples: int, experts: int) -> Tensor:
    """(experts,) int64 shares of the samples; where they do not divide, the first get one more."""
    shares = torch.full((experts,), samples // experts)
    shares[: samples % experts] += 1
    return shares


@torch.no_grad()
def vogel_assignment(costs: Tensor, capacities: Tensor | None = None) -> Tensor:
    """Assign every row to a column, of limited capacity, at a low total cost.

    The rule is taken step by step in the paper: the row whose lowest cost is furthest below its
    next lowest one gets its cheapest column; a column that is full is crossed out. Between two
    columns' closing no penalty changes, so that all rows of such a phase are assigned together, in
    the order of their penalties: N sorts instead of M steps, and the same result.

    Args:
        costs: (M, N), finite, lower is better.
        capacities: (N,) rows that each column takes, M at least in sum; None: M / N each, see
            :func:`balanced_capacities`.

    Returns:
        (M,) int64, the column of each row. Never infeasible: every row has one, and no column has
        more than its capacity.

    Raises:
        ValueError: costs are no finite matrix with a column.
        ConfigError: the capacities do not suffice, or are not one a column.
    """
    if costs.dim() != 2 or costs.shape[1] == 0 or not bool(torch.isfinite(costs).all()):
        raise ValueError(f"Expected finite costs (M, N) with N > 0, got {tuple(costs.shape)}.")
    rows, columns = costs.shape
    if capacities is None:
        capacities = balanced_capacities(rows, columns)
    left = capacities.to(costs.device, torch.int64).clone()
    if left.shape != (columns,) or bool((left < 0).any()) or int(left.sum()) < rows:
        raise ConfigError(
            f"capacities {capacities.tolist()} cannot take {rows} samples on {columns} experts"
        )
    assigned = torch.full((rows,), -1, dtype=torch.int64, device=costs.device)
    waiting = torch.arange(rows, device=costs.device)
    while len(waiting):
        opened = left.nonzero()[:, 0]
        wanted, order = _preferences(costs[waiting][:, opened])
        done = _until_one_is_full(wanted[order], left[opened])
        taken = order[:done]
        columns_taken = opened[wanted[taken]]
        assigned[waiting[taken]] = columns_taken
        left -= columns_taken.bincount(minlength=columns)
        stays = torch.ones_like(waiting, dtype=torch.bool)
        stays[taken] = False
        waiting = waiting[stays]
    return assigned


def _preferences(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Cheapest column of every row, and the rows from the largest penalty to the smallest."""
    if costs.shape[1] == 1:
        return costs.new_zeros(len(costs), dtype=torch.int64), torch.arange(
            len(costs), device=costs.device
        )
    lowest, index = costs.topk(2, dim=1, largest=False)
    order = (lowest[:, 1] - lowest[:, 0]).argsort(descending=True, stable=True)
    return index[:, 0], order


def _until_one_is_full(wanted: Tensor, left: Tensor) -> int:
    """How many rows, in their order, can have what they want before a column is full."""
    ends = [len(wanted)]
    for column, capacity in enumerate(left.tolist()):
        places = (wanted == column).nonzero()[:, 0]
        if len(places) >= capacity:
            ends.append(int(places[capacity - 1]) + 1)
    return min(ends)


@torch.no_grad()
def exchange(costs: Tensor, assigned: Tensor, rounds: int = 10) -> Tensor:
    """Swap rows between columns while that lowers the total cost; no column's number changes.

    Of two columns, as many rows change places as lower the cost, those that gain most first, which
    is the best division of their rows between the two. Vogel's approximation alone is some per
    cent above the optimum where the lowest costs are near 0.

    Args:
        costs: (M, N).
        assigned: (M,) int64, column of every row.
        rounds: passes over all pairs of columns at most; it ends earlier where no swap helps.

    Returns:
        (M,) int64, a new assignment.
    """
    assigned = assigned.clone()
    pairs = list(combinations(range(costs.shape[1]), 2))
    for _ in range(rounds):
        if sum(_swap(costs, assigned, a, b) for a, b in pairs) == 0:
            break
    return assigned


def _swap(costs: Tensor, assigned: Tensor, a: int, b: int) -> bool:
    rows_a, gains_a = _movers(costs, assigned, a, b)
    rows_b, gains_b = _movers(costs, assigned, b, a)
    pairs = min(len(rows_a), len(rows_b))
    # Rounding must not swap the same rows for ever.
    smallest = 1e-6 * float(costs.abs().max()) if costs.numel() else 0.0
    count = int((gains_a[:pairs] + gains_b[:pairs] > smallest).sum())
    assigned[rows_a[:count]] = b
    assigned[rows_b[:count]] = a
    return count > 0


def _movers(costs: Tensor, assigned: Tensor, source: int, target: int) -> tuple[Tensor, Tensor]:
    """Rows of a column, and what each gains by the other column, the largest gain first."""
    rows = (assigned == source).nonzero()[:, 0]
    gains, order = (costs[rows, source] - costs[rows, target]).sort(descending=True)
    return rows[order], gains
