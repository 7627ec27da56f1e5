"""Cost of routes, in multiply-adds per image, from the actual sizes of the maps.

Two figures, always together, because they drift apart: the *expected* cost (differentiable, gates
× MACs; Li et al., Eq. 7 and 8) and the *real* cost (what runs). A third, the *published* count of
the Dynamic Routing code, exists for comparison with its numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .gate import EarlyLook, StaticGate
from .open_paths import is_closed, is_open
from .ops import SqueezeExcite
from .space import KEEP, TRANSFORMS
from .transfer import to_device

if TYPE_CHECKING:
    from .cell import Cell
    from .network import DynamicRoutingNetwork

MapShape = tuple[int, int, int]
"""(C, H, W) of one image's map."""

SIZES_KEPT = 256
"""Input sizes whose costs are remembered: images of ever new sizes must not fill the memory."""

_CLOSED_ENOUGH = 2.0  # temperatures below the threshold


def count_macs(
    module: nn.Module, shape: MapShape, *, affine_norm: bool = True
) -> tuple[float, MapShape]:
    """Multiply-adds of a module of plain layers and the shape of what it returns.

    Args:
        module: a layer, or containers of layers that run one after the other.
        shape: (C, H, W) of its input.
        affine_norm: count a normalisation's scale and shift (2 per number in all) or not (1).

    Raises:
        TypeError: the module holds a kind of layer whose cost is unknown.
    """
    channels, height, width = shape
    size = channels * height * width
    if isinstance(module, nn.Conv2d):
        out = _window_shape(module, shape, module.out_channels)
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return out[0] * out[1] * out[2] * kernel * channels / module.groups, out
    if isinstance(module, nn.Identity):
        return 0.0, shape
    if isinstance(module, nn.ReLU):
        return float(size), shape
    if "Norm" in type(module).__name__:
        return float(size * (2 if affine_norm else 1)), shape
    if isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
        out = _window_shape(module, shape, channels)
        rows, columns = _pair(module.kernel_size)
        return float(out[0] * out[1] * out[2] * rows * columns), out
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return float(size), (channels, 1, 1)
    if isinstance(module, SqueezeExcite):
        # The mean of the map, two products of C × inner, and ReLU on the inner ones.
        return float(size + module.inner * (2 * channels + 1)), shape
    children = list(module.children())
    if not children:
        raise TypeError(f"the cost of a {type(module).__name__} layer is not known")
    total = 0.0
    for child in children:
        macs, shape = count_macs(child, shape, affine_norm=affine_norm)
        total += macs
    return total, shape


