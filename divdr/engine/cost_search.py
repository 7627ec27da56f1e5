"""Set the real cost of a trained checkpoint without training: one cost, or a dial of several.

One threshold for all gates, found over training images as evaluation sees them, brings the model to
a cost: what is open least closes first. Accuracy before and after tells what that took.
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
from ..modeling import CostDial, DialSetting, RoutingSupervision, attached_routing
from .about import KEY as ABOUT
from .calibration import image_costs
from .execution_modes import accuracy_of, load_trained
from .finite import plain_numbers
from .setup import make_output_folder
from .trainer import Trainer

_FIRST, _FARTHEST = 0.25, 64.0  # logits: brackets double from the one to the other
_STEPS = 10  # halvings of a bracket
_NEAR = 0.01  # so much less than asked for is what was asked for
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
        batches: images as evaluation sees them.

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
        if not self._batches:
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
            self._tried[threshold] = ImageCosts(*found)
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


@dataclass(frozen=True)
class CalibratedCost:
    """A model at one cost.

    Attributes:
        name: the goal, or "before".
        threshold: of its gates, in logits.
        share: mean real share over the calibration images.
        gflops: their mean real GFLOPs.
        results: of the evaluation on ``DATASETS.TEST``; empty without one.
    """

    name: str
    threshold: float
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

    The weights stay. With one goal the config gets a ``MODEL.ROUTING.GATE_THRESHOLD``; with several
    the checkpoint gets a dial, from which ``MODEL.ROUTING.DIAL`` chooses. ``output`` takes
    ``model_final.pth``, ``config.yaml`` and ``calibration.json``.

    Args:
        cfg: of the model; ``MODEL.WEIGHTS`` names the checkpoint.
        goals: the costs.
        output: folder.
        images: of ``DATASETS.TRAIN`` to calibrate on, spread evenly; at most so many.
        evaluate: on ``DATASETS.TEST``, before and after.

    Returns:
        The model before, then at each goal.

    Raises:
        ConfigError: the model is not routed, or a cost is out of reach.
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
    cfg.MODEL.ROUTING.DIAL, cfg.MODEL.ROUTING.GATE_THRESHOLD = -1.0, 0.0
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
        _set(routing, setting)
        folder = os.path.join(output, "evaluation", str(number))
        results = _evaluated(cfg, model, folder) if evaluate else {}
        costs = (setting.threshold, setting.share, setting.gflops)
        rows.append(CalibratedCost(name, *costs, results))
    if dial is not None:
        _set(routing, stands)
    else:
        cfg.MODEL.ROUTING.GATE_THRESHOLD = settings[0].threshold
    routing.dial = dial
    _write(cfg, model, routing, Path(output), rows)
    return rows


def _set(routing: RoutingSupervision, setting: DialSetting) -> None:
    routing.backbone.set_gate_threshold(setting.threshold)
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
                f"{row.threshold:.3f}",
                f"{row.share:.3f}",
                f"{row.gflops:.4g}",
                "" if real is None else f"{real:.4g}",
                *(f"{accuracy[m]:.2f}" if m in accuracy else "" for m in measures),
            ]
        )
    headers = ["cost", "threshold", "real share", "real GFLOPs", "real GFLOPs, test", *measures]
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)
