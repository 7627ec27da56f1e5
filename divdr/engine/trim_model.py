"""A trained model without the cells and transforms that no training image uses, as a run's folder.

``divdr.inference.trimming`` finds what these are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import without_training, write_atomically, write_text_atomically
from ..data import build_test_loader
from ..errors import ConfigError
from ..inference import Route
from ..inference.trimming import used_route, weights_on_route
from ..modeling import attached_routing, find_backbone
from .about import KEY
from .execution_modes import accuracy_of, load_with_about
from .hooks import routing_records
from .trainer import Trainer


@dataclass(frozen=True)
class _Routes:
    """Of M images: gates (M, D), of the initial cell (M, T), reached (M, cells), cost (M,)."""

    activations: Tensor
    initial: Tensor
    reached: Tensor
    real_cost: Tensor


def _routes(cfg: CfgNode, model: nn.Module) -> _Routes:
    rows = []
    loader = build_test_loader(cfg, cfg.DATASETS.TRAIN)
    followed = tqdm(loader, desc="routes", leave=False, disable=None)
    for _, record in routing_records(model, find_backbone(model), followed):
        found = (record.activations, record.initial, record.reached, record.real_cost)
        rows.append([part.cpu() for part in found])
    return _Routes(*(torch.cat(part) for part in zip(*rows, strict=True)))


def trim(cfg: CfgNode, folder: str | Path, *, at_mean: bool = False) -> str:
    """Write a trained model without what no training image uses: ``model_final.pth``,
    ``config.yaml`` and ``route.json``, which the configuration names.

    Gates of what remains decide for each image as before; those that say the same of all training
    images become numbers. The dial is left out, as it would open what is gone; a position that
    ``MODEL.ROUTING.DIAL`` names stays.

    Args:
        cfg: the model's configuration, with its checkpoint as ``MODEL.WEIGHTS``.
        folder: takes the files; it is made.
        at_mean: gates become their mean where all training images that reach their cell open the
            same transforms, however far. Both models are evaluated on ``DATASETS.TEST`` then.

    Returns:
        What was left out and saved, and what accuracy changed, for people.

    Raises:
        CheckpointError: the weights cannot be used, or the files not be written.
        ConfigError: the model has no gates that can close, or its cells choose operations.
    """
    folder, cfg = Path(folder), cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROUTING.STATIC_EXPERTS = ""
    model, about = load_with_about(cfg)
    routing = attached_routing(model)
    if routing is None:
        raise ConfigError("trimming needs a model with a routed backbone")
    whole = routing.backbone.network
    fixed = whole.fixed_route is not None
    if whole.initial.gate is None or (whole.stays_open and not fixed):
        raise ConfigError(
            'trimming needs gates of cells that can close: MODEL.ROUTING.GATE is "none" or '
            '"early", or those of a fixed route (MODEL.ROUTING.ROUTE) stay open'
        )
    before = _routes(cfg, model)
    rows = (before.activations, before.initial, before.reached)
    route = used_route(whole.space, *rows, at_mean=at_mean)
    folder.mkdir(parents=True, exist_ok=True)
    file = os.path.abspath(folder / "route.json")
    route.write(file)
    settings = cfg.MODEL.ROUTING
    settings.ROUTE, settings.DIAL = file, -1.0
    settings.ROUTE_GATES = "open" if fixed else "decide"
    settings.GATE_THRESHOLD = whole.gate_threshold  # its own, or that of the dial's position
    made = Trainer.build_model(cfg).eval()
    part = find_backbone(made).network
    kept = {name: value for name, value in model.state_dict().items() if name in made.state_dict()}
    prefix = next(name for name, module in made.named_modules() if module is part)
    own = weights_on_route(whole, part, route)
    kept.update({f"{prefix}.{name}": value for name, value in own.items()})
    made.load_state_dict(kept)
    after = _routes(cfg, made)
    content = {"model": kept, "routing": routing.state_dict()}
    content["routing"].pop("dial", None)
    if about is not None:
        content[KEY] = about.as_dict()
    write_atomically(folder / "model_final.pth", without_training(content))
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(folder / "model_final.pth"), str(folder)
    write_text_atomically(folder / "config.yaml", cfg.dump())
    said = _said(folder, route, [model, made], [before, after])
    return f"{said}\n{_accuracies(cfg, folder, [model, made])}" if at_mean else said


def _accuracies(cfg: CfgNode, folder: Path, models: list[nn.Module]) -> str:
    """Of the model before and after, on each test set, whose files go into folders of their own."""
    found = []
    for name, model in zip(("before", "after"), models, strict=True):
        here = cfg.clone()
        here.OUTPUT_DIR = str(folder / name)
        results = Trainer.test(here, model)
        found.append(results if len(cfg.DATASETS.TEST) > 1 else {cfg.DATASETS.TEST[0]: results})
    before, after = found
    return "\n".join(
        f"{data}: {measure} {value:.2f}, trimmed {accuracy_of(after[data])[measure]:.2f}"
        for data in cfg.DATASETS.TEST
        for measure, value in accuracy_of(before[data]).items()
    )


def _said(folder: Path, route: Route, models: list[nn.Module], routes: list[_Routes]) -> str:
    count = [sum(p.numel() for p in model.parameters()) for model in models]
    gflops = [float(each.real_cost.mean()) / 1e9 for each in routes]
    before, after = routes
    differ = ((before.activations > 0) != (after.activations > 0)).any(dim=1).sum()
    return (
        f"{folder}: {int(route.reached.sum())} of {route.space.num_cells} cells, "
        f"gates of {len(route.constant)} constant, "
        f"{count[1]} of {count[0]} parameters, {gflops[1]:.6g} GFLOPs an image where there were "
        f"{gflops[0]:.6g}; {int(differ)} of {len(before.activations)} training images take another "
        "route"
    )
