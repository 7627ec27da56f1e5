"""The supernet: a stem, an initial cell, and layers of cells that images pass by their own routes.

Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020). Results for an image
do not depend on the other images of its batch (batch statistics of training apart).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import RoutingSettings
from .batch_norm import BatchNorm, is_synchronised, several_processes
from .cell import Cell, CellResult
from .chosen_ops import OpChoice, OpGateBuilder
from .cost import SIZES_KEPT, CostTensors, cost_table
from .gate import GATE_KINDS, Gate
from .layer_inputs import InputSum, LayerInputs, to_batch_rows
from .ops import DropPathSchedule, NormFactory, Stem, initialise_fan_in
from .record import Routing
from .space import TRANSFORMS, RoutingSpace
from .transfer import to_device

REACH_KINDS = RoutingSettings.choices("reach")
DEFAULT_OPS = RoutingSettings.ops


class DynamicRoutingNetwork(nn.Module):
    """Dynamic Routing network over a routing space.

    Args:
        space: which cells exist.
        channels: C at stride 4; the map of stride 4·2^s has C·2^s channels.
        ops: names of the operations that every cell sums.
        gate: "small" (gates look at maps shrunk ×1/4), "full", or "none" (the paper's "Fix"
            network: every path open at weight 1).
        gate_bias: start value of the gates' last bias, in logits.
        norm: makes a normalisation layer for a number of channels.
        drop_path: largest drop path probability (last layer, end of training).
        in_channels: channels of the image.
        reach: what makes an image reach a cell. "open": an open path leads into it. "published":
            any transform of an open cell does, so that cells behind closed transforms alone run
            on zeros, and their gates may open paths of their own. The published code works so
            (for one image at a time); weights trained by it want the same.
        conditional_training: leave out of training what no image of a batch opens, see ``Cell``.
        op_gate: makes gates that choose each cell's operations by image (``divdr.moe.OpGates``);
            None sums all of them.

    Raises:
        ConfigError: an unknown gate, operation or reach.
    """

    def __init__(
        self,
        space: RoutingSpace,
        *,
        channels: int = RoutingSettings.channels,
        ops: Sequence[str] = DEFAULT_OPS,
        gate: str = RoutingSettings.gate,
        gate_bias: float = RoutingSettings.gate_bias,
        norm: NormFactory = BatchNorm,
        drop_path: float = RoutingSettings.drop_path,
        in_channels: int = 3,
        reach: str = RoutingSettings.reach,
        conditional_training: bool = RoutingSettings.conditional_training,
        op_gate: OpGateBuilder | None = None,
    ) -> None:
        super().__init__()
        if gate not in GATE_KINDS:
            raise ConfigError(f"unknown gate {gate!r}; known are {', '.join(GATE_KINDS)}")
        if reach not in REACH_KINDS:
            raise ConfigError(f"unknown reach {reach!r}; known are {', '.join(REACH_KINDS)}")
        if channels < 2 or channels % 2:
            raise ConfigError(f"channels must be even and at least 2, not {channels}")
        self.space = space
        self.channels = channels
        self.drop_path = DropPathSchedule(drop_path)
        build = partial(
            Cell,
            channels=channels,
            ops=ops,
            gate=gate,
            norm=norm,
            gate_bias=gate_bias,
            drop_path=self.drop_path,
            num_layers=space.num_layers,
            reach=reach,
            conditional=conditional_training,
            op_gate=op_gate,
        )
        self.stem = Stem(in_channels, channels, norm)
        self.initial = build(space.initial)
        self.layers = nn.ModuleList(
            nn.ModuleList(build(node) for node in layer) for layer in space.layers
        )
        self.reset_parameters()
        self._costs: dict[tuple[int, int, str], CostTensors] = {}

    def reset_parameters(self) -> None:
        """Kaiming initialisation (fan in) and the gates' start bias."""
        initialise_fan_in(self)
        for module in self.modules():
            if isinstance(module, Gate):
                module.reset_bias()

    def cells(self) -> Iterator[Cell]:
        """The reported cells in the order of A(x)."""
        for layer in self._layers():
            yield from layer

    def _layers(self) -> list[list[Cell]]:
        return [[cast(Cell, cell) for cell in cast(nn.ModuleList, row)] for row in self.layers]

    def out_channels(self) -> list[int]:
        """Channels of the output maps, stride 4 first."""
        return [self.channels * 2**scale for scale in range(self.space.out_scales)]

    def cost(self, routing: Routing, height: int, width: int) -> tuple[Tensor, Tensor]:
        """(expected, real) multiply-adds (N,) that the same routes have at another input size."""
        tensors = self._cost_tensors(height, width, routing.activations.device)
        gates = routing.activations.unflatten(1, (-1, len(TRANSFORMS)))
        initial, ops = routing.initial, routing.op_weights
        real = tensors.real(gates, initial, routing.reached, ops)
        return tensors.expected(gates, initial, ops), real

    def steerable_cost(
        self, routing: Routing, temperature: float, *, closing: bool = False
    ) -> Tensor:
        """Real cost (N,) of a forward, with the gradient of ``CostTensors.openness``.

        A straight-through estimate (Bengio et al., 2013): the value is what runs, the gradient is
        that of a smooth stand-in, which moves gates on both sides of their threshold.
        """
        tensors = self._cost_tensors(*routing.size, routing.logits.device)
        logits = routing.logits.unflatten(1, (-1, len(TRANSFORMS)))
        smooth = tensors.openness(logits, routing.reached, temperature, closing=closing)
        return routing.real_cost + smooth - smooth.detach()

    def forward(self, x: Tensor, route: Tensor | None = None) -> tuple[list[Tensor], Routing]:
        """Run every image along its route.

        Args:
            x: (N, in_channels, H, W), normalised.
            route: (N, D) gate values to follow in place of the gates' own, which then show in
                the record's ``logits`` alone. The initial cell always decides for itself.

        Returns:
            The maps of the last layer, stride 4 first, each (N, C·2^s, H_s, W_s); a map that no
            path of an image leads to is zero for that image. And the routing record.
        """
        height, width = x.shape[-2:]
        sizes = self.space.map_sizes(height, width)
        count = x.shape[0]
        maps = self.stem(x)
        imposed = None if route is None else route.unflatten(1, (-1, len(TRANSFORMS)))
        layer_inputs = LayerInputs(count, maps)
        input_sums = layer_inputs.input_sums(self.space.scales_per_layer[0])
        first = self.initial(maps, None)
        layer_inputs.send(first, self.initial.node, None, input_sums)
        layer_inputs.leave_out(first.skipped)
        # Processes that wait for each other in a cell have to agree whether it runs.
        together = self.training and several_processes() and is_synchronised(self)

        logits: list[Tensor] = []  # of each cell, (N, T)
        gates: list[Tensor] = []  # likewise
        reached: list[Tensor] = []  # of each cell, (N,)
        # Of each cell (N, O) weights and loads, where operations are chosen.
        choices: list[OpChoice] = []
        unchosen = self._unchosen(maps)
        for number, layer in enumerate(self._layers()):
            last = number + 1 == self.space.num_layers
            following = layer_inputs.input_sums(
                len(layer) if last else self.space.scales_per_layer[number + 1]
            )
            masks = torch.stack([each.reached for each in input_sums])  # (cells of the layer, N)
            running = masks.any(dim=1, keepdim=True)
            if together:
                running = _anywhere(running)
            # One wait for the device a layer.
            host = torch.cat([running, masks], dim=1).cpu()
            for cell, input_sum, row in zip(layer, input_sums, host, strict=True):
                values = None if imposed is None else imposed[:, cell.node.index]
                result, images = None, None
                if row[0]:
                    result, images = self._run_cell(cell, input_sum, row[1:], sizes, values)
                if result is None:
                    if self.training:
                        layer_inputs.leave_out([cell], input_sum)
                    blank = layer_inputs.blank_gates
                    logits.append(blank)
                    gates.append(blank)
                    if unchosen is not None:
                        choices.append(unchosen)
                    continue
                layer_inputs.send(result, cell.node, images, following)
                layer_inputs.leave_out(result.skipped)
                logits.append(to_batch_rows(result.logits, images, count))
                gates.append(to_batch_rows(result.gates, images, count))
                if result.choice is not None:
                    parts = (to_batch_rows(part, images, count) for part in result.choice)
                    choices.append(OpChoice(*parts))
            reached.extend(masks)
            input_sums = following
        outputs = layer_inputs.tie(
            [
                input_sum.map(channels, size)
                for input_sum, channels, size in zip(
                    input_sums, self.out_channels(), sizes, strict=False
                )
            ]
        )

        routing = self._record(
            torch.stack(logits, dim=1),
            torch.stack(gates, dim=1),
            torch.stack(reached, dim=1),
            first.gates,
            (height, width),
            choices,
        )
        return outputs, routing

    def _unchosen(self, like: Tensor) -> OpChoice | None:
        """Of a cell that does not run: (N, O) zeros; None where all operations are summed."""
        cell = next(self.cells())
        if cell.op_gate is None:
            return None
        zeros = like.new_zeros((len(like), len(cell.ops)), dtype=torch.float32)
        return OpChoice(zeros, zeros)

    def _record(
        self,
        logits: Tensor,
        gates: Tensor,
        reached: Tensor,
        initial: Tensor,
        size: tuple[int, int],
        choices: Sequence[OpChoice],
    ) -> Routing:
        """From logits and gates (N, cells, T), reached (N, cells) and initial gates (N, T)."""
        op_weights = op_loads = None
        if choices:
            op_weights, op_loads = (torch.stack(p, dim=1) for p in zip(*choices, strict=True))
        costs = self._cost_tensors(*size, gates.device)
        return Routing(
            activations=gates.flatten(1),
            logits=logits.flatten(1),
            initial=initial,
            reached=reached,
            expected_cost=costs.expected(gates, initial, op_weights),
            real_cost=costs.real(gates, initial, reached, op_weights),
            full_cost=costs.full_cost,
            fixed_cost=costs.stem,
            full_real_cost=costs.full_real_cost,
            size=size,
            op_weights=op_weights,
            op_loads=op_loads,
        )

    def _run_cell(
        self,
        cell: Cell,
        input_sum: InputSum,
        mask: Tensor,
        sizes: Sequence[tuple[int, int]],
        imposed: Tensor | None,
    ) -> tuple[CellResult, Tensor | None]:
        """Run a cell for the images of a mask (N,) on the host, perhaps none of this process."""
        scale = cell.node.scale
        up_size = sizes[scale - 1] if scale else None
        maps = input_sum.map(cell.channels, sizes[scale])
        if mask.all():
            return cell(maps, up_size, imposed), None
        images = to_device(mask.nonzero().flatten(), maps.device)
        maps = maps.index_select(0, images)
        if imposed is not None:
            imposed = imposed.index_select(0, images)
        if len(images):
            return cell(maps, up_size, imposed), images
        # Normalisation sends statistics of half precision maps in float32, of which an empty map
        # must not send a half.
        with torch.autocast(maps.device.type, enabled=False):
            wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
            return cell(wide, up_size, imposed), images

    def _cost_tensors(self, height: int, width: int, device: torch.device) -> CostTensors:
        key = (height, width, str(device))
        if key not in self._costs:
            if len(self._costs) >= SIZES_KEPT:
                self._costs.clear()
            self._costs[key] = cost_table(self, height, width).tensors(device)
        return self._costs[key]


def _anywhere(running: Tensor) -> Tensor:
    """Whether a mask holds on any process; a collective call of a few bytes."""
    counts = running.int()
    dist.all_reduce(counts)
    return counts > 0
