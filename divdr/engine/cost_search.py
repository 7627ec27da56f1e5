"""Set the real cost of a trained checkpoint without training: one cost, or a dial of several.

One threshold for all gates, found over training images as evaluation sees them, brings the model to
a cost: what is open least closes first. Accuracy before and after tells what that took.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from ..checkpoint import read_weights, weight_file, write_atomically, write_text_atomically
from ..data import build_test_loader
from ..errors import ConfigError
from ..modeling import CostDial, RoutingSupervision, attached_routing
from .about import KEY as ABOUT
from .calibration import Calibration, CostGoal
from .execution_modes import accuracy_of, load_trained
from .finite import plain_numbers
from .setup import make_output_folder
from .trainer import Trainer

_KEPT = (ABOUT, "experts")  # of a checkpoint, beside weights and routing


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
        routing.run_at(setting)
        folder = os.path.join(output, "evaluation", str(number))
        results = _evaluated(cfg, model, folder) if evaluate else {}
        costs = (setting.threshold, setting.share, setting.gflops)
        rows.append(CalibratedCost(name, *costs, results))
    if dial is not None:
        routing.run_at(stands)
    else:
        cfg.MODEL.ROUTING.GATE_THRESHOLD = settings[0].threshold
    routing.dial = dial
    _write(cfg, model, routing, Path(output), rows)
    return rows


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
