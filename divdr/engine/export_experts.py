"""Static experts for other programs, and the table of execution modes of their model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..checkpoint import write_atomically, write_text_atomically
from ..data import build_test_loader
from ..inference import StaticNetwork
from ..inference.static_network import export
from ..modeling import DynamicRoutingDecoder, attached_routing, find_backbone
from .execution_modes import compare_modes, modes_of, modes_table, write_modes
from .static_experts import ExpertSettings, build_static_experts, gather, save_static_experts

DISPATCHED = "static_experts.pth"


class Exported(nn.Module):
    """What is exported: from pixels to the maps of an expert, or to the logits of a decoder.

    Args:
        model: the Detectron2 model, whose normalisation of pixels and, for segmentation, decoder
            are taken.
        network: the static sub-network.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, network: StaticNetwork) -> None:
        super().__init__()
        self.network = network
        head = getattr(model, "sem_seg_head", None)
        self.head = head if isinstance(head, DynamicRoutingDecoder) else None
        self._names = list(find_backbone(model).output_shape())
        for name, default in (("pixel_mean", 0.0), ("pixel_std", 1.0)):
            value = getattr(model, name, None)
            value = torch.full((3, 1, 1), default) if value is None else value.detach().clone()
            self.register_buffer(name, value)

    def forward(self, images: Tensor) -> Any:
        """Pixels (N, C, H, W) as the model takes them → logits (N, classes, H', W') or maps."""
        maps = self.network((images - self.pixel_mean) / self.pixel_std)
        if self.head is None:
            return tuple(maps)
        return self.head(dict(zip(self._names, maps, strict=True)))[0]


def export_experts(
    cfg: CfgNode,
    model: nn.Module,
    settings: ExpertSettings,
    folder: str | Path,
    *,
    formats: Sequence[str] = ("pt2", "onnx"),
    size: tuple[int, int] | None = None,
    evaluate: bool = True,
) -> str:
    """Make static experts, write all their files, and compare execution modes of the model.

    Args:
        cfg: the model's configuration.
        model: trained, with routing attached.
        settings: how the experts are made.
        folder: takes the files.
        formats: of ``divdr.inference.static_network``.
        size: (height, width) of exported files, pixels; None: as the first test image is padded.
        evaluate: compare the modes (``experts.json`` holds the table).

    Returns:
        What was made, in words and a table.

    Raises:
        DivdrError: a setting, the data or the model cannot be used; the message says which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    routing = attached_routing(model.eval())
    train = gather(model, build_test_loader(cfg, cfg.DATASETS.TRAIN))
    experts = build_static_experts(cfg, model, train, settings)
    assert routing is not None
    save_static_experts(folder / DISPATCHED, experts)
    test = gather(model, build_test_loader(cfg, cfg.DATASETS.TEST))
    agreement = {
        name: float((experts.dispatcher.pick(g.values) == g.expert).double().mean())
        for name, g in (("train", train), ("test", test))
    }
    record = routing.backbone.routing
    assert record is not None
    height, width = size or record.size
    rows, lines = [], []
    for number, network in enumerate(experts.networks):
        name = f"expert_{number}"
        write_atomically(folder / f"{name}.pth", network.state_dict())
        gflops = network.route.real_cost(routing.backbone.network, height, width) / 1e9
        module = Exported(model, network).eval()
        example = 255 * torch.rand(1, 3, height, width).to(next(network.parameters()).device)
        errors = {kind: export(module, example, folder / f"{name}.{kind}") for kind in formats}
        cells = [list(cell) for cell in network.route.cells()]
        rows.append(
            {
                "name": name,
                "images": experts.images[number],
                "gflops": gflops,
                "cells": cells,
                "parameters": sum(p.numel() for p in network.parameters()),
                "relative_error": errors,
            }
        )
        lines.append(
            f"{name}: {experts.images[number]} training images, {len(cells)} cells, "
            f"{gflops:.4g} GFLOPs at {height}×{width}"
            + "".join(f", .{kind} error {error:.1e}" for kind, error in errors.items())
        )
    lines.append(
        f"dispatcher, by {settings.dispatch_layers} layers: agrees with the nearest centre for "
        f"{agreement['test']:.1%} of the test images ({agreement['train']:.1%} in training)"
    )
    more = {"experts": rows, "agreement": agreement, "size": [height, width]}
    if evaluate:
        modes = compare_modes(cfg, model, modes_of(routing, experts, train), folder / "ways")
        write_modes(folder / "experts.json", modes, **more)
        lines += ["", modes_table(modes)]
    else:
        write_text_atomically(folder / "experts.json", json.dumps(more, indent=2))
    return "\n".join(lines)
