import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from divdr.experts import diversity


def test_by_hand():
    # Cluster 0: 0, 3, 6 on a line: pairs 3, 6, 3. Cluster 1: (0, 10), (4, 10): one pair, 4.
    rows = torch.tensor([[0.0, 0.0], [3.0, 0.0], [6.0, 0.0], [0.0, 10.0], [4.0, 10.0]])
    centres = torch.tensor([[3.0, 0.0], [2.0, 10.0]])
    found = diversity(rows, centres, torch.tensor([0, 0, 0, 1, 1]))
    assert found.inter == pytest.approx(101**0.5)
    # Pooled: (3 + 6 + 3 + 4)/4 = 4, which a mean over clusters would also give; see below.
    assert found.intra_pairs == pytest.approx(4.0)
    # (3 + 0 + 3 + 2 + 2)/5.
    assert found.intra_centre == pytest.approx(2.0)
    assert found.sizes == [3, 2]


def test_pairs_are_pooled_and_not_averaged_by_cluster():
    # Pairs 3, 6, 3 and 10: (12 + 10)/4 = 5.5; the mean of the clusters' means would be 7.
    rows = torch.tensor([[0.0], [3.0], [6.0], [100.0], [110.0]])
    centres = torch.tensor([[3.0], [105.0]])
    found = diversity(rows, centres, torch.tensor([0, 0, 0, 1, 1]))
    assert found.intra_pairs == pytest.approx(5.5)


def test_one_centre_and_lonely_members():
    rows = torch.tensor([[1.0, 1.0]])
    found = diversity(rows, rows, torch.tensor([0]))
    assert (found.inter, found.intra_pairs, found.intra_centre, found.sizes) == (0, 0, 0, [1])


def test_empty_cluster_is_counted():
    rows = torch.tensor([[0.0], [1.0]])
    found = diversity(rows, torch.tensor([[0.0], [9.0]]), torch.tensor([0, 0]))
    assert found.sizes == [2, 0]
    assert found.intra_pairs == pytest.approx(1.0)
    assert diversity(rows[:0], rows, torch.zeros(0, dtype=torch.long)).intra_centre == 0.0


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_against_scipy(n, k, seed):
    rng = np.random.default_rng(seed)
    rows, centres, assignment = rng.random((n, 7)), rng.random((k, 7)), rng.integers(0, k, n)
    found = diversity(
        torch.from_numpy(rows), torch.from_numpy(centres), torch.from_numpy(assignment)
    )
    within = np.concatenate([pdist(rows[assignment == c]) for c in range(k)])
    assert found.inter == pytest.approx(pdist(centres).mean() if k > 1 else 0.0)
    assert found.intra_pairs == pytest.approx(within.mean() if len(within) else 0.0)
    own = np.linalg.norm(rows - centres[assignment], axis=1).mean()
    assert found.intra_centre == pytest.approx(own)


def test_large_cluster_is_thinned_evenly_but_keeps_its_weight():
    # Rows 0..8 on a line thinned to 3: positions 0, 3, 6, pairs 3, 6, 3, mean 4, weight 36 pairs.
    # The other cluster has one pair of 41: (36·4 + 41)/37 = 5.
    rows = torch.tensor([[float(i)] for i in range(9)] + [[100.0], [141.0]])
    centres = torch.tensor([[4.0], [120.0]])
    assignment = torch.tensor([0] * 9 + [1] * 2)
    found = diversity(rows, centres, assignment, max_members=3)
    assert found.intra_pairs == pytest.approx(5.0)
    assert found.sizes == [9, 2]


def test_thinning_needs_pairs():
    with pytest.raises(ValueError, match="at least 2"):
        diversity(torch.zeros(3, 1), torch.zeros(1, 1), torch.zeros(3).long(), max_members=1)
