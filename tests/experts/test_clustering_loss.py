import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.experts import cluster_variance, clustering_loss

CENTRES = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.0]])


def test_two_centres_by_hand():
    # A = (0, 1): d = 1 to (0, 0) and √(9 + 9) = 4.242641 to (3, 4); 2σ² = 4.
    # 1 + 1/4 + log exp(−4.242641/4) = 1.25 − 1.060660 = 0.189340.
    loss = clustering_loss(torch.tensor([[0.0, 1.0]]), CENTRES[:2], 2.0)
    assert loss.tolist() == pytest.approx([0.189340], abs=1e-6)


def test_squared_by_hand():
    # The same with d = 1 and 18: α + 1/4 − 18/4 = 5 − 4.25 = 0.75 for α = 5.
    loss = clustering_loss(torch.tensor([[0.0, 1.0]]), CENTRES[:2], 2.0, margin=5.0, squared=True)
    assert loss.tolist() == pytest.approx([0.75])


def test_three_centres_by_hand():
    # A = (0, 0.5): d = 0.5, √(9 + 12.25) = 4.609772, 1.5; 2σ² = 1, α = 1.
    # 1 + 0.5 + log(e^−4.609772 + e^−1.5) = 1.5 − 1.5 + log(1 + e^−3.109772) = 0.043645.
    loss = clustering_loss(torch.tensor([[0.0, 0.5]]), CENTRES, 0.5)
    assert loss.tolist() == pytest.approx([0.043645], abs=1e-6)


def test_hinge_at_zero():
    # A on its centre, the other one 5 away, 2σ² = 1: 1 + 0 − 5 < 0.
    a = torch.zeros(1, 2, requires_grad=True)
    loss = clustering_loss(a, CENTRES[:2], 0.5)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert a.grad is not None
    assert a.grad.tolist() == [[0.0, 0.0]]


def test_single_centre_only_pulls():
    # d = 5, 2σ² = 4; no margin, no hinge.
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert clustering_loss(a, CENTRES[:1], 2.0).tolist() == pytest.approx([1.25, 0.0])
    squared = clustering_loss(a, CENTRES[:1], 2.0, squared=True)
    assert squared.tolist() == pytest.approx([6.25, 0.0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), squared=st.booleans())
def test_two_centres_without_margin_lose_nothing(seed, squared):
    # The nearest is the nearest: d_1 − d_2 <= 0.
    g = torch.Generator().manual_seed(seed)
    a, c = torch.rand(20, 6, generator=g), torch.rand(2, 6, generator=g)
    loss = clustering_loss(a, c, 0.3, margin=0.0, squared=squared)
    assert float(loss.abs().max()) <= 1e-6


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    k=st.integers(2, 6),
    sigma2=st.floats(0.05, 10),
    margin=st.floats(0, 3),
    squared=st.booleans(),
)
def test_against_a_naive_loop(seed, k, sigma2, margin, squared):
    g = torch.Generator().manual_seed(seed)
    a, c = torch.rand(7, 4, generator=g).double(), torch.rand(k, 4, generator=g).double()
    loss = clustering_loss(a, c, sigma2, margin=margin, squared=squared)
    for i in range(7):
        d = [float(np.linalg.norm(a[i].numpy() - c[j].numpy())) ** (1 + squared) for j in range(k)]
        own = d.index(min(d))
        others = sum(math.exp(-d[j] / (2 * sigma2)) for j in range(k) if j != own)
        expected = max(0.0, margin + d[own] / (2 * sigma2) + math.log(others))
        assert float(loss[i]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradient(squared, k):
    g = torch.Generator().manual_seed(0)
    a = torch.rand(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    c = torch.rand(k, 3, generator=g, dtype=torch.float64)
    loss = clustering_loss(a, c, 0.4, margin=4.0, squared=squared)
    assert loss.dtype == torch.float64
    assert (loss > 0).all()
    assert torch.autograd.gradcheck(
        lambda v: clustering_loss(v, c, 0.4, margin=4.0, squared=squared), (a,)
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradient_is_finite_on_a_centre(k):
    a = CENTRES[:1].clone().requires_grad_()
    clustering_loss(a, CENTRES[:k], 50.0).sum().backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()
    if k == 1:
        assert a.grad.tolist() == [[0.0, 0.0]]
    if k == 2:
        # Only the push is left: −1/(2σ²) times the unit vector from (3, 4), i.e. +(0.6, 0.8)/100.
        assert a.grad[0].tolist() == pytest.approx([0.006, 0.008])


def test_gradient_pulls_and_pushes():
    # On a line with centres 0 and 10 at A = 4, 2σ² = 100: d/dA (A − (10 − A))/100 = 0.02.
    a = torch.tensor([[4.0]], requires_grad=True)
    clustering_loss(a, torch.tensor([[0.0], [10.0]]), 50.0).sum().backward()
    assert a.grad is not None
    assert a.grad.item() == pytest.approx(0.02)


def test_large_exponents_do_not_overflow():
    # 2σ² = 1e-4: exp(−d/2σ²) is 0 in float32 for all, yet its logarithm is −1.5e4 at the least.
    a = torch.tensor([[0.0, 0.5]])
    loss = clustering_loss(a, CENTRES, 0.5e-4, margin=2e4)
    assert loss.tolist() == pytest.approx([2e4 + 0.5e4 - 1.5e4], rel=1e-6)


def test_float32_under_autocast():
    a, c = torch.rand(6, 50), torch.rand(3, 50)
    expected = clustering_loss(a, c, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clustering_loss(a, c, 0.1)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    assert clustering_loss(a.bfloat16(), c, 0.1).dtype == torch.float32


def test_variance_may_be_a_tensor_and_constants_get_no_gradient():
    a = torch.tensor([[0.0, 1.0]], requires_grad=True)
    c = CENTRES[:2].clone().requires_grad_()
    sigma2 = torch.tensor(2.0, requires_grad=True)
    loss = clustering_loss(a, c, sigma2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.189340, abs=1e-6)
    assert c.grad is None
    assert sigma2.grad is None


def test_empty_batch():
    assert clustering_loss(torch.zeros(0, 2), CENTRES, 1.0).shape == (0,)


def test_cluster_variance_by_hand():
    # Squared distances 1, 4 and 25 to their centres, N − 1 = 2: 15.
    a = torch.tensor([[0.0, 1.0], [3.0, 2.0], [3.0, -1.0]])
    v = cluster_variance(a, CENTRES[:2], torch.tensor([0, 1, 1]), 1e-4)
    assert v.shape == ()
    assert v.item() == pytest.approx(15.0)


def test_cluster_variance_floor():
    a = CENTRES.clone()
    assert cluster_variance(a, CENTRES, torch.arange(3), 1e-4).item() == pytest.approx(1e-4)
    # A single row has N − 1 = 0.
    assert cluster_variance(a[:1], CENTRES, torch.tensor([0]), 0.5).item() == 0.5
