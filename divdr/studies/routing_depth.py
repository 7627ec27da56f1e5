"""Does per-example routing gain from more decisions? Cells of choice blocks trained in memory.

Section 4.3 of Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models", in small: at
each depth a routed network, the same network whose gates see nothing and so search one path for all
images, and a network of one path by design, as wide as equal multiply-adds allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..engine import load_config
from ..modeling.classifiers import build_classifier
from ..moe import num_parameters
from .classifier_tables import Pair
from .classifiers import measure, read_images, train

CONFIG = "configs/classification/fashion_mnist_per_example_cells.yaml"
_KEY = "MODEL.CLASSIFIER.PER_EXAMPLE."
OPERATIONS = ("conv_3x3", "conv_5x5", "max_pool_3x3", "skip_connect")
_BATCH, _RATE, _GROUPS = 64, 0.01, 2
_WIDEST = 64


def depth_pairs(cells: Sequence[int]) -> list[Pair]:
    """What is compared with what: kinds at each depth, and each kind with its own at the depth
    before.
    """
    kinds = ("routing", "searched path", "one path")
    found = []
    for count in cells:
        for kind in kinds[1:]:
            found.append(((name(kind, count), "system"), (name("routing", count), "system")))
    for kind in kinds:
        for less, more in pairwise(cells):
            found.append(((name(kind, less), "system"), (name(kind, more), "system")))
    return found


def name(kind: str, cells: int) -> str:
    """Of a row."""
    return f"{kind}, {cells} cells"


def depth_figures(
    folder: Path,
    seed: int,
    iterations: int,
    cells: Sequence[int],
    size: int = 14,
    filters: int = 4,
) -> dict[str, dict[str, float]]:
    """Accuracy, multiply-adds and parameters of every kind at every depth, for one seed.

    Args:
        folder: with Fashion-MNIST's files.
        seed: of weights and order.
        iterations: of each training.
        cells: depths; a cell makes eight decisions.
        size: rows and columns of an image.
        filters: of routed and searched networks.

    Returns:
        Figures by name, by system.
    """
    images = read_images(folder, "train", size)
    tests = read_images(folder, "test", size)

    def trained(count: int, width: int, **keys: Any) -> dict[str, float]:
        system = _build(seed, count, width, **keys)
        train(system, images, iterations, seed=seed, batch=_BATCH, rate=_RATE)
        return {**measure(system, tests), "parameters": num_parameters(system)}

    found = {}
    routed: dict[str, Any] = {"EXPERTS": list(OPERATIONS), "K_FIRST": len(OPERATIONS), "K_LAST": 1}
    single: dict[str, Any] = {"EXPERTS": ["conv_3x3"], "K_FIRST": 1, "K_LAST": 1}
    for count in cells:
        own = trained(count, filters, **routed, ROUTER="pooled")
        found[name("routing", count)] = own
        found[name("searched path", count)] = trained(count, filters, **routed, ROUTER="constant")
        width = _as_wide(own["system MFLOPs"], count, size, **single)
        found[name("one path", count)] = trained(count, width, **single, ROUTER="constant")
    return found


def _build(seed: int, cells: int, filters: int, **keys: Any) -> Any:
    torch.manual_seed(seed)
    every = {"LAYERS": cells, "FILTERS": filters, "CONVOLUTIONS": 1, "NORM_GROUPS": _GROUPS, **keys}
    pairs: list[Any] = ["MODEL.DEVICE", "cpu"]
    for key, value in every.items():
        pairs += [_KEY + key, value]
    return build_classifier(load_config(CONFIG, pairs))


def _as_wide(mflops: float, cells: int, size: int, **keys: Any) -> int:
    """Filters at which a network of one path costs nearest to so many multiply-adds (10⁶)."""

    def off(width: int) -> float:
        cost = _build(0, cells, width, **keys).cost(size, size)
        return abs((cost.shared + sum(cost.experts)) / 1e6 - mflops)

    best = _GROUPS
    # The cost grows with the width: past the nearest one it only goes away.
    while best < _WIDEST and off(best + _GROUPS) <= off(best):
        best += _GROUPS
    return best
