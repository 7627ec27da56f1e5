"""When the experts of a collaboration train, and when they run."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ConfigError


@dataclass
class CoEBoxSettings:
    """When experts train and when they run.

    Attributes:
        threshold: τ; a proposal whose delegated scores reach no higher maximum class probability
            goes on to an expert. 1 sends all, 0 none. It can be changed at any time.
        start: iteration of the second stage, from which on selector and experts train.
        max_iter: iterations of the whole training.
        alpha: α at the start of the second stage and at its end (Eq. 5).
        selector_weight: η (Eq. 8).
        freeze_delegator: the paper's second stage, in which the delegator learns no more.

    Raises:
        ConfigError: τ or α is not within 0 and 1.
    """

    threshold: float = 0.9
    start: int = 0
    max_iter: int = 1
    alpha: tuple[float, float] = (0.2, 0.8)
    selector_weight: float = 0.8
    freeze_delegator: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(
                f"the delegator's threshold τ must be between 0 and 1, not {self.threshold}"
            )
        if len(self.alpha) != 2 or not all(0.0 <= a <= 1.0 for a in self.alpha):
            raise ConfigError(f"ALPHA must be two numbers between 0 and 1, not {self.alpha}")

    def alpha_at(self, iteration: int) -> float:
        """α, linear over the second stage."""
        done = (iteration - self.start) / max(1, self.max_iter - 1 - self.start)
        first, last = self.alpha
        return first + (last - first) * min(1.0, max(0.0, done))
