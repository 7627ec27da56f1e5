import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from divdr.studies import paired_difference, summarise


def test_mean_and_sample_deviation():
    # Deviations −2, 0, 2 from the mean 5: √((4 + 0 + 4) / 2) = 2.
    found = summarise([3.0, 5.0, 7.0])
    assert (found.n, found.mean, found.std) == (3, 5.0, 2.0)
    assert math.isnan(summarise([4.0]).std)
    with pytest.raises(ValueError, match="nothing"):
        summarise([])


def test_paired_difference_by_hand():
    # Differences 1, 2, 0: mean 1, deviation 1, standard error 1/√3, t of 2 degrees 4.302653.
    found = paired_difference([1.0, 2.0, 3.0], [2.0, 4.0, 3.0])
    assert (found.n, found.mean) == (3, 1.0)
    assert found.low == pytest.approx(1 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.high == pytest.approx(1 + 4.302653 / math.sqrt(3), abs=1e-5)


@pytest.mark.filterwarnings("error")
def test_one_pair_has_no_interval_and_equal_differences_a_point():
    one = paired_difference([1.0], [3.0])
    assert one.mean == 2.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    same = paired_difference([1.0, 2.0], [1.5, 2.5])
    assert (same.low, same.high) == (0.5, 0.5)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_is_no_pair_is_refused(a, b):
    with pytest.raises(ValueError, match="do not make pairs"):
        paired_difference(a, b)


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=3, max_size=8),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_interval_is_that_of_student(pairs, confidence):
    """Mean and standard error of the differences, and the quantile of t with n − 1 degrees."""
    a, b = zip(*pairs, strict=True)
    differences = np.subtract(b, a)
    assume(np.ptp(differences) > 1e-3)
    found = paired_difference(a, b, confidence)
    wanted = stats.t.interval(
        confidence, len(pairs) - 1, differences.mean(), stats.sem(differences)
    )
    assert (found.low, found.high) == pytest.approx(wanted, abs=1e-6)
