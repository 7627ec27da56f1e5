"""Balanced assignment of samples to experts by Vogel's approximation.

Collaboration of Experts, Eq. 3 and 4, and its appendix A.1, which seeks the largest penalty among
rows alone. Rows are samples, columns experts: (M, N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..routing import to_device


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
    device, costs = costs.device, costs.cpu()  # small, and a wait for the device at every step
    if costs.dim() != 2 or costs.shape[1] == 0 or not bool(torch.isfinite(costs).all()):
        raise ValueError(f"Expected finite costs (M, N) with N > 0, got {tuple(costs.shape)}.")
    rows, columns = costs.shape
    if capacities is None:
        capacities = balanced_capacities(rows, columns)
    left = capacities.to("cpu", torch.int64).clone()
    if left.shape != (columns,) or bool((left < 0).any()) or int(left.sum()) < rows:
        raise ConfigError(
            f"capacities {capacities.tolist()} cannot take {rows} samples on {columns} experts"
        )
    assigned = torch.full((rows,), -1, dtype=torch.int64)
    waiting = torch.arange(rows)
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
    return to_device(assigned, device)


def _preferences(costs: Tensor) -> tuple[Tensor, Tensor]:
    """Cheapest column of every row, and the rows from the largest penalty to the smallest."""
    if costs.shape[1] == 1:
        return torch.zeros(len(costs), dtype=torch.int64), torch.arange(len(costs))
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
