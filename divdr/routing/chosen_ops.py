"""A cell's operations chosen for each image: y = Σ_i G(x)_i op_i(x), each op on its own images.

Ramachandran & Le, "Diversity and Depth in Per-Example Routing Models", Section 2.1. n images at a
cell, O operations. Gates of this kind are made by ``divdr.moe.OpGates``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .transfer import to_device


class OpChoice(NamedTuple):
    """What was chosen for n images.

    Attributes:
        weights: (n, O) G(x), 0 for operations that do not run.
        load: (n, O) probability that each would be chosen, see ``divdr.moe.load_probabilities``.
    """

    weights: Tensor
    load: Tensor

    def of_rows(self, rows: Tensor) -> OpChoice:
        """The same where a mask (n,) holds, and 0 elsewhere."""
        return OpChoice(*(torch.where(rows[:, None], part, 0.0) for part in self))


class OpGateBuilder(Protocol):
    """Makes the gate of a cell's operations: a module from (n, C, H, W) to :class:`OpChoice`."""

    def __call__(self, channels: int, ops: int, layer: int, layers: int) -> nn.Module:
        """Of a cell of C ``channels`` and O ``ops`` in a ``layer`` (from 0) of ``layers``."""
        ...


def chosen_sum(
    ops: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    weights: Tensor,
    factors: Sequence[Tensor | None] = (),
    *,
    chosen: Tensor | None = None,
    always: bool = False,
) -> Tensor:
    """Weighted sum of operations, each run on the images that chose it and on no others.

    Args:
        ops: O of them, which keep the shape.
        x: (n, C, H, W).
        weights: (n, O); 0 is not chosen.
        factors: for each operation (n, 1, 1, 1) by which its maps are multiplied, or None; () for
            none.
        chosen: (n, O) bool on the host, where the weights are above 0; None asks the device.
        always: run operations that nobody chose too, on no images, as synchronised normalisation
            needs where another process has some.
    """
    if chosen is None:
        chosen = (weights.detach() > 0).cpu()  # the only wait for the device
    parts = []
    for number, op in enumerate(ops):
        rows = to_device(chosen[:, number].nonzero()[:, 0], x.device)
        if len(rows):
            y = op(x if len(rows) == len(x) else x.index_select(0, rows))
        elif always:
            y = _on_none(op, x)
        else:
            continue
        weight = weights[:, number].index_select(0, rows)[:, None, None, None]
        y = y * weight.to(y.dtype)
        factor = factors[number] if factors else None
        if factor is not None:
            y = y * factor.index_select(0, rows).to(y.dtype)
        parts.append((rows, y))
    if not parts:
        return x
    dtype = parts[0][1].dtype
    for _, y in parts:
        dtype = torch.promote_types(dtype, y.dtype)
    total = x.new_zeros(x.shape, dtype=dtype)
    for rows, y in parts:
        total = total.index_add(0, rows, y.to(dtype))
    return total


def _on_none(op: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # Normalisation sends statistics of half precision maps in float32, of which an empty map must
    # not send a half.
    with torch.autocast(x.device.type, enabled=False):
        return op(x[:0].to(torch.promote_types(x.dtype, torch.float32)))
