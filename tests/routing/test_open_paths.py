"""The decision rules, against the sentences that say them, for numbers, arrays and tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divdr.routing import DOWN, KEEP, UP, RoutingSpace
from divdr.routing.open_paths import is_closed, is_open, leads_on, reached_cells

# Far from the threshold, where sums in float32 and float64 are on the same side of it.
values = st.sampled_from([0.0, 2e-5, 6e-5, 0.3, 1.0])
gates = st.lists(st.tuples(values, values, values), min_size=1, max_size=6)


def by_hand(row, reach):
    """(closed, transforms that run, transforms that lead on) of one cell."""
    if sum(row) < 1e-4:
        return True, set(), {KEEP}
    running = {t for t in (UP, KEEP, DOWN) if row[t] > 0}
    return False, running, {UP, KEEP, DOWN} if reach == "published" else running


@given(gates, st.sampled_from(["open", "published"]))
def test_numbers_arrays_and_tensors_follow_the_same_rules(rows, reach):
    is_keep = [False, True, False]
    wanted = [by_hand(row, reach) for row in rows]
    for make, last in ((np.array, {"axis": 1}), (torch.tensor, {"dim": 1})):
        table = make(rows)
        closed = is_closed(table.sum(**last))
        opened = is_open(table, closed[:, None])
        leads = leads_on(opened, closed[:, None], make(is_keep), reach)
        assert closed.tolist() == [one for one, _, _ in wanted]
        for found, sets in (
            (opened, [r for _, r, _ in wanted]),
            (leads, [o for _, _, o in wanted]),
        ):
            assert [{t for t in range(3) if row[t]} for row in found.tolist()] == sets
    for row, (shut, running, onwards) in zip(rows, wanted, strict=True):
        assert is_closed(sum(row)) is shut
        opened = [is_open(gate, shut) for gate in row]
        leads = [leads_on(o, shut, k, reach) for o, k in zip(opened, is_keep, strict=True)]
        assert {t for t in range(3) if opened[t]} == running
        assert {t for t in range(3) if leads[t]} == onwards


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_reached_cells_by_hand(make):
    # Layers of 2, 3 and 2 cells: strides 4, 8; 4, 8, 16; 4, 8.
    space = RoutingSpace((2, 3, 2))
    rows = [
        (0.0, 0.0, 0.0),  # closed: keeps stride 4
        (0.0, 0.0, 0.5),  # down to stride 16 alone
        (0.0, 2e-5, 6e-5),  # closed: below 1e-4 in sum
        (1.0, 1.0, 1.0),  # open, but no path leads here
        (0.0, 0.0, 0.0),  # closed, without a keep: its input ends here
        (0.0, 1.0, 0.0),
        (0.0, 1.0, 0.0),
    ]
    everywhere = [True, True, True, False, True, True, False]
    assert reached_cells(space, make(rows)) == everywhere
    # The initial cell keeps alone: stride 8, and what comes after it, is not reached.
    initial = make([0.0, 0.9, 0.0])
    kept = [True, False, True, False, False, True, False]
    assert reached_cells(space, make(rows), initial) == kept
