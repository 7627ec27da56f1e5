"""Importance and load losses, against loops and over two processes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from two_processes import in_two_processes

from divdr.errors import ConfigError
from divdr.moe import (
    Balance,
    NoisyTopKGate,
    kth_excluding,
    load_probabilities,
    squared_variation,
)


def variation(values):
    """CV² of a list, by the definition."""
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values) / (mean**2 + 1e-10)


def normal(x):
    """Φ."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


def test_squared_variation_of_known_numbers():
    # Mean 2, variance (1 + 0 + 1) / 3.
    assert squared_variation(torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(1 / 6)
    assert squared_variation(torch.tensor([5.0, 5.0])).item() == 0
    assert squared_variation(torch.zeros(3)).item() == 0  # 1e-10 keeps 0 / 0 away


@given(
    st.lists(st.permutations(range(6)), min_size=1, max_size=5),
    st.integers(min_value=1, max_value=5),
)
def test_kth_largest_of_the_others(rows, k):
    noisy = torch.tensor(rows, dtype=torch.float64)
    expected = [
        [sorted((v for j, v in enumerate(row) if j != i), reverse=True)[k - 1] for i in range(6)]
        for row in rows
    ]
    assert kth_excluding(noisy, k).tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 4])
def test_load_is_the_probability_of_being_chosen_with_noise_drawn_anew(k):
    clean, deviation = torch.randn(4, 5), torch.rand(4, 5) + 0.2
    noise = torch.randn(4, 5)
    noisy = clean + noise * deviation
    found = load_probabilities(clean, noisy, deviation, k)
    draws = torch.randn(40000)
    for row in range(4):
        for expert in range(5):
            others = [noisy[row, j].item() for j in range(5) if j != expert]
            bar = sorted(others, reverse=True)[k - 1]
            anew = clean[row, expert] + draws * deviation[row, expert]
            assert found[row, expert].item() == pytest.approx(
                float((anew > bar).float().mean()), abs=0.02
            )
            margin = (clean[row, expert].item() - bar) / deviation[row, expert].item()
            assert found[row, expert].item() == pytest.approx(normal(margin), abs=1e-5)


def test_where_all_experts_run_the_load_is_balanced_and_teaches_nothing():
    gate = NoisyTopKGate(3, 4, 4)
    gating = gate(torch.randn(6, 3))
    balance = Balance([4])
    losses = balance([gating.weights], [gating.load])
    assert losses.load.item() == 0
    assert not losses.load.requires_grad or gate.score.weight.grad is None
    losses.importance.backward()
    assert gate.score.weight.grad.any()


def test_losses_of_two_decisions_add_up_and_remember_earlier_steps():
    balance = Balance([2, 3], steps=3)
    generator = torch.Generator().manual_seed(4)
    batches = [[torch.rand(n, e, generator=generator) for e in (2, 3, 2, 3)] for n in (4, 1, 5, 2)]
    for step, batch in enumerate(batches):
        parts = [part.clone().requires_grad_() for part in batch]
        found = balance(parts[:2], parts[2:])
        window = batches[max(0, step - 2) : step + 1]
        sums = [
            [sum(float(b[which][:, e].sum()) for b in window) for e in range(parts[which].shape[1])]
            for which in range(4)
        ]
        assert found.importance.item() == pytest.approx(
            variation(sums[0]) + variation(sums[1]), rel=1e-4
        )
        assert found.load.item() == pytest.approx(variation(sums[2]) + variation(sums[3]), rel=1e-4)
        # As if all of the sum were of this step: the derivative by a number of the sum, as often as
        # there are steps in it.
        found.importance.backward()
        expected = _slope(sums[0]) * len(window)
        assert parts[0].grad[0].tolist() == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-5)
        assert parts[2].grad is None or not parts[2].grad.any()


def _slope(values, step=1e-4):
    """Derivative of the variation by each value, by differences."""
    moved = [[v + step * (i == j) for j, v in enumerate(values)] for i in range(len(values))]
    return torch.tensor([(variation(m) - variation(values)) / step for m in moved])


def test_earlier_steps_are_kept_by_checkpoints():
    one, other = Balance([3], steps=4), Balance([3], steps=4)
    for _ in range(5):
        one([torch.rand(2, 3)], [torch.rand(2, 3)])
    other.load_state_dict(one.state_dict())
    batch = [torch.rand(2, 3)], [torch.rand(2, 3)]
    assert [v.item() for v in one(*batch)] == [v.item() for v in other(*batch)]


def test_no_steps_at_all():
    with pytest.raises(ConfigError, match="balance over 0 steps cannot be"):
        Balance([3], steps=0)


SPLITS = [slice(0, 3), slice(3, 10)]


class Gates(nn.Module):
    """Two gates and their losses over three steps."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.layers = nn.ModuleList([nn.Linear(4, 5, bias=False), nn.Linear(4, 3, bias=False)])
        for layer in self.layers:
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        self.balance = Balance([5, 3], steps=2)

    def losses(self, x):
        weights = [layer(x).softmax(1) for layer in self.layers]
        return self.balance(weights, [layer(x).sigmoid() for layer in self.layers])


def _learn(rank):
    """Losses and gradients of each step of one process; with rank None of all samples."""
    made, found = Gates(), []
    x = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(1))
    for batch in x:
        made.zero_grad()
        losses = made.losses(batch if rank is None else batch[SPLITS[rank]])
        sum(losses).backward()
        found.append([v.detach() for v in losses])
        found.append([layer.weight.grad.clone() for layer in made.layers])
    return found


def test_two_processes_see_the_sums_of_both_and_learn_what_one_would(tmp_path):
    parts = in_two_processes(_learn, tmp_path)
    whole = _learn(None)
    for one, other, together in zip(*parts, whole, strict=True):
        for a, b, c in zip(one, other, together, strict=True):
            torch.testing.assert_close((a + b) / 2, c, rtol=1e-4, atol=1e-6)
    assert parts[0][2][0] == parts[1][2][0]  # the values are of all processes


def test_noise_that_float32_cannot_tell_from_none_leaves_gradients_finite():
    gate = NoisyTopKGate(2, 3, 1).train()
    torch.nn.init.constant_(gate.noise.weight, -200.0)  # softplus of -400 is 0
    gating = gate(torch.ones(4, 2))
    (gating.load.sum() * 0.0 + gating.weights[:, 0].sum()).backward()
    assert gate.score.weight.grad.isfinite().all()
    assert gate.noise.weight.grad.isfinite().all()
