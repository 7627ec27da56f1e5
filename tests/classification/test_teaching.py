"""LGM, WGM and SRM against values by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.errors import ConfigError
from divdr.moe import TeachingSettings, teach

# The first expert is surer of every sample. Less its mean, 0.825, and over its deviation,
# √0.006875, its column is 0.9045, 0.9045, −0.3015, −1.5076; the second's, by 0.5 and √0.065, is
# 1.1767, 0, −1.5689, 0.3922. Differences: −0.2722, 0.9045, 1.2674, −1.8998. By size the last row
# takes expert 1, the third and the second expert 0, which is full; the first is left with 1.
TCP = torch.tensor([[0.9, 0.8], [0.9, 0.5], [0.8, 0.1], [0.7, 0.6]])
DIFFERENCES = torch.tensor([0.272163, 0.904534, 1.267418, 1.899789], dtype=torch.float64)
# The delegator would send all to expert 0; rows 0 and 2 want it most.
PROBABILITIES = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3]])


def lesson(alpha=0.5, **modules):
    return teach(TCP, PROBABILITIES, alpha, TeachingSettings(**modules))


def close(found, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_paper_s_modules():
    found = lesson()
    assert found.labels.tolist() == [1, 0, 0, 1]
    # Of two experts the deviation is half the difference.
    close(found.selection_weights, DIFFERENCES / DIFFERENCES.sum())
    # α 0.5: 0.75 and 0.25, over Z = 2.
    rows = {0: [0.375, 0.125], 1: [0.125, 0.375]}
    close(found.expert_weights, [rows[k] for k in (0, 1, 0, 1)])


def test_a_delegator_that_would_send_all_to_one_expert():
    tcp = torch.tensor([[0.9, 0.3], [0.7, 0.3], [0.5, 0.1], [0.3, 0.1]])
    # All would choose expert 1; those that would least lose by it get expert 0.
    probabilities = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]])
    found = teach(tcp, probabilities, 0.6, TeachingSettings())
    # Columns' means 0.6 and 0.2, deviations √0.05 and 0.1: expert 0 gains 0.342, −0.553, 0.553,
    # −0.342, two each by sign.
    assert found.labels.tolist() == [0, 1, 0, 1]
    gains = torch.tensor([0.3 / 0.05**0.5 - 1, 1 - 0.1 / 0.05**0.5], dtype=torch.float64)[
        [0, 1, 1, 0]
    ]
    close(found.selection_weights, gains / gains.sum())
    # 0.6 + 0.2 and 0.2, over Z = 2.
    close(found.expert_weights, [[0.4, 0.1], [0.1, 0.4], [0.1, 0.4], [0.4, 0.1]])


def test_without_wgm_all_count_the_same():
    close(lesson(wgm="none").expert_weights, torch.full((4, 2), 0.25))


def test_wgm_by_the_selection_labels():
    rows = {0: [0.375, 0.125], 1: [0.125, 0.375]}
    close(lesson(wgm="labels").expert_weights, [rows[k] for k in (1, 0, 0, 1)])


def test_wgm_without_balance_and_smoothing():
    close(lesson(wgm="free").expert_weights, [[0.5, 0.0]] * 4)


def test_alpha_from_all_alike_to_the_assignment_itself():
    close(lesson(alpha=0.0).expert_weights, torch.full((4, 2), 0.25))
    close(lesson(alpha=1.0).expert_weights, [[0.5, 0], [0, 0.5], [0.5, 0], [0, 0.5]])


def test_lgm_without_standardisation_and_balance():
    found = lesson(lgm="free")
    assert found.labels.tolist() == [0, 0, 0, 0]
    close(found.selection_weights, [0.1 / 1.3, 0.4 / 1.3, 0.7 / 1.3, 0.1 / 1.3])


def test_without_srm_samples_count_the_same():
    close(lesson(srm=False).selection_weights, [0.25] * 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(1, 6), st.floats(0, 1))
def test_whatever_comes_is_finite_and_shared_alike(seed, samples, experts, alpha):
    generator = torch.Generator().manual_seed(seed)
    tcp = torch.rand(samples, experts, generator=generator)
    if seed % 3 == 0:  # an expert that knows nothing, or everything
        tcp[:, 0] = seed % 2
    chances = torch.randn(samples, experts, generator=generator).softmax(1)
    found = teach(tcp, chances, alpha, TeachingSettings())
    assert all(bool(torch.isfinite(part).all()) for part in found)
    if samples < experts:
        assert found.selection_weights.sum() == found.expert_weights.sum() == 0
        return
    counts = found.labels.bincount(minlength=experts)
    assert counts.max() - counts.min() <= 1
    # Each expert's weights add up to one, also where m / n is no whole number.
    close(found.expert_weights.sum(0), torch.ones(experts))
    assert found.selection_weights.sum().item() == pytest.approx(1)


def test_experts_that_agree_on_everything():
    found = teach(torch.full((6, 2), 0.5), torch.full((6, 2), 0.5), 0.5, TeachingSettings())
    close(found.selection_weights, torch.full((6,), 1 / 6))
    assert found.labels.bincount().tolist() == [3, 3]


def test_no_sample_at_all():
    found = teach(torch.zeros(0, 3), torch.zeros(0, 3), 0.5, TeachingSettings())
    assert [tuple(part.shape) for part in found] == [(0,), (0,), (0, 3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("balanced", ["balanced", "free"])
def test_values_that_are_not_finite_are_shared_out_and_told_by_the_weights(value, balanced):
    tcp, probabilities = TCP.clone(), PROBABILITIES.clone()
    tcp[2, 1] = probabilities[1, 0] = value
    found = teach(tcp, probabilities, 0.5, TeachingSettings(lgm=balanced))
    assert bool(((found.labels >= 0) & (found.labels < 2)).all())
    assert not torch.isfinite(found.selection_weights).all()
    close(found.expert_weights.sum(0), [1.0, 1.0])


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 2), st.floats(0, 1), st.floats(0, 1))
def test_alpha_grows_linearly_and_stays_within_its_ends(done, first, last):
    found = TeachingSettings(alpha=(first, last)).alpha_at(done)
    share = min(max(done, 0), 1)
    assert found == pytest.approx((1 - share) * first + share * last)


def test_modules_that_do_not_exist():
    with pytest.raises(
        ConfigError, match="WGM must be one of delegator, labels, free, none, not 'best'"
    ):
        TeachingSettings(wgm="best")
    with pytest.raises(ConfigError, match="LGM must be one of balanced, free, not 'best'"):
        TeachingSettings(lgm="best")
    with pytest.raises(ConfigError, match=r"α must be two numbers between 0 and 1, not \[0\.2\]"):
        TeachingSettings(alpha=(0.2,))
