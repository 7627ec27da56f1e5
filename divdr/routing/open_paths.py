"""The decision rules: what the gates of a cell run, and to which cells they send an image on.

Written once for all that run a network (the network itself, plans, hand-made routes, static
sub-networks), count what ran, or draw it.

The rules use only operators that Python's numbers, NumPy's arrays and tensors have in common. The
network asks for all images of a cell at once, as tensors with a graph on its device; a plan asks
image by image on the host, where a tensor of three numbers costs ten times what the numbers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .space import KEEP, Node, RoutingSpace

CLOSED_BELOW = 1e-4
"""A cell whose gates sum below this computes nothing and passes its input on along keep."""


def is_closed(gate_sum: Any) -> Any:
    """Whether cells compute nothing, by the sum of their gates: a number, array or tensor."""
    return gate_sum < CLOSED_BELOW


def is_open(gate: Any, closed: Any) -> Any:
    """Whether transforms run.

    Args:
        gate: their gates, a number, array or tensor.
        closed: whether their cells are closed, of a shape that broadcasts.
    """
    # Gates of a closed cell may be above 0. "== 0" negates bool, array and tensor alike.
    return (gate > 0) & (closed == 0)


def leads_on(opened: Any, closed: Any, is_keep: Any, reach: str) -> Any:
    """Whether a reached cell makes its image reach the cell that a transform points to.

    Args:
        opened: whether the transform runs, a bool, array or tensor.
        closed: whether the cell is closed, of a shape that broadcasts, as of the next.
        is_keep: whether the transform is keep, which takes the input of a closed cell along.
        reach: "open" or "published", see ``DynamicRoutingNetwork``.
    """
    going = closed == 0 if reach == "published" else opened
    return going | (closed & is_keep)


def _targets(node: Node, row: Sequence[float], closed: bool) -> set[int]:
    """Scales of the next layer's cells that open paths lead to from a reached cell."""
    return {
        node.target_scale(transform)
        for transform in node.transforms
        if leads_on(is_open(row[transform], closed), closed, transform == KEEP, "open")
    }


def reached_cells(space: RoutingSpace, gates: Any, initial: Any = None) -> list[bool]:
    """The cells that open paths lead one image into, in the order of A(x).

    Args:
        space: the routing space.
        gates: (cells, T), a tensor or array on the host; rows of unreached cells do not matter.
        initial: (T,) gates of the initial cell, likewise; None leads to every cell of layer 0.
    """
    reached = [False] * space.num_cells
    scales = set(range(space.scales_per_layer[0]))
    if initial is not None:
        scales = _targets(space.initial, initial.tolist(), is_closed(float(initial.sum())))
    for layer in space.layers:
        following: set[int] = set()
        for node in layer:
            if node.scale in scales:
                reached[node.index] = True
                row = gates[node.index]
                following |= _targets(node, row.tolist(), is_closed(float(row.sum())))
        scales = following
    return reached
