"""Which experts run, when none has to, and one answer from several; values by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.errors import ConfigError
from divdr.moe import (
    Stacking,
    Stage,
    above,
    anytime,
    best,
    confidence,
    confident,
    divergence,
    log_mean_probability,
    stage_at,
    top_k,
)

P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])


def numbers(choice):
    return choice.chosen.long().tolist()


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_best_alone():
    assert numbers(best(P)) == [[1, 0, 0], [0, 0, 1]]
    assert best(P).weights is None


def test_top_k_weights_sum_to_one():
    found = top_k(P, 2)
    assert numbers(found) == [[1, 1, 0], [0, 1, 1]]
    close(found.weights, [[0.5 / 0.8, 0.3 / 0.8, 0.0], [0.0, 0.3 / 0.9, 0.6 / 0.9]])
    close(top_k(P, 3).weights, P.tolist())
    close(top_k(P, 1).weights, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for k in (0, 4):
        with pytest.raises(ConfigError, match=f"between 1 and the 3 branches, not {k}"):
            top_k(P, k)


def test_the_gradient_of_top_k_reaches_the_kept_alone():
    logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    top_k(logits.softmax(1), 2).weights[0, 0].backward()
    # Of two kept ones the first's weight is a sigmoid of their difference, 1.
    sigmoid = 1 / (1 + math.exp(-1))
    close(logits.grad, [[sigmoid * (1 - sigmoid), -sigmoid * (1 - sigmoid), 0.0]])


def test_above_a_threshold_at_most_k():
    assert numbers(above(P, 3, 0.3)) == [[1, 1, 0], [0, 1, 1]]  # at τ counts
    assert numbers(above(P, 1, 0.3)) == [[1, 0, 0], [0, 0, 1]]
    assert numbers(above(P, 3, 1.0)) == [[1, 0, 0], [0, 0, 1]]  # the best always runs
    assert above(P, 3, 0.3).weights is None
    with pytest.raises(ConfigError, match=r"τ must be between 0 and 1, not 1\.5"):
        above(P, 3, 1.5)


def test_confidence_is_the_largest_probability_and_of_maps_the_mean_over_places():
    vectors = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    close(confidence(vectors), [0.75, 0.5])
    maps = torch.stack([vectors.T.reshape(2, 1, 2), torch.zeros(2, 1, 2)])
    close(confidence(maps), [(0.75 + 0.5) / 2, 0.5])
    assert confidence(vectors.bfloat16()).dtype == torch.float32
    assert confident(vectors, 0.6).tolist() == [True, False]
    assert confident(vectors, 0.5).tolist() == [True, False]  # strictly above
    assert confident(vectors, 0.0).tolist() == [True, True]
    sure = torch.tensor([[0.0, 200.0]])  # probability 1 in float32
    assert confident(sure, 1.0).tolist() == [False]


def test_anytime_by_gate_and_confidence():
    sure = torch.tensor([0.5, 0.9])
    # α: 0.25, 0.15, 0.1; and 0.01, 0.03, 0.06.
    found = anytime(P, sure, 0.12)
    assert numbers(found) == [[1, 1, 0], [0, 0, 0]]
    close(found.weights, [[0.5 / 0.8, 0.3 / 0.8, 0.0], [0.0, 0.0, 0.0]])
    assert numbers(anytime(P, sure, 0.06 - 1e-6)) == [[1, 1, 1], [0, 0, 1]]
    everything = anytime(P, sure, 0.0)
    assert numbers(everything) == [[1, 1, 1]] * 2
    close(everything.weights, P.tolist())
    assert numbers(anytime(P, sure, 1.0)) == [[0, 0, 0]] * 2
    assert numbers(anytime(P[:1], sure[:1], 0.25)) == [[1, 0, 0]]  # at τ counts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_anytime_weights_sum_to_one_wherever_an_expert_runs(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    gate = (5 * torch.randn(9, 4, generator=generator)).softmax(1)
    found = anytime(gate, torch.rand(9, generator=generator), threshold)
    runs = found.chosen.any(1)
    torch.testing.assert_close(found.weights.sum(1), runs.float())
    assert not found.weights[~found.chosen].any()


def test_the_mean_of_probabilities():
    # 0.75 and 0.25 with 0.5 and 0.5.
    one, other = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[7.0, 7.0]])
    close(log_mean_probability([one, other]).exp(), [[0.625, 0.375]])
    close(log_mean_probability([one]).exp(), [[0.75, 0.25]])
    maps = log_mean_probability([one[..., None].expand(1, 2, 3), other[..., None].expand(1, 2, 3)])
    close(maps.exp(), [[[0.625] * 3, [0.375] * 3]])
    far = torch.tensor([[0.0, -500.0]])  # no probability of 0 becomes −∞
    assert log_mean_probability([far, far]).isfinite().all()


def test_stacking_starts_as_the_geometric_mean():
    one, other = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[7.0, 7.0]])
    found = Stacking(2)(one, other).softmax(1)
    # √(0.75 · 0.5) to √(0.25 · 0.5) is √3 to 1.
    close(found.detach(), [[3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)]])
    assert Stacking(5).linear.weight.shape == (5, 10)


def test_divergence_from_soft_targets():
    targets = torch.tensor([[0.75, 0.25], [1.0, 0.0]])
    found = divergence(targets, torch.zeros(2, 2))
    close(found, [0.75 * math.log(1.5) + 0.25 * math.log(0.5), math.log(2.0)])
    close(divergence(targets[:1], targets[:1].log()), [0.0])


def test_stages_begin_at_their_shares():
    stages = [Stage("base", 0.0), Stage("gate", 0.5), Stage("experts", 0.6)]
    names = [stage_at(stages, progress).name for progress in (0.0, 0.49, 0.5, 0.59, 0.6, 1.0)]
    assert names == ["base", "base", "gate", "gate", "experts", "experts"]
