import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.experts import kmeans_recovery, linear_recovery, matched_share


def test_matching_by_hand():
    # Cluster 2 holds subset 0 twice, cluster 0 subset 1 twice and 0 once, cluster 1 subset 2.
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    clusters = torch.tensor([2, 2, 0, 0, 0, 1])
    assert matched_share(clusters, labels) == pytest.approx(5 / 6)


def test_too_many_clusters_and_too_few():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    # One of the two halves of subset 0 has no subset left.
    assert matched_share(torch.tensor([0, 0, 2, 1, 1, 1]), labels) == pytest.approx(5 / 6)
    assert matched_share(torch.zeros(6, dtype=torch.long), labels) == pytest.approx(0.5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_as_the_best_of_all_permutations(pairs):
    clusters, labels = torch.tensor(pairs).T
    best = max(sum(order[c] == y for c, y in pairs) for order in itertools.permutations(range(4)))
    assert matched_share(clusters, labels) == pytest.approx(best / len(pairs))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one image"):
        matched_share(torch.zeros(3), torch.zeros(2))


def test_linear_finds_what_clusters_do_not_follow():
    rng = np.random.default_rng(0)
    labels = torch.arange(300) % 2
    a = torch.from_numpy(rng.normal(0, 1, (300, 2))).float()
    a[:, 0] += torch.from_numpy(rng.integers(0, 2, 300) * 20).float()  # another, larger split
    a[:, 1] = 0.1 * a[:, 1] + labels
    assert kmeans_recovery(a, labels) < 0.6
    assert linear_recovery(a, labels) > 0.99
    assert kmeans_recovery(a[:, 1:], labels) == 1.0
