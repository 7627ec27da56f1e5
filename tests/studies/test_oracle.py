"""Choosing a network by image, against all choices that there are."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divdr.studies.oracle import Scores, bound, choose, oracle_markdown


def _drawn(seed, networks=3, images=5):
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.uniform(1, 3, (networks, 1)), axis=0) * np.ones(images)
    return Scores(rng.uniform(0, 100, (networks, images)), cost)


@given(st.integers(0, 10**6), st.floats(1.0, 3.5))
def test_no_choice_of_at_most_the_same_cost_is_better(seed, budget):
    scores = _drawn(seed)
    least = scores.gflops.min(axis=0).mean()
    if least > budget:
        with pytest.raises(ValueError, match="cheapest"):
            choose(scores, budget)
        return
    images = np.arange(5)

    def mean(choice):
        choice = np.array(choice)
        return scores.accuracy[choice, images].mean(), scores.gflops[choice, images].mean()

    value, cost = mean(choose(scores, budget))
    assert cost <= budget * (1 + 1e-9)
    for choice in itertools.product(range(3), repeat=5):
        other, price = mean(choice)
        if price <= cost:
            assert other <= value + 1e-9
    if scores.gflops.max(axis=0).mean() <= budget:
        assert value == pytest.approx(scores.accuracy.max(axis=0).mean())


def test_bound_by_own_and_by_others_scores():
    # Two networks of equal cost: each is right on another image, and in the other run vice versa.
    cost = np.ones((2, 2))
    first = Scores(np.array([[90.0, 10.0], [20.0, 80.0]]), cost)
    second = Scores(np.array([[30.0, 70.0], [60.0, 40.0]]), cost)
    found = bound([first, second], 0)
    assert (found.budget, found.gflops) == (1.0, 1.0)
    assert found.alone == pytest.approx((90 + 10 + 30 + 70) / 4)
    assert found.own == pytest.approx((90 + 80 + 60 + 70) / 4)
    # By the second's scores the first's images take networks 1 and 0, and the other way round.
    assert found.transferred == pytest.approx((20 + 10 + 30 + 40) / 4)
    assert np.isnan(bound([first], 0).transferred)


def test_table_leaves_out_the_cheapest():
    accuracy = np.array([[10.0, 20.0], [40.0, 20.0]])
    text = oracle_markdown(
        "T", ["small", "large"], {0: Scores(accuracy, np.array([[1.0], [3.0]]) * [1, 1])}
    )
    (row,) = [line for line in text.splitlines() if line.startswith("| large")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    # The second image is as good with the small one.
    assert cells == ["large", "3.0000", "30.00", "30.00", "–", "2.0000"]
    assert "| small" not in text
