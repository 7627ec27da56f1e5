import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.experts import match_centres


def test_reversed_centres():
    old = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    new = torch.tensor([[0.1, 5.0], [0.2, 0.0], [5.0, 0.3]])
    assert match_centres(old, new).tolist() == [1, 2, 0]


def test_least_total_and_not_greedy():
    # Old 0 and 1 on a line, new at 0.9 and 10. Greedy gives 1 to 0.9 (0.1) and 0 to 10 (10), in
    # total 10.1; the other way round 0.9 + 9 = 9.9.
    old = torch.tensor([[0.0], [1.0]])
    new = torch.tensor([[10.0], [0.9]])
    assert match_centres(old, new).tolist() == [1, 0]


def test_close_centres_far_from_the_origin():
    # As products their distances, of 1 and 2 thousandths, would drown in squares of 10^12.
    old = torch.tensor([[1e6], [1e6 + 1e-3]], dtype=torch.double)
    new = torch.tensor([[1e6 + 2e-3], [1e6 - 1e-3]], dtype=torch.double)
    assert match_centres(old, new).tolist() == [1, 0]


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_no_permutation_is_better(k, seed):
    g = torch.Generator().manual_seed(seed)
    old, new = torch.rand(k, 3, generator=g), torch.rand(k, 3, generator=g)

    def cost(perm) -> float:
        return sum(float((old[i] - new[p]).norm()) for i, p in enumerate(perm))

    perm = match_centres(old, new).tolist()
    assert sorted(perm) == list(range(k))
    assert cost(perm) <= min(cost(p) for p in itertools.permutations(range(k))) + 1e-5


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="alike"):
        match_centres(torch.zeros(2, 3), torch.zeros(3, 3))
