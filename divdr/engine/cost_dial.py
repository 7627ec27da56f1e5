"""Set the real cost of a trained checkpoint without training: one cost, or a dial of several.

One shift of all gates' last biases, found over training images as evaluation sees them, brings the
model to a cost. Accuracy before and after tells what that took.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import read_weights, weight_file, write_atomically, write_text_atomically
from ..data import build_test_loader
from ..errors import ConfigError
from ..modeling import CostDial, DialSetting, GateShift, RoutingSupervision, attached_routing
from .about import KEY as ABOUT
from .calibration import image_costs
from .execution_modes import accuracy_of, load_trained
from .finite import plain_numbers
from .setup import make_output_folder
from .trainer import Trainer

_FIRST, _FARTHEST = 0.5, 32.0  # logits: brackets double from the one to the other
_STEPS = 10  # halvings of a bracket
_NEAR = 0.01  # off as little as this, the end of what can be reached will do
_KEPT = (ABOUT, "experts")  # of a checkpoint, beside weights and routing


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
    """Real costs of the calibration images at one shift, and where their activations went.

    Attributes:
        shares: (n,) of the all-open cost, both without the stem.
        gflops: (n,) 10⁹ multiply-adds, with the stem.
        values: (n, D) what is clustered.
    """

    shares: Tensor
    gflops: Tensor
    values: Tensor


class Calibration:
    """Finds shifts of a model's gates for costs, over a fixed set of images.

    Args:
        model: trained; left with its gates where they are.
        routing: attached to it.
        batches: images as evaluation sees them.

    Raises:
        ConfigError: its gates cannot be moved (``GATE`` "none"), or there are no images.
    """

    def __init__(
        self, model: nn.Module, routing: RoutingSupervision, batches: Iterable[list[dict]]
    ) -> None:
        self._model, self._routing = model, routing
        self._batches = list(batches)
        self.shift = GateShift(routing.backbone.network)
        if not len(self.shift):
            raise ConfigError('a model without gates (MODEL.ROUTING.GATE "none") has one cost')
        if not self._batches:
            raise ConfigError("there are no images to calibrate on")
        self._tried: dict[float, ImageCosts] = {}

    def costs(self, by: float) -> ImageCosts:
        """Of the images, with all gates' last biases moved by so many logits; run once for each."""
        if by not in self._tried:
            self.shift(by)
            try:
                found = image_costs(self._model, self._routing, self._batches)
            finally:
                self.shift(0.0)
            self._tried[by] = ImageCosts(*found)
        return self._tried[by]

    def find(self, goal: CostGoal) -> DialSetting:
        """The shift whose cost comes nearest; below the goal if each image must stay below it.

        A bracket of shifts is widened until it holds the goal, then halved. Costs fall in steps, as
        one gate after another closes: how near they come is in what is returned.

        Raises:
            ConfigError: all shifts lead to more, or all to less; it tells what the nearest costs.
        """
        off = {0.0: goal.excess(self.costs(0.0))}
        sign = -1.0 if off[0.0] > 0 else 1.0

        def short(by: float) -> bool:  # of the goal, on the way to it
            off[sign * by] = goal.excess(self.costs(sign * by))
            return sign * off[sign * by] < 0

        low, high = 0.0, _FIRST
        while short(high) and high < _FARTHEST:
            low, high = high, 2 * high
        crossed = sign * off[sign * high] >= 0
        for _ in range(_STEPS if crossed else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if short(middle) else (low, middle)
        allowed = [by for by, excess in off.items() if excess <= 0 or not goal.each]
        best = min(allowed or off, key=lambda by: abs(off[by]))
        if not allowed or not (crossed or goal.each or abs(off[best]) <= _NEAR):
            nearest = self.setting(best)
            raise ConfigError(
                f"no shift of the gates brings the images to {goal}: the nearest is share "
                f"{nearest.share:.3g}, {nearest.gflops:.4g} GFLOPs"
            )
        return self.setting(best)

    def setting(self, by: float) -> DialSetting:
        """What a shift of so many logits leads to."""
        found = self.costs(by)
        shares, gflops = found.shares.double(), found.gflops.double()
        return DialSetting(by, float(shares.mean()), float(gflops.mean()), self._centres(found))

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


@dataclass(frozen=True)
class CalibratedCost:
    """A model at one cost.

    Attributes:
        name: the goal, or "before".
        shift: of its gates, in logits.
        share: mean real share over the calibration images.
        gflops: their mean real GFLOPs.
        results: of the evaluation on ``DATASETS.TEST``; empty without one.
    """

    name: str
    shift: float
    share: float
    gflops: float
    results: dict[str, Any]


def calibrate_checkpoint(
    cfg: CfgNode,
    goals: Sequence[CostGoal],
    output: str | Path,
    *,
    images: int = 200,
    evaluate: bool = True,
) -> list[CalibratedCost]:
    """Write a checkpoint of another cost, or with a dial of several, and its config beside it.

    With one goal the gates of the written weights are moved. With several the weights stay and the
    file gets a dial: ``MODEL.ROUTING.DIAL`` then chooses. ``output`` takes ``model_final.pth``,
    ``config.yaml`` and ``calibration.json``.

    Args:
        cfg: of the model; ``MODEL.WEIGHTS`` names the checkpoint.
        goals: the costs.
        output: folder.
        images: of ``DATASETS.TRAIN`` to calibrate on, spread evenly; at most so many.
        evaluate: on ``DATASETS.TEST``, before and after.

    Returns:
        The model before, then at each goal.

    Raises:
        ConfigError: the model is not routed, a cost is out of reach, or settings contradict.
        CheckpointError: see ``load_trained``.
        DataError: images cannot be used.
    """
    if not goals:
        raise ConfigError("name a cost: --share or --gflops")
    if cfg.MODEL.ROUTING.STATIC_EXPERTS:
        raise ConfigError("static experts have no gates: leave MODEL.ROUTING.STATIC_EXPERTS empty")
    make_output_folder(str(output), "--output")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROUTING.DIAL = -1.0
    model = load_trained(cfg)
    routing = attached_routing(model)
    if routing is None:
        raise ConfigError("the model of this config has no routed backbone, and one cost")
    loader = build_test_loader(cfg, cfg.DATASETS.TRAIN, images)
    calibration = Calibration(model, routing, tqdm(loader, "reading", leave=False, disable=None))
    settings = [calibration.find(goal) for goal in goals]
    dial = CostDial(settings) if len(settings) > 1 else None
    stands = calibration.setting(0.0)
    rows = []
    names = ["before", *map(str, goals)]
    for number, (name, setting) in enumerate(zip(names, [stands, *settings], strict=True)):
        _set(routing, calibration, setting)
        folder = os.path.join(output, "evaluation", str(number))
        results = _evaluated(cfg, model, folder) if evaluate else {}
        rows.append(CalibratedCost(name, setting.shift, setting.share, setting.gflops, results))
    if dial is not None:  # the weights stay where they were
        _set(routing, calibration, stands)
    routing.dial = dial
    _write(cfg, model, routing, Path(output), rows)
    return rows


def _set(routing: RoutingSupervision, calibration: Calibration, setting: DialSetting) -> None:
    calibration.shift(setting.shift)
    if routing.experts is not None and setting.centres is not None:
        routing.experts.move_centres(setting.centres)


def _evaluated(cfg: CfgNode, model: nn.Module, folder: str) -> dict[str, Any]:
    """Results on the first of ``DATASETS.TEST``."""
    if not cfg.DATASETS.TEST:
        return {}
    here = cfg.clone()
    here.defrost()
    here.OUTPUT_DIR = folder
    results = Trainer.test(here, model)
    return dict(results[cfg.DATASETS.TEST[0]] if len(cfg.DATASETS.TEST) > 1 else results)


def _write(
    cfg: CfgNode,
    model: nn.Module,
    routing: RoutingSupervision,
    folder: Path,
    rows: Sequence[CalibratedCost],
) -> None:
    content = {k: v for k, v in read_weights(weight_file(cfg.MODEL.WEIGHTS)).items() if k in _KEPT}
    content.update(model=model.state_dict(), routing=routing.state_dict())
    write_atomically(folder / "model_final.pth", content)
    own = cfg.clone()
    own.defrost()
    own.MODEL.WEIGHTS, own.OUTPUT_DIR = str(folder / "model_final.pth"), str(folder)
    write_text_atomically(folder / "config.yaml", own.dump())
    table = [{**asdict(row), "results": plain_numbers(row.results)} for row in rows]
    write_text_atomically(folder / "calibration.json", json.dumps(table, indent=2))


def calibration_table(rows: Sequence[CalibratedCost]) -> str:
    """Markdown: costs over the calibration images, and what evaluation found."""
    measures = list(dict.fromkeys(m for row in rows for m in accuracy_of(row.results)))
    body = []
    for row in rows:
        accuracy = accuracy_of(row.results)
        real = row.results.get("routing", {}).get("real_gflops")
        body.append(
            [
                row.name,
                f"{row.shift:+.3f}",
                f"{row.share:.3f}",
                f"{row.gflops:.4g}",
                "" if real is None else f"{real:.4g}",
                *(f"{accuracy[m]:.2f}" if m in accuracy else "" for m in measures),
            ]
        )
    headers = ["cost", "shift", "real share", "real GFLOPs", "real GFLOPs, test", *measures]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)
