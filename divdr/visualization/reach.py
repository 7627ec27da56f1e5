"""Which cells a route reaches, from its gates alone."""

from __future__ import annotations

import numpy as np

from divdr.routing.gate import CLOSED_BELOW
from divdr.routing.space import KEEP, RoutingSpace


def follow(space: RoutingSpace, activations: np.ndarray) -> np.ndarray:
    """Follow the open paths through the layers.

    A(x) does not hold the gates of the initial cell, so every cell of layer 0 counts as reached.

    Args:
        space: the routing space.
        activations: A(x), (D,).

    Returns:
        (cells,) bool.

    Raises:
        ValueError: the length of A(x) is not the space's D.
    """
    activations = np.asarray(activations)
    if activations.shape != (space.activation_size,):
        raise ValueError(
            f"expected activations ({space.activation_size},), got {activations.shape}"
        )
    gates = activations.reshape(-1, 3)
    reached = np.zeros(space.num_cells, dtype=bool)
    reached[: space.scales_per_layer[0]] = True
    for layer, following in zip(space.layers, space.layers[1:], strict=False):
        for node in layer:
            if not reached[node.index]:
                continue
            row = gates[node.index]
            closed = row.sum() < CLOSED_BELOW
            for transform in node.transforms:
                if transform == KEEP if closed else row[transform] > 0:
                    reached[following[node.target_scale(transform)].index] = True
    return reached


def open_transforms(
    space: RoutingSpace, activations: np.ndarray, reached: np.ndarray
) -> np.ndarray:
    """Which transforms run, (cells, 3) bool, for A(x) (D,) and ``reached`` (cells,)."""
    gates = np.asarray(activations).reshape(space.num_cells, 3)
    active = np.asarray(reached, dtype=bool) & (gates.sum(axis=1) >= CLOSED_BELOW)
    return (gates > 0) & active[:, None]
