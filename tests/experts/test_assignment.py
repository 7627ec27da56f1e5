import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.experts import nearest_centre


def test_by_hand():
    # (3, 4) is 5 from the origin and √(0 + 1) = 1 from (3, 5); (0, 0) is on the first centre.
    index, distance = nearest_centre(
        torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 5.0]])
    )
    assert index.tolist() == [1, 0]
    assert distance.tolist() == [1.0, 0.0]


def test_ties_go_to_the_lowest_id():
    centres = torch.tensor([[9.0], [1.0], [-1.0], [1.0]])
    index, _ = nearest_centre(torch.tensor([[0.0], [1.0]]), centres)
    assert index.tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 20), k=st.integers(1, 40), dim=st.integers(1, 30), seed=st.integers(0, 999))
def test_against_numpy(n, k, dim, seed):
    g = torch.Generator().manual_seed(seed)
    a, c = torch.rand(n, dim, generator=g), torch.rand(k, dim, generator=g)
    index, distance = nearest_centre(a, c)
    naive = np.linalg.norm(a.double().numpy()[:, None] - c.double().numpy(), axis=2)
    np.testing.assert_allclose(distance.numpy(), naive.min(1), rtol=1e-5)
    np.testing.assert_allclose(naive[np.arange(n), index.numpy()], naive.min(1), rtol=1e-5)


def test_small_distances_are_exact():
    # A product form ‖a‖² − 2ac + ‖c‖² would lose 1e-3 next to a norm of 1000·√50.
    centres = torch.full((30, 50), 1000.0)
    a = centres.clone()
    a[:, 0] += 2.0**-10
    _, distance = nearest_centre(a, centres)
    assert distance.tolist() == [2.0**-10] * 30


def test_half_precision_is_raised():
    _, distance = nearest_centre(torch.ones(2, 3).half(), torch.zeros(1, 3).half())
    assert distance.dtype == torch.float32
    assert distance[0].item() == pytest.approx(3**0.5)


@pytest.mark.parametrize("shape", [(0, 3), (2, 4), (3,)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="at least one centre"):
        nearest_centre(torch.zeros(2, 3), torch.zeros(shape))
