"""Balanced assignment against a naive loop and the exact optimum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from divdr.errors import ConfigError
from divdr.moe import balanced_capacities, vogel_assignment


def one_by_one(costs, capacities):
    """Vogel's approximation with row penalties, a row at a time."""
    costs, left = costs.tolist(), capacities.tolist()
    assigned = [-1] * len(costs)
    for _ in costs:
        best = None
        for row, line in enumerate(costs):
            if assigned[row] >= 0:
                continue
            prices = sorted((line[k], k) for k in range(len(left)) if left[k])
            penalty = prices[1][0] - prices[0][0] if len(prices) > 1 else 0.0
            if best is None or penalty > best[0]:
                best = penalty, row, prices[0][1]
        assigned[best[1]] = best[2]
        left[best[2]] -= 1
    return assigned


def total(costs, assigned):
    return costs.gather(1, assigned[:, None]).sum().item()


def optimum(costs):
    rows, columns = costs.shape
    squared = costs.repeat_interleave(rows // columns, 1).numpy()
    return squared[linear_sum_assignment(squared)].sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 6))
def test_phases_give_what_single_steps_give(seed, rows, columns):
    costs = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    costs = costs.double()  # penalties without ties
    capacities = balanced_capacities(rows, columns)
    assert vogel_assignment(costs).tolist() == one_by_one(costs, capacities)


def test_the_paper_s_rule_by_hand():
    # Penalties 3, 1, 11, 2: the third row has its first column, then the first row its second; row
    # 4 wants column 1, which then is full, and the second row is left with column 2.
    costs = torch.tensor([[5.0, 2.0], [4.0, 5.0], [1.0, 12.0], [3.0, 5.0]])
    assert vogel_assignment(costs).tolist() == [1, 1, 0, 0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 50), st.integers(1, 8), st.integers(0, 5))
def test_never_infeasible_also_with_ties_and_unequal_capacities(seed, rows, columns, spare):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randint(0, 3, (rows, columns), generator=generator).float()
    capacities = torch.randint(0, rows + 1, (columns,), generator=generator)
    capacities[0] += max(0, rows + spare - int(capacities.sum()))
    assigned = vogel_assignment(costs, capacities)
    assert bool((assigned >= 0).all())
    assert bool((assigned.bincount(minlength=columns) <= capacities).all())


@pytest.mark.parametrize(("rows", "columns"), [(64, 4), (200, 8), (320, 16)])
def test_cost_within_two_per_cent_of_the_optimum(rows, columns):
    excess = []
    for seed in range(8):
        # Standardised values, as the paper's costs are (Eq. 2).
        costs = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
        lowest = optimum(costs)
        excess.append((total(costs, vogel_assignment(costs)) - lowest) / abs(lowest))
    assert np.mean(excess) < 0.02
    assert min(excess) > -1e-5


def test_columns_that_cannot_take_all_rows():
    with pytest.raises(ConfigError, match=r"capacities \[1, 1\] cannot take 3 samples"):
        vogel_assignment(torch.zeros(3, 2), torch.tensor([1, 1]))


def test_shares_of_samples_that_do_not_divide():
    assert balanced_capacities(11, 4).tolist() == [3, 3, 3, 2]
