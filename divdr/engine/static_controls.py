"""Static networks beside a routed one that is configured or trained: what the tool does.

The routes and widths themselves are found by ``divdr.inference.controls``.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache, partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from ..data import build_test_loader
from ..errors import ConfigError
from ..inference import Route
from ..inference.controls import chains_route, majority_route, random_route, width_of_cost
from ..modeling import (
    DynamicRouting,
    backbone_macs,
    build_narrow_fpn_backbone,
    find_backbone,
)
from ..routing import DynamicRoutingNetwork
from ..settings import NarrowBackboneSettings, RoutingSettings
from .execution_modes import load_trained
from .hooks import routing_records
from .setup import make_output_folder

Size = tuple[int, int]


def _network(cfg: CfgNode, **changes: object) -> DynamicRoutingNetwork:
    """The backbone's network of a configuration, without trained weights."""
    settings = RoutingSettings.of(cfg.MODEL.ROUTING)
    values = {**vars(settings), "route": "", **changes}
    return DynamicRouting.of(RoutingSettings(**values)).network.eval()


def random_of(
    cfg: CfgNode, path: str, gflops: float, size: Size, seed: int = 0, tolerance: float = 0.01
) -> str:
    """Write a random route of a given cost through a configuration's space.

    Args:
        cfg: of the routed network; the route costs so much with GATE "none".
        path: the file to write.
        gflops: 10⁹ multiply-adds, stem included.
        size: (height, width) of the image that costs so much.
        seed: chooses the route.
        tolerance: by which share the cost may be off.

    Returns:
        What was written, for people.

    Raises:
        ConfigError: no such route was found.
    """
    network = _network(cfg, gate="none")
    route = random_route(network, gflops, size, seed=seed, tolerance=tolerance)
    return _written(route, path, network, size)


def chains_of(cfg: CfgNode, path: str, gflops: float, size: Size, chains: int = 2) -> str:
    """Write a route of chains through a configuration's space, see ``chains_route``.

    Args:
        cfg: of the routed network; the route costs so much with GATE "none".
        path: the file to write.
        gflops: 10⁹ multiply-adds, stem included.
        size: (height, width) of the image that costs so much.
        chains: how many, from stride 4 on.

    Returns:
        What was written, for people.

    Raises:
        ConfigError: the space has not so many strides.
    """
    network = _network(cfg, gate="none")
    return _written(chains_route(network, gflops, size, chains=chains), path, network, size)


def majority_of(
    cfg: CfgNode, path: str, *, images: int = 200, threshold: float | None = None
) -> str:
    """Write the route that most training images take in a trained network.

    Args:
        cfg: of the routed network, with its checkpoint as ``MODEL.WEIGHTS``.
        path: the file to write.
        images: training images to ask, as evaluation sees them.
        threshold: see ``majority_route``.

    Returns:
        What was written, for people.

    Raises:
        CheckpointError: the weights cannot be used.
        ConfigError: the network has no gates, or the route ends early.
    """
    model = load_trained(cfg)
    backbone = find_backbone(model)
    if not backbone.network.has_gates:
        raise ConfigError('the majority of routes needs gates, and MODEL.ROUTING.GATE is "none"')
    rows, size = [], (0, 0)
    loader = build_test_loader(cfg, cfg.DATASETS.TRAIN, images)
    for _, record in routing_records(model, backbone, loader):
        size = record.size
        rows.append((record.activations.cpu(), record.initial.cpu()))
    activations, initial = (torch.cat(part) for part in zip(*rows, strict=True))
    route = majority_route(backbone.network, activations, initial, size, threshold=threshold)
    return _written(route, path, backbone.network, size)


def width_of(cfg: CfgNode, gflops: float, size: Size, tolerance: float = 0.01) -> str:
    """The width at which a configuration's network costs so much without gates.

    Args:
        cfg: of a routed network, whose proportion of stem to cells is kept as far as possible, or
            with ``build_narrow_fpn_backbone``, whose neck counts.
        gflops: 10⁹ multiply-adds, stem included.
        size: (height, width) of the image that costs so much.
        tolerance: by which share the cost may be off; a ``NARROW_BACKBONE`` gets the nearest.

    Returns:
        Config keys with their values, and the cost.

    Raises:
        ConfigError: no width costs so little.
    """
    narrow = build_narrow_fpn_backbone.__name__
    if narrow == cfg.MODEL.BACKBONE.NAME:
        return _narrow_width_of(cfg, gflops, size)

    def build(channels: int, stem: int) -> DynamicRoutingNetwork:
        return _network(cfg, gate="none", channels=channels, stem_channels=stem)

    routing = cfg.MODEL.ROUTING
    width = width_of_cost(
        build,
        gflops,
        size,
        channels=routing.CHANNELS,
        stem_channels=routing.STEM_CHANNELS,
        tolerance=tolerance,
    )
    key = RoutingSettings.KEY
    return (
        f"{key}.GATE none {key}.CHANNELS {width.channels} {key}.STEM_CHANNELS "
        f"{width.stem_channels}  # {width.gflops:.6g} GFLOPs"
    )


_HUNDREDTHS = range(1, 401)


def _narrow_width_of(cfg: CfgNode, gflops: float, size: Size) -> str:
    @cache
    def cost(hundredths: int) -> float:
        changed = cfg.clone()
        changed.defrost()
        changed.MODEL.NARROW_BACKBONE.WIDTH = hundredths / 100
        shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
        backbone = build_narrow_fpn_backbone(changed, shape).eval()
        return backbone_macs(backbone, *size) / 1e9

    if cost(_HUNDREDTHS[0]) > 2 * gflops:
        raise ConfigError(
            f"{cfg.MODEL.NARROW_BACKBONE.NETWORK} of the least width costs "
            f"{cost(_HUNDREDTHS[0]):.6g} GFLOPs at {size[0]}×{size[1]} pixels, neck included, more "
            f"than twice {gflops:.6g}"
        )
    above = bisect_left(_HUNDREDTHS, gflops, key=cost)
    beside = _HUNDREDTHS[max(0, above - 1) : above + 1]
    best = min(beside, key=lambda hundredths: abs(cost(hundredths) - gflops))
    key = NarrowBackboneSettings.KEY
    return f"{key}.WIDTH {best / 100}  # {cost(best):.6g} GFLOPs, neck included"


def _written(route: Route, path: str, network: DynamicRoutingNetwork, size: Size) -> str:
    make_output_folder(str(Path(path).parent), "--output")
    route.write(path)
    cost = partial(route.real_cost, network, *size)
    return (
        f"{path}: {len(route.cells())} of {route.space.num_cells} cells, {cost() / 1e9:.6g} GFLOPs "
        f"at {size[0]}×{size[1]} without gates"
    )