def _window_shape(layer: nn.Module, shape: MapShape, channels: int) -> MapShape:
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    padding, dilation = _pair(layer.padding), _pair(getattr(layer, "dilation", 1))
    rows, columns = (
        (length + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(shape[1:])
    )
    return channels, rows, columns


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class CellCost:
    """Multiply-adds of one cell for one image.

    Attributes:
        cell: the sum of its operations, and the gate that chooses among them, if there is one.
        transforms: [up, keep, down]; None where a transform does not exist.
        gate: the gate; 0 without one.
        ops: of each operation, where a gate chooses among them; else ().
        op_gate: that gate; 0 without one.
    """

    cell: float
    transforms: tuple[float | None, float | None, float | None]
    gate: float
    ops: tuple[float, ...] = ()
    op_gate: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """Multiply-adds of every part of a network for one image of a given size.

    Attributes:
        size: (height, width) of the input in pixels.
        stem: the stem.
        initial: the initial cell.
        cells: the reported cells, in the order of A(x).
        last_layer: how many of them form the last layer.
        early: the look that decides for all of them, which always runs; 0 where cells decide.
    """

    size: tuple[int, int]
    stem: float
    initial: CellCost
    cells: tuple[CellCost, ...]
    last_layer: int
    early: float = 0.0

    def without_gates(self, gated: int = 0, initial_gate: bool = False) -> CostTable:
        """The table for routes that are given, not decided.

        Args:
            gated: how many reported cells, the first ones, decide nevertheless.
            initial_gate: whether the initial cell does.
        """
        given = tuple(replace(cell, gate=0.0) for cell in self.cells[gated:])
        initial = self.initial if initial_gate else replace(self.initial, gate=0.0)
        early = 0.0 if given else self.early
        return replace(self, initial=initial, cells=(*self.cells[:gated], *given), early=early)

    def tensors(self, device: torch.device | str) -> CostTensors:
        """The table as tensors, for routes on ``device``."""
        return CostTensors(self, device)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _in_full_precision(method: _Method) -> _Method:
    """Costs are beyond half precision (a cell has 10⁸ multiply-adds), whatever autocast is on."""

    @wraps(method)
    def guarded(self: CostTensors, first: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(self, first, *args, **kwargs)

    return cast(_Method, guarded)


class CostTensors:
    """Cost of routes by table; A(x) comes as (N, cells, T).

    All arithmetic is in float32, under autocast too. Made in inference mode they serve in training
    as well.

    Attributes:
        stem: what always runs, multiply-adds: the stem, and an early look.
        full_cost: expected cost with every gate at 1, multiply-adds.
        full_real_cost: real cost with every gate open, multiply-adds.
    """

    @torch.inference_mode(False)
    def __init__(self, table: CostTable, device: torch.device | str) -> None:
        rows = (table.initial, *table.cells)  # the initial cell is row 0 of every tensor
        self.stem = table.stem + table.early
        self._last = table.last_layer
        self._cell = torch.tensor([r.cell for r in rows])  # (1 + cells,)
        self._gate = torch.tensor([r.gate for r in rows])  # (1 + cells,)
        transforms = [[t or 0.0 for t in r.transforms] for r in rows]
        self._transform = torch.tensor(transforms)  # (1 + cells, T)
        # Where operations are chosen by image: (cells, O) and (cells,).
        count = max(len(r.ops) for r in table.cells)
        # Cells that a static sub-network leaves out have none.
        each = [r.ops or (0.0,) * count for r in table.cells]
        self._ops = torch.tensor(each) if count else None
        self._op_gate = torch.tensor([r.op_gate for r in table.cells])
        exists = [[t is not None for t in r.transforms] for r in rows]
        ones = torch.tensor(exists, dtype=torch.float32)[None]  # (1, 1 + cells, T)
        self.full_cost = float(self.expected(ones[:, 1:], ones[:, 0]))
        self.full_real_cost = self.stem + self.full_cost + float(self._gate.sum())
        # Summed on the host, and only then brought there: training sees ever new input sizes.
        for name in ("_cell", "_gate", "_transform", "_ops", "_op_gate"):
            values = getattr(self, name)
            setattr(self, name, None if values is None else to_device(values, device))

    @_in_full_precision
    def expected(
        self, activations: Tensor, initial: Tensor, op_weights: Tensor | None = None
    ) -> Tensor:
        """Σ cell MACs × max gate + Σ transform MACs × gate, differentiable in the gates.

        Args:
            activations: (N, cells, T) gates.
            initial: (N, T) gates of the initial cell.
            op_weights: (N, cells, O), above 0 where an operation runs, which then counts; None: all
                count.

        Returns:
            (N,) multiply-adds.
        """
        gates = _join(initial, activations)  # (N, 1 + cells, T)
        transforms = (gates * self._transform).sum(dim=(1, 2))
        if op_weights is None:
            return gates.amax(dim=2) @ self._cell + transforms
        return (gates.amax(dim=2) * self._chosen_cells(op_weights)).sum(dim=1) + transforms

    def _chosen_cells(self, op_weights: Tensor) -> Tensor:
        """(N, 1 + cells) multiply-adds of each cell's operations that run, and of their gate."""
        assert self._ops is not None
        chosen = ((op_weights.detach() > 0) * self._ops).sum(dim=2) + self._op_gate  # (N, cells)
        return torch.cat([self._cell[:1].expand(len(chosen), 1), chosen], dim=1)

    @_in_full_precision
    def real(
        self,
        activations: Tensor,
        initial: Tensor,
        reached: Tensor,
        op_weights: Tensor | None = None,
    ) -> Tensor:
        """Stem, gates of reached cells, open cells and open transforms: what runs.

        Args:
            activations: (N, cells, T) gates, 0 where a cell is not reached.
            initial: (N, T) gates of the initial cell, which every image reaches.
            reached: (N, cells) bool.
            op_weights: as of :meth:`expected`.

        Returns:
            (N,) multiply-adds, without a graph.
        """
        gates = _join(initial.detach(), activations.detach())  # (N, 1 + cells, T)
        everyone = torch.ones_like(reached[:, :1])
        visited = torch.cat([everyone, reached], dim=1)  # (N, 1 + cells)
        closed = is_closed(gates.sum(dim=2))  # (N, 1 + cells)
        running = visited & ~closed
        opened = visited[..., None] & is_open(gates, closed[..., None])  # (N, 1 + cells, T)
        if op_weights is None:
            cells = running.to(self._cell.dtype) @ self._cell
        else:
            cells = (running * self._chosen_cells(op_weights)).sum(dim=1)
        return (
            self.stem
            + visited.to(self._gate.dtype) @ self._gate
            + cells
            + (opened * self._transform).sum(dim=(1, 2))
        )

    @_in_full_precision
    def openness(
        self, logits: Tensor, reached: Tensor, temperature: float, *, closing: bool = False
    ) -> Tensor:
        """What stands for the real cost where a gradient is needed, which real cost has none of.

        An open transform counts as σ(logit / temperature), its cell as the largest of them. Cells
        that an image does not reach, and the initial cell, count nothing.

        Args:
            logits: (N, cells, T) gates before their non-linearity, with a graph.
            reached: (N, cells) bool.
            temperature: in logits; smaller looks at gates nearer to their threshold alone.
            closing: gates that are closed already, by 2 temperatures or more, have no gradient:
                pushed on, they would never open again.

        Returns:
            (N,) multiply-adds, differentiable.
        """
        scaled = logits.float() / temperature  # (N, cells, T)
        if closing:
            scaled = scaled.clamp_min(-_CLOSED_ENOUGH)
        opened = torch.sigmoid(scaled) * reached[..., None]
        # A transform that does not exist has logit 0, which σ would call half open.
        opened = torch.where(self._transform[1:] > 0, opened, 0.0)
        return opened.amax(dim=2) @ self._cell[1:] + (opened * self._transform[1:]).sum(dim=(1, 2))

    @_in_full_precision
    def published(self, activations: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """(expected, real) multiply-adds (N,) as the published code counts them.

        Both leave out the operations of the initial cell and the last layer's ReLU; real charges
        the gate of every cell, reached or not, but not the initial one's.
        """
        gates = _join(initial, activations)  # (N, 1 + cells, T)
        cell, gate, transform = self._cell.clone(), self._gate.clone(), self._transform.clone()
        cell[0] = gate[0] = 0.0
        transform[-self._last :] = 0.0
        expected = gates.amax(dim=2) @ cell + (gates * transform).sum(dim=(1, 2))
        closed = is_closed(gates.sum(dim=2))
        opened = is_open(gates, closed[..., None])
        real = self.stem + gate.sum() + (~closed).to(cell.dtype) @ cell
        return expected, real + (opened * transform).sum(dim=(1, 2))


def _join(initial: Tensor, activations: Tensor) -> Tensor:
    """(N, T) and (N, cells, T) → (N, 1 + cells, T) in float32."""
    return torch.cat([initial[:, None].float(), activations.float()], dim=1)


def cost_table(
    network: DynamicRoutingNetwork,
    height: int,
    width: int,
    *,
    affine_norm: bool = True,
    published_stem: bool = False,
) -> CostTable:
    """Count a network's parts for one image of ``height`` × ``width`` pixels.

    Args:
        network: the supernet.
        height: rows of the input.
        width: columns of the input.
        affine_norm: count normalisation's scale and shift.
        published_stem: count the stem at exactly half the size, as the published code does,
            though its unpadded convolution returns one row and column less.
    """
    sizes = network.space.map_sizes(height, width)

    def cell_cost(cell: Cell) -> CellCost:
        shape = (cell.channels, *sizes[cell.node.scale])
        return _cell_cost(cell, shape, affine_norm)

    return CostTable(
        size=(height, width),
        stem=_stem_cost(network.stem, height, width, affine_norm, published_stem),
        initial=cell_cost(network.initial),
        cells=tuple(cell_cost(cell) for cell in network.cells()),
        last_layer=network.space.out_scales,
        early=_early_cost(network.early, height, width, affine_norm),
    )


def _cell_cost(cell: Cell, shape: MapShape, affine_norm: bool) -> CellCost:
    each = tuple(count_macs(op, shape, affine_norm=affine_norm)[0] for op in cell.ops.values())
    operations = sum(each, 0.0)  # a bare cell has none
    op_gate = 0.0
    if cell.op_gate is not None:
        # The mean of the map, and a product with (C, O).
        op_gate = float(shape[0] * shape[1] * shape[2] + shape[0] * len(each))
    relu = float(shape[0] * shape[1] * shape[2])
    transforms: list[float | None] = []
    for transform, name in enumerate(TRANSFORMS):
        if transform not in cell.node.gated:
            transforms.append(None)
        elif transform == KEEP:
            transforms.append(relu)
        elif name not in cell.changes:  # what a static sub-network leaves out
            transforms.append(None)
        else:
            change = count_macs(cell.changes[name], shape, affine_norm=affine_norm)[0]
            transforms.append(relu + change)
    gate = 0.0
    if cell.gate is not None and not isinstance(cell.gate, StaticGate):
        seen = (shape[0], *cell.gate.map_size(*shape[1:]))
        layers = (cell.gate.reduce, cell.gate.pool, cell.gate.predict)
        gate = _sequence_macs(layers, seen, affine_norm)
    up, keep, down = transforms
    if cell.op_gate is None:
        return CellCost(operations, (up, keep, down), gate)
    return CellCost(operations + op_gate, (up, keep, down), gate, each, op_gate)


def _stem_cost(
    stem: nn.Module, height: int, width: int, affine_norm: bool, published: bool
) -> float:
    channels = 3
    for layer in stem.modules():
        if isinstance(layer, nn.Conv2d):
            channels = layer.in_channels
            break
    # An unpadded 3×3 convolution of stride 2 on one row and column more returns exactly half.
    extra = 1 if published else 0
    shape = (channels, height + extra, width + extra)
    return _sequence_macs(list(stem.children()), shape, affine_norm)


def _early_cost(early: EarlyLook | None, height: int, width: int, affine_norm: bool) -> float:
    if early is None:
        return 0.0
    shape = (early.in_channels, *early.map_size(height, width))
    return _sequence_macs([early.look, early.pool, early.predict], shape, affine_norm)


def _sequence_macs(modules: Sequence[nn.Module], shape: MapShape, affine_norm: bool) -> float:
    return count_macs(nn.Sequential(*modules), shape, affine_norm=affine_norm)[0]
