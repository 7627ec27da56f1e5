"""The last step to a cost target: what evaluation runs, not what training ran.

Gates see batch statistics in training and population statistics in evaluation, and those near
their threshold fall on the other side. One shift of all gates' last biases makes up for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..modeling import RoutingSupervision
from ..routing import to_host
from .hooks import routing_records

logger = logging.getLogger(__name__)

# Shifts in logits to look among; the second only where the first leaves more than a hundredth.
# Gates that stay open change their values with it; beyond it would be another network.
_RANGES = ((0.0, 0.5), (0.5, 1.0))
_CLOSE = 0.01
_STEPS = 9  # halvings of a range: to 0.001


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
        if self.trainer.iter + 1 == end and self.routing.cost is not None:
            batches = list(self.loader())  # read once, run several times
            calibrate_cost(self.model, self.routing, self.routing.cost.share, batches)


@torch.no_grad()
def calibrate_cost(
    model: nn.Module,
    routing: RoutingSupervision,
    share: float,
    batches: list[list[dict]],
) -> float:
    """Shift all gates' last biases alike until images cost in evaluation what was asked for.

    The cost falls in steps as gates close one after the other; of the shifts tried (bisection
    within ±0.5 logits, ±1 if that leaves more than 1 %), the one that comes nearest stays, which
    may be none.

    Args:
        model: the model; its mode is restored.
        routing: attached to it.
        share: what the mean real cost is to be, of the all-open one, both without the stem.
        batches: this process's images.

    Returns:
        The shift in logits.
    """
    biases = [
        cell.gate.last_bias
        for cell in routing.backbone.network.cells()
        if cell.gate is not None and cell.gate.last_bias is not None
    ]
    start = [bias.clone() for bias in biases]

    def shift(by: float) -> None:
        for bias, value in zip(biases, start, strict=True):
            bias.copy_(value + by)

    def excess(by: float) -> float:
        shift(by)
        return _mean_share(model, routing, batches) / share - 1.0

    tried = {0.0: excess(0.0)}
    sign = -1.0 if tried[0.0] > 0 else 1.0
    best = 0.0
    for low, high in _RANGES:
        for _ in range(_STEPS):
            middle = (low + high) / 2
            off = tried[sign * middle] = excess(sign * middle)
            low, high = (middle, high) if sign * off < 0 else (low, middle)
        best = min(tried, key=lambda by: abs(tried[by]))
        if abs(tried[best]) <= _CLOSE:
            break
    shift(best)
    logger.info(
        "Cost target: in evaluation %+.1f %% off; all gates' biases move by %+.3f, then %+.1f %%",
        100 * tried[0.0],
        best,
        100 * tried[best],
    )
    return best


def _mean_share(model: nn.Module, routing: RoutingSupervision, batches: list[list[dict]]) -> float:
    """Mean real share over the images of all processes."""
    shares = image_costs(model, routing, batches)[0]
    totals = comm.all_gather((float(shares.sum()), len(shares)))
    return sum(t for t, _ in totals) / max(1, sum(n for _, n in totals))


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
