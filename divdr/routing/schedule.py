"""When things happen in training, in iterations or shares of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError


def to_iterations(value: float, max_iter: int) -> int:
    """An iteration count as it is, or a share of ``max_iter`` if below 1.

    Raises:
        ConfigError: ``value`` is negative.
    """
    if value < 0:
        raise ConfigError(f"an iteration or share of training cannot be negative: {value}")
    return round(value * max_iter) if value < 1 else int(value)


@dataclass(frozen=True)
class Ramp:
    """A weight that is 0 until ``start``, grows linearly over ``length`` iterations, then stays.

    Attributes:
        weight: final value.
        start: iteration (from 0) before which it is 0.
        length: iterations of growth; 0 switches at once.
    """

    weight: float
    start: int
    length: int

    def at(self, iteration: int) -> float:
        """The weight at an iteration."""
        if iteration < self.start:
            return 0.0
        if self.length <= 0:
            return self.weight
        return self.weight * min(1.0, (iteration - self.start + 1) / self.length)


@dataclass(frozen=True)
class Periods:
    """Moments that come every ``period`` iterations after ``start``, ever longer by a factor.

    Attributes:
        start: iterations before the first period begins.
        period: iterations of the first period.
        growth: factor from one period to the next; 1 keeps it.

    Raises:
        ConfigError: the period is below 1 iteration or shrinks.
    """

    start: int
    period: int
    growth: float = 1.0

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ConfigError(f"the period must be at least 1 iteration, not {self.period}")
        if self.growth < 1:
            raise ConfigError(f"the period's growth must be at least 1, not {self.growth}")

    def due(self, iteration: int) -> bool:
        """Whether a period ends when ``iteration`` (from 0) has been run."""
        done = iteration + 1 - self.start
        if self.growth == 1.0:
            return done > 0 and done % self.period == 0
        moment, length = 0, float(self.period)
        while moment < done:
            moment += round(length)
            length *= self.growth
        return done > 0 and moment == done
