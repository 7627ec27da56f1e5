"""Two budgets: the published loss, and one that hits a real cost asked for.

The published budget loss (``budget_loss``) shrinks gates. A gate of 0.01 costs as much as one of
1 when it runs, so that real cost hardly follows. Here the real cost is a constraint on training:
its Lagrange multiplier follows the error by proportional and integral control, and gates see it
through a straight-through estimate (``DynamicRoutingNetwork.steerable_cost``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from ..settings import BudgetSettings
from .record import Routing
from .schedule import Ramp

_SETTLED = 20  # batches whose mean sizes tell whether a target can be reached
_FIRMEST = 3.0  # times the gain; with more, single batches push gates about


@dataclass(frozen=True)
class CostTarget:
    """What the mean real cost is to be, and the way there.

    Attributes:
        share: of the all-open real cost, both without the stem, which always runs; 0: ``gflops``.
        gflops: 10⁹ multiply-adds a training image as padded, stem included; 0: ``share``.
        start: iteration (from 0) from which the cost is steered.
        ramp: iterations in which the set point falls from 1 to the target.
        gain: multiplier by the error in share; larger follows closer, too large oscillates.
        memory: iterations after which a lasting error has doubled the multiplier.
        temperature: of the gates' stand-in, in logits.

    Raises:
        ConfigError: none or both targets, or a number out of its range.
    """

    share: float = 0.0
    gflops: float = 0.0
    start: int = 0
    ramp: int = 0
    gain: float = BudgetSettings.target_gain
    memory: int = BudgetSettings.target_memory
    temperature: float = BudgetSettings.target_temperature

    def __post_init__(self) -> None:
        if (self.share > 0) == (self.gflops > 0):
            raise ConfigError(
                "a cost target is either a share or a number of GFLOPs above 0; got share "
                f"{self.share} and {self.gflops} GFLOPs"
            )
        if not 0 <= self.share < 1:
            raise ConfigError(f"a share of the all-open cost must be below 1, not {self.share}")
        for name in ("gain", "memory", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"a cost target's {name} must be above 0, not {getattr(self, name)}"
                )

    def progress(self, iteration: int) -> float:
        """Share of the ramp that is done at an iteration, in [0, 1]; 0 before the start."""
        return Ramp(1.0, self.start, self.ramp).at(iteration)


@dataclass(frozen=True)
class BatchCost:
    """Mean costs of a batch over all processes, multiply-adds an image.

    Attributes:
        real: what ran.
        fixed: the stem.
        full: real cost with every gate open.
    """

    real: float
    fixed: float
    full: float


class CostController:
    """Lagrange multiplier of "mean real cost = target", by proportional and integral control.

    The set point falls geometrically, so that no batch closes everything at once. While it falls
    only the proportional part acts: going down asks for more force than staying there, and its
    memory would overshoot. All of it is in :meth:`state_dict`.

    Args:
        target: what to reach, and how.

    Attributes:
        rate: learning rate as a share of its largest, to be set by the trainer. Gates move in
            proportion to it; the gain grows as it falls (three times at most), as the loop would
            lose its damping and swing at the end of training.
        parts: batches of a step of training (``SOLVER.ACCUMULATE``), which share its integral.
    """

    def __init__(self, target: CostTarget) -> None:
        self.target = target
        self.rate = 1.0
        self.parts = 1
        self._integral = 0.0
        self._batches = 0
        self._fixed = self._full = 0.0  # means over the batches so far

    @property
    def share(self) -> float:
        """The target as a share; one in GFLOPs by the mean costs of the batches so far."""
        if self.target.share or not self._batches:
            return self.target.share
        return (self.target.gflops * 1e9 - self._fixed) / (self._full - self._fixed)

    def state_dict(self) -> dict[str, float]:
        """Integral and mean costs."""
        return {
            "integral": self._integral,
            "batches": self._batches,
            "fixed": self._fixed,
            "full": self._full,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._integral = float(state["integral"])
        self._batches = int(state["batches"])
        self._fixed, self._full = float(state["fixed"]), float(state["full"])

    def observe(self, cost: BatchCost, iteration: int) -> None:
        """Take in a training batch, before its :meth:`multiplier`.

        Raises:
            ConfigError: no route of images of these sizes costs what is asked for.
        """
        self._batches += 1
        self._fixed += (cost.fixed - self._fixed) / self._batches
        self._full += (cost.full - self._full) / self._batches
        if self._batches == _SETTLED * self.parts:
            self._check_reach()
        if self.target.progress(iteration) >= 1.0:
            error = self.error(cost, iteration)
            share = self._gain(iteration) / self.parts
            self._integral += share * error / self.target.memory

    def set_point(self, cost: BatchCost, iteration: int) -> float:
        """Mean real cost that a batch of this size should have now, multiply-adds an image."""
        span = cost.full - cost.fixed
        share = self.target.share or (self.target.gflops * 1e9 - cost.fixed) / span
        share = min(max(share, 1e-3), 1.0)  # of the smallest images all, of the largest little
        return cost.fixed + span * share ** self.target.progress(iteration)

    def error(self, cost: BatchCost, iteration: int) -> float:
        """Real cost above the set point, as a share of the mean cost that gates decide upon."""
        return (cost.real - self.set_point(cost, iteration)) / self.span(cost)

    def span(self, cost: BatchCost) -> float:
        """What errors are measured by, multiply-adds an image.

        One number for all batches where a number of GFLOPs is asked for: their mean is to hit it.
        """
        if self.target.share or not self._batches:
            return cost.full - cost.fixed
        return self._full - self._fixed

    def multiplier(self, cost: BatchCost, iteration: int) -> float:
        """The multiplier λ of the batch's share above the set point; 0 before the start.

        Below 0 it opens gates, which it never is while the set point falls.
        """
        if iteration < self.target.start:
            return 0.0
        value = self._integral + self._gain(iteration) * self.error(cost, iteration)
        return value if self.target.progress(iteration) >= 1.0 else max(0.0, value)

    def _gain(self, iteration: int) -> float:
        if self.target.progress(iteration) < 1.0:
            return self.target.gain
        return self.target.gain * min(_FIRMEST, 1.0 / max(self.rate, 1e-6))

    def _check_reach(self) -> None:
        gflops = self.target.gflops
        if gflops and not self._fixed < gflops * 1e9 < self._full:
            raise ConfigError(
                f"a target of {gflops:g} GFLOPs is out of reach: the training images seen so far "
                f"cost {self._fixed / 1e9:.4g} with every gate closed (the stem alone) and "
                f"{self._full / 1e9:.4g} with every gate open"
            )


def budget_loss(routing: Routing, target: float, per: str = BudgetSettings.per) -> Tensor:
    """(expected cost / cost with all gates open − target)² (DR, Eq. 9; DivDR, Eq. 3).

    DivDR's equation has it for every image, Dynamic Routing's code squares what the images of a
    process cost on average. They are the same with one image a process. With more, the mean over
    images is larger by the variance of their costs: it also works against routes of different cost.

    Args:
        routing: record of N images.
        target: μ, the share aimed at.
        per: "image" or "batch".

    Returns:
        (N,) losses of images, or (1,) that of their mean cost.

    Raises:
        ConfigError: ``per`` is neither.
    """
    check_per(per)
    share = routing.expected_cost / routing.full_cost
    if per == "batch":
        share = share.mean(dim=0, keepdim=True)
    return (share - target) ** 2


def check_per(per: str) -> None:
    """See that ``per`` is something :func:`budget_loss` knows.

    Raises:
        ConfigError: it is not.
    """
    known = BudgetSettings.choices("per")
    if per not in known:
        raise ConfigError(
            f"MODEL.ROUTING.BUDGET.PER must be one of {', '.join(known)}, not {per!r}"
        )
