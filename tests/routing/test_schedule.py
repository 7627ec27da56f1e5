import pytest

from divdr.errors import ConfigError
from divdr.routing import Periods, Ramp, to_iterations


def test_shares_and_iterations():
    assert to_iterations(0.4, 1000) == 400
    assert to_iterations(1, 1000) == 1
    assert to_iterations(0, 1000) == 0
    with pytest.raises(ConfigError):
        to_iterations(-1, 1000)


def test_ramp_switches_on_and_grows():
    ramp = Ramp(0.8, start=100, length=4)
    assert [ramp.at(i) for i in (99, 100, 101, 103, 104, 500)] == pytest.approx(
        [0, 0.2, 0.4, 0.8, 0.8, 0.8]
    )
    assert all(ramp.at(i) == 0.0 for i in range(100))
    assert Ramp(0.5, 10, 0).at(10) == 0.5
    assert Ramp(0.5, 10, 0).at(9) == 0.0


def test_constant_period():
    periods = Periods(start=10, period=5)
    assert [i for i in range(40) if periods.due(i)] == [14, 19, 24, 29, 34, 39]


def test_growing_period():
    # 4, 8, 16 iterations after the start: moments 4, 12, 28.
    periods = Periods(start=0, period=4, growth=2.0)
    assert [i + 1 for i in range(40) if periods.due(i)] == [4, 12, 28]
    # Likewise after a start: nothing is due where it is reached.
    later = Periods(start=10, period=4, growth=2.0)
    assert [i + 1 for i in range(40) if later.due(i)] == [14, 22, 38]


@pytest.mark.parametrize(("period", "growth"), [(0, 1.0), (5, 0.5)])
def test_impossible_periods(period, growth):
    with pytest.raises(ConfigError):
        Periods(0, period, growth)
