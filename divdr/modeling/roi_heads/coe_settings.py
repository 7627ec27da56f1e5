"""When the experts of a collaboration train, and when they run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import ConfigError
from ...moe import TeachingSettings


@dataclass
class CoEBoxSettings:
    """When experts train and when they run.

    Attributes:
        threshold: τ; a proposal whose delegated scores reach no higher maximum class probability
            goes on to an expert. 1 sends all, 0 none. It can be changed at any time.
        start: iteration of the second stage, from which on selector and experts train.
        max_iter: iterations of the whole training.
        teaching: LGM, WGM and SRM.
        selector_weight: η (Eq. 8).
        freeze_delegator: the paper's second stage, in which the delegator learns no more.

    Raises:
        ConfigError: τ is not within 0 and 1.
    """

    threshold: float = 0.9
    start: int = 0
    max_iter: int = 1
    teaching: TeachingSettings = field(default_factory=TeachingSettings)
    selector_weight: float = 0.8
    freeze_delegator: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(
                f"the delegator's threshold τ must be between 0 and 1, not {self.threshold}"
            )

    def alpha_at(self, iteration: int) -> float:
        """α of Eq. 5, linear over the second stage."""
        length = max(1, self.max_iter - 1 - self.start)
        return self.teaching.alpha_at((iteration - self.start) / length)
