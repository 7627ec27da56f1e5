"""Costs of a trained network, set by a threshold of its gates; the last step to a cost target.

One threshold for all gates, found over training images as evaluation sees them, brings a model to a
cost: what is open least closes first, and what stays open stays as far open. A shift of all gates'
biases, which also reaches a cost, changes the values that the layers behind were trained with, and
a few tenths of a logit of it can cost everything (docs/results/budget.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import ConfigError
from ..modeling import DialSetting, RoutingSupervision
from ..routing import to_host
from .hooks import routing_records

logger = logging.getLogger(__name__)

_FIRST, _FARTHEST = 0.25, 64.0  # logits: brackets double from the one to the other
_STEPS = 10  # halvings of a bracket
_NEAR = 0.01  # so much less than asked for is what was asked for
_LEFT = 0.02  # a training that ends so much above its target is left as it is


class CalibrationHook(HookBase):
    """Calibrates a cost target at the end of training, after precise BatchNorm.

    Args:
        model: the model.
        routing: attached to it, with a cost target.
        loader: makes the loader of the training images to look at, as evaluation sees them.
        max_iter: iterations of the whole training. A trainer that stops before, to go on later,
            has not come to its end: the correction would be in the weights of what follows. None:
            the trainer's own.
    """

    def __init__(
        self,
        model: nn.Module,
        routing: RoutingSupervision,
        loader: Callable[[], Iterable[list[dict]]],
        max_iter: int | None = None,
    ) -> None:
        self.model = model
        self.routing = routing
        self.loader = loader
        self.max_iter = max_iter

    def after_step(self) -> None:
        """Calibrate if this was the last step of the whole training."""
        end = self.trainer.max_iter if self.max_iter is None else self.max_iter
        fixed = self.routing.backbone.network.stays_open  # whose cost is what it is
        if self.trainer.iter + 1 == end and self.routing.cost is not None and not fixed:
            batches = list(self.loader())  # read once, run several times
            calibrate_cost(self.model, self.routing, self.routing.cost.share, batches)


class CostGoal(NamedTuple):
    """A real cost to reach.

    Attributes:
        value: the cost.
        unit: "share" of the all-open cost, both without the stem, or "gflops", 10⁹ multiply-adds of
            the backbone with its stem.
        each: no image costs more; otherwise it is the images' mean.
    """

    value: float
    unit: str = "share"
    each: bool = False

    def __str__(self) -> str:
        words = f"share {self.value:g}" if self.unit == "share" else f"{self.value:g} GFLOPs"
        return f"at most {words}" if self.each else words

    def excess(self, costs: ImageCosts) -> float:
        """What images cost above the goal, as a share of it."""
        found = costs.shares if self.unit == "share" else costs.gflops
        return float(found.max() if self.each else found.mean()) / self.value - 1.0


class ImageCosts(NamedTuple):
    """Real costs of the calibration images at one threshold, and their activations.

    Attributes:
        shares: (n,) of the all-open cost, both without the stem.
        gflops: (n,) 10⁹ multiply-adds, with the stem.
        values: (n, D) what is clustered.
    """

    shares: Tensor
    gflops: Tensor
    values: Tensor


class Calibration:
    """Finds thresholds of a model's gates for costs, over a fixed set of images.

    Args:
        model: trained; left as it was trained.
        routing: attached to it.
        batches: this process's images, as evaluation sees them.

    Raises:
        ConfigError: no gate of it decides what runs, or there are no images.
    """

    def __init__(
        self, model: nn.Module, routing: RoutingSupervision, batches: Iterable[list[dict]]
    ) -> None:
        self._model, self._routing = model, routing
        self._batches = list(batches)
        routing.backbone.set_gate_threshold(_FARTHEST)  # refused where there is but one cost
        routing.backbone.set_gate_threshold(0.0)
        if not any(comm.all_gather(len(self._batches))):
            raise ConfigError("there are no images to calibrate on")
        self._tried: dict[float, ImageCosts] = {}

    def costs(self, threshold: float) -> ImageCosts:
        """Of the images, with a threshold in logits; run once for each."""
        if threshold not in self._tried:
            self._routing.backbone.set_gate_threshold(threshold)
            try:
                found = image_costs(self._model, self._routing, self._batches)
            finally:
                self._routing.backbone.set_gate_threshold(0.0)
            parts = zip(*comm.all_gather(found), strict=True)  # of all processes
            self._tried[threshold] = ImageCosts(*(torch.cat(part) for part in parts))
        return self._tried[threshold]

    def find(self, goal: CostGoal) -> DialSetting:
        """The threshold whose cost comes nearest; below the goal if each image must stay below it.

        A bracket is widened until it holds the goal, then halved. Costs fall in steps, as one gate
        after another closes: how near they come is in what is returned.

        Raises:
            ConfigError: the model costs less already, or more even with all gates closed.
        """
        off = {0.0: goal.excess(self.costs(0.0))}
        if off[0.0] < -_NEAR:
            trained = self.setting(0.0)
            raise ConfigError(
                f"{goal} is above what the model costs as it was trained, share "
                f"{trained.share:.3g}, {trained.gflops:.4g} GFLOPs: more would run and change "
                "nothing"
            )
        low, high = 0.0, _FIRST
        while off.setdefault(high, goal.excess(self.costs(high))) > 0 and high < _FARTHEST:
            low, high = high, 2 * high
        if off[high] > 0:
            least = self.setting(high)
            raise ConfigError(
                f"{goal} cannot be reached: with all gates closed images cost share "
                f"{least.share:.3g}, {least.gflops:.4g} GFLOPs"
            )
        for _ in range(_STEPS):
            middle = (low + high) / 2
            off[middle] = goal.excess(self.costs(middle))
            low, high = (middle, high) if off[middle] > 0 else (low, middle)
        allowed = [t for t, excess in off.items() if excess <= 0 or not goal.each]
        return self.setting(min(allowed, key=lambda threshold: abs(off[threshold])))

    def setting(self, threshold: float) -> DialSetting:
        """What a threshold leads to."""
        found = self.costs(threshold)
        shares, gflops = found.shares.double(), found.gflops.double()
        return DialSetting(
            threshold, float(shares.mean()), float(gflops.mean()), self._centres(found)
        )

    def _centres(self, found: ImageCosts) -> Tensor | None:
        """Centres that have gone along with the activations of their images."""
        experts = self._routing.experts
        if experts is None or experts.centres is None:
            return None
        before = self.costs(0.0).values
        own = experts.assign(before)
        moved = found.values - before  # (n, D)
        centres = experts.centres.to(moved.device).clone()
        for k in range(experts.num_experts):
            # An expert without an image here goes the way of all.
            rows = moved[own == k] if (own == k).any() else moved
            centres[k] += rows.mean(dim=0)
        return centres


def calibrate_cost(
    model: nn.Module, routing: RoutingSupervision, share: float, batches: Iterable[list[dict]]
) -> float:
    """Close what is open least until images cost in evaluation what was asked for.

    Costs that are below, or above by no more than 2 %, are left alone.

    Args:
        model: the model; its mode is restored.
        routing: attached to it.
        share: what the mean real cost is to be, of the all-open one, both without the stem.
        batches: this process's images.

    Returns:
        The gates' threshold, in logits.
    """
    calibration = Calibration(model, routing, batches)
    goal = CostGoal(share)
    setting = stands = calibration.setting(0.0)
    if goal.excess(calibration.costs(0.0)) > _LEFT:
        try:
            setting = calibration.find(goal)
        except ConfigError as error:
            logger.warning("Cost target: %s", error)
        routing.run_at(setting)
    logger.info(
        "Cost target: in evaluation %+.1f %% off; gates are closed up to a logit of %.3f, then "
        "%+.1f %%",
        100 * (stands.share / share - 1),
        setting.threshold,
        100 * (setting.share / share - 1),
    )
    return setting.threshold


def image_costs(
    model: nn.Module, routing: RoutingSupervision, batches: Iterable[list[dict]]
) -> tuple[Tensor, Tensor, Tensor]:
    """What this process's images cost in evaluation; the backbone runs, and no head.

    Args:
        model: the model; its modes are restored.
        routing: attached to it.
        batches: the images.

    Returns:
        (n,) real shares of the all-open cost, both without the stem; (n,) real costs, stem
        included, in 10⁹ multiply-adds; (n, D) clustered values. Float32 on the CPU.
    """
    rows = []
    for _, record in routing_records(model, routing.backbone, batches):
        values = routing.clustered_values(record)
        rows.append(to_host([record.real_share, record.real_cost / 1e9, values]))
    if not rows:
        return (
            torch.zeros(0),
            torch.zeros(0),
            torch.zeros(0, routing.backbone.space.activation_size),
        )
    shares, gflops, values = (torch.cat(column).float() for column in zip(*rows, strict=True))
    return shares, gflops, values
