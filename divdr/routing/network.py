"""The supernet: a stem, an initial cell, and layers of cells that images pass by their own routes.

Li et al., "Learning Dynamic Routing for Semantic Segmentation" (CVPR 2020). Results for an image
do not depend on the other images of its batch (batch statistics of training apart).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError
from ..settings import RoutingSettings
from .batch_norm import BatchNorm, is_synchronised, several_processes
from .cell import Cell
from .chosen_ops import OpChoice, OpGateBuilder
from .cost import SIZES_KEPT, CostTensors, cost_table
from .gate import EarlyLook, Gate, GateBase, GateOptions, open_gates
from .layer_inputs import LayerInputs, Visit, to_batch_rows
from .ops import DropPathSchedule, NormFactory, Stem, initialise_fan_in
from .record import Routing
from .space import TRANSFORMS, RoutingSpace
from .transfer import to_host

REACH_KINDS = RoutingSettings.choices("reach")
DEFAULT_OPS = RoutingSettings.ops


class DynamicRoutingNetwork(nn.Module):
    """Dynamic Routing network over a routing space.

    Args:
        space: which cells exist; also that of a route (``Route.restricted``).
        channels: C at stride 4; the map of stride 4·2^s has C·2^s channels.
        stem_channels: those inside the stem.
        ops: names of the operations that every cell sums.
        gate: "small" (gates look at maps shrunk ×1/4), "full", "static" (gates learn one number a
            transform and look at nothing), "early" (one look at the image decides all, see
            ``EarlyLook``), or "none" (the paper's "Fix" network: every path open at weight 1).
        gate_bias: start value of the gates' last bias, in logits.
        gate_bias_cost: by how much it is lower for a transform that costs as much as its cell.
        gate_floor: least value of a gate that is open, see ``GateOptions``.
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
        route_gates: what gates say in the space of a route: "open", how far transforms are open,
            never whether; "decide", both, as in a whole space.

    Raises:
        ConfigError: an unknown gate, operation or reach, or a route's space with what needs all
            cells.
    """

    def __init__(
        self,
        space: RoutingSpace,
        *,
        channels: int = RoutingSettings.channels,
        stem_channels: int = RoutingSettings.stem_channels,
        ops: Sequence[str] = DEFAULT_OPS,
        gate: str = RoutingSettings.gate,
        gate_bias: float = RoutingSettings.gate_bias,
        gate_bias_cost: float = RoutingSettings.gate_bias_cost,
        gate_floor: float = RoutingSettings.gate_floor,
        norm: NormFactory = BatchNorm,
        drop_path: float = RoutingSettings.drop_path,
        in_channels: int = 3,
        reach: str = RoutingSettings.reach,
        conditional_training: bool = RoutingSettings.conditional_training,
        op_gate: OpGateBuilder | None = None,
        route_gates: str = RoutingSettings.route_gates,
    ) -> None:
        super().__init__()
        if route_gates not in RoutingSettings.choices("route_gates"):
            raise ConfigError(f'route_gates is "open" or "decide", not {route_gates!r}')
        if reach not in REACH_KINDS:
            raise ConfigError(f"unknown reach {reach!r}; known are {', '.join(REACH_KINDS)}")
        if channels < 2 or channels % 2:
            raise ConfigError(f"channels must be even and at least 2, not {channels}")
        if space.opened is not None and (reach != "open" or op_gate is not None):
            raise ConfigError(
                'a network of one route (MODEL.ROUTING.ROUTE) has MODEL.ROUTING.REACH "open", and '
                'its cells sum all operations (OP_GATE.NAME "sum")'
            )
        self.space = space
        self.channels = channels
        self._built_open = space.opened is not None and route_gates == "open"
        gates = GateOptions(gate, gate_bias, self._built_open, gate_floor)
        self.drop_path = DropPathSchedule(drop_path)
        build = partial(
            Cell,
            channels=channels,
            ops=ops,
            gate=gates,
            norm=norm,
            drop_path=self.drop_path,
            num_layers=space.num_layers,
            reach=reach,
            conditional=conditional_training,
            op_gate=op_gate,
        )
        self.stem = Stem(in_channels, channels, norm, stem_channels)
        self.initial = build(space.initial)
        self.layers = nn.ModuleList(
            nn.ModuleList(build(node) for node in layer) for layer in space.layers
        )
        self.early: EarlyLook | None = None
        if gate == "early":
            exists = torch.zeros(space.num_cells, len(TRANSFORMS), dtype=torch.bool)
            for node in space.cells:
                exists[node.index, list(node.gated)] = True
            self.early = EarlyLook(in_channels, channels, exists, norm, gates)
        self._gate_bias_cost = gate_bias_cost
        self.reset_parameters()
        self._costs: dict[tuple[int, int, str], CostTensors] = {}

    def reset_parameters(self) -> None:
        """Kaiming initialisation (fan in) and the gates' start bias."""
        initialise_fan_in(self)
        for module in self.modules():
            if isinstance(module, GateBase):
                module.reset_bias()
        if self._gate_bias_cost:
            self._lower_dear_gates()

    @torch.no_grad()
    def _lower_dear_gates(self) -> None:
        size = 8 * self.space.max_stride  # shares hardly depend on it
        table = cost_table(self, size, size)
        cells = (self.initial, *self.cells())
        for cell, cost in zip(cells, (table.initial, *table.cells), strict=True):
            if cell.gate is None:
                continue
            each = [cost.transforms[t] or 0.0 for t in cell.node.gated]
            shares = torch.tensor(each) / (cost.cell + sum(each))
            cell.gate.last_bias.sub_(self._gate_bias_cost * shares)

    def cells(self) -> Iterator[Cell]:
        """The reported cells in the order of A(x)."""
        for layer in self._layers():
            yield from layer

    @property
    def has_gates(self) -> bool:
        """Whether anything says how far transforms are open."""
        return self.early is not None or self.initial.gate is not None

    @property
    def looks(self) -> bool:
        """Whether any gate looks at the image."""
        return self.early is not None or any(isinstance(c.gate, Gate) for c in self.cells())

    @property
    def stays_open(self) -> bool:
        """Whether no gate decides what runs, for a route that the network is or was fixed to."""
        gate = self.early or self.initial.gate
        return self._built_open or (gate is not None and gate.route is not None)

    @property
    def fixed_route(self) -> tuple[Tensor, Tensor] | None:
        """What :meth:`fix_route` set: (cells, T) and (T,) of the initial cell, bool."""
        if self.early is not None:
            route = self.early.route
            initial = torch.tensor([t in self.space.initial.gated for t in range(len(TRANSFORMS))])
            return None if route is None else (route.cpu().view(-1, len(TRANSFORMS)), initial)
        gates = [self.initial.gate, *(cell.gate for cell in self.cells())]
        if gates[0] is None or gates[0].route is None:
            return None
        rows = torch.zeros(len(gates), len(TRANSFORMS), dtype=torch.bool)
        nodes = (self.space.initial, *self.space.cells)
        for row, node, gate in zip(rows, nodes, gates, strict=True):
            if gate is not None and gate.route is not None:
                row[list(node.gated)] = gate.route.cpu()
        return rows[1:], rows[0]

    def fix_route(self, opened: Tensor | None, initial: Tensor | None = None) -> None:
        """Open for every image what a route opens, and nothing else.

        Gates go on saying how far transforms of the route are open; see ``kept_open``.

        Args:
            opened: (cells, T) bool; None lets the gates decide again.
            initial: (T,) bool, of the initial cell.

        Raises:
            ConfigError: the network has no gates.
        """
        if opened is not None and not self.has_gates:
            raise ConfigError('a route is fixed by gates, and MODEL.ROUTING.GATE is "none"')
        if self.early is not None:
            chosen = None if opened is None else opened.flatten().bool()
            self.early.route = None if chosen is None else chosen.to(self.early.last_bias.device)
            return
        cells = [self.initial, *self.cells()]
        rows = None if opened is None or initial is None else torch.cat([initial[None], opened])
        for number, cell in enumerate(cells):
            if cell.gate is not None:
                row = None if rows is None else rows[number, list(cell.node.gated)]
                device = cell.gate.last_bias.device
                cell.gate.route = None if row is None else row.bool().to(device)

    @property
    def frozen(self) -> bool:
        """Whether gates are trained no longer, see :meth:`gates_to_freeze`."""
        return self.early is not None and self.early.frozen

    def gates_to_freeze(self) -> EarlyLook:
        """What decides, if each image can keep its route while all else is trained on.

        Raises:
            ConfigError: gates look at maps that go on changing (they are not of an early look).
        """
        if self.early is None:
            raise ConfigError(
                'MODEL.ROUTING.BUDGET.FREEZE_GATES is for MODEL.ROUTING.GATE "early" alone'
            )
        return self.early

    @property
    def gate_threshold(self) -> float:
        """What :meth:`set_gate_threshold` set last; 0 as trained."""
        return next((gate.threshold for gate in self._deciding()), 0.0)

    def _deciding(self) -> list[GateBase]:
        """What decides in all cells but the initial one."""
        if self.early is not None:
            return [self.early]
        return [cell.gate for cell in self.cells() if cell.gate is not None]

    def set_gate_threshold(self, threshold: float) -> None:
        """Close, in all cells but the initial one, what is not further open; see ``GateBase``.

        Args:
            threshold: in logits; 0 is what was trained.

        Raises:
            ConfigError: it is below 0, or there are no gates that decide.
        """
        if not 0.0 <= threshold < math.inf:
            raise ConfigError(f"a threshold of gates is at least 0, not {threshold}")
        gates = self._deciding()
        if threshold and (not gates or self.stays_open):
            raise ConfigError("this network has one cost: no gate of it decides what runs")
        for gate in gates:
            gate.threshold = float(threshold)

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
        # One layout from here on: operations that meet two are several times slower.
        maps = self.stem(x.contiguous(memory_format=torch.channels_last))
        looked = None if self.early is None else self.early(x)  # (N, D) logits
        if route is None and looked is not None:
            route = open_gates(looked)
        imposed = None if route is None else route.unflatten(1, (-1, len(TRANSFORMS)))
        layer_inputs = LayerInputs(maps)
        # Processes that wait for each other in a cell have to agree whether it runs.
        together = self.training and several_processes() and is_synchronised(self)

        first = Visit(self.initial, maps, None)
        visits: list[Visit | None] = [first]
        rows = _DecisionRows(maps)
        reached: list[Tensor] = []  # of each cell, (N,)
        for layer, scales in zip([*self._layers(), None], self._scales(), strict=True):
            input_sums, masks = layer_inputs.reach(visits, scales)  # masks (cells of the layer, N)
            flags = []
            if layer is not None:
                runs = masks.any(dim=1)
                flags = [_anywhere(runs) if together else runs, masks]
            # Training asks nothing of the last layer where an answer is a wait.
            silent = layer is None and self.training and maps.device.type != "cpu"
            known, answers = _ask(flags, [_questions(visit, silent) for visit in visits])
            for visit, own in zip(visits, answers, strict=True):
                if visit is not None:
                    layer_inputs.send(visit, visit.run(own), input_sums)
            if layer is None:
                break
            host_runs, host_masks = known
            reached.extend(masks)
            visits = []
            for cell, input_sum, needed, images in zip(
                layer, input_sums, host_runs.tolist(), _images(masks, host_masks), strict=True
            ):
                if not needed:
                    if self.training:
                        layer_inputs.leave_out([cell], input_sum)
                    visits.append(None)
                    rows.add(cell, None)
                    continue
                arrived = input_sum.map(cell.channels, sizes[cell.node.scale])
                values = None if imposed is None else imposed[:, cell.node.index]
                visit = Visit(cell, arrived, images, values)
                visits.append(visit)
                rows.add(cell, visit)

        outputs = layer_inputs.tie(
            [
                input_sum.map(channels, size)
                for input_sum, channels, size in zip(
                    input_sums, self.out_channels(), sizes, strict=False
                )
            ]
        )
        routing = self._record(
            rows, torch.stack(reached, dim=1), first.decision.gates, (height, width)
        )
        return outputs, routing if looked is None else routing.with_logits(looked)

    def _scales(self) -> list[int]:
        """Cells of each layer, and maps that leave the last."""
        return [*self.space.scales_per_layer, self.space.out_scales]

    def _record(
        self, rows: _DecisionRows, reached: Tensor, initial: Tensor, size: tuple[int, int]
    ) -> Routing:
        """From the decisions of all cells, reached (N, cells) and initial gates (N, T)."""
        gates = torch.stack(rows.gates, dim=1)  # (N, cells, T)
        op_weights = op_loads = None
        if rows.choices:
            op_weights, op_loads = (torch.stack(p, dim=1) for p in zip(*rows.choices, strict=True))
        costs = self._cost_tensors(*size, gates.device)
        return Routing(
            activations=gates.flatten(1),
            logits=torch.stack(rows.logits, dim=1).flatten(1),
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

    def _cost_tensors(self, height: int, width: int, device: torch.device) -> CostTensors:
        key = (height, width, str(device))
        if key not in self._costs:
            if len(self._costs) >= SIZES_KEPT:
                self._costs.clear()
            self._costs[key] = cost_table(self, height, width).tensors(device)
        return self._costs[key]


class _DecisionRows:
    """What was decided at each cell, by rows of the batch.

    Args:
        like: (N, …), of the batch and on its device.

    Attributes:
        logits: of each cell, (N, T).
        gates: likewise.
        choices: of each cell, (N, O) weights and loads; none where all operations are summed.
    """

    def __init__(self, like: Tensor) -> None:
        self.logits: list[Tensor] = []
        self.gates: list[Tensor] = []
        self.choices: list[OpChoice] = []
        self._like = like
        self._blank = self._zeros(len(TRANSFORMS))

    def _zeros(self, columns: int) -> Tensor:
        return self._like.new_zeros((len(self._like), columns), dtype=torch.float32)

    def add(self, cell: Cell, visit: Visit | None) -> None:
        """The next cell; None, and zeros, if it ran for no image."""
        if visit is None:
            self.logits.append(self._blank)
            self.gates.append(self._blank)
            if cell.op_gate is not None:
                zeros = self._zeros(len(cell.ops))
                self.choices.append(OpChoice(zeros, zeros))
            return
        decision = visit.decision
        self.logits.append(self._rows(decision.logits, visit))
        self.gates.append(self._rows(decision.gates, visit))
        if decision.choice is not None:
            ran = decision.choice.of_rows(~decision.closed)
            self.choices.append(OpChoice(*(self._rows(part, visit) for part in ran)))

    def _rows(self, part: Tensor, visit: Visit) -> Tensor:
        return to_batch_rows(part, visit.images, len(self._like))


def _questions(visit: Visit | None, silent: bool) -> list[Tensor]:
    # Operations that are chosen cannot run without asking.
    if visit is None or (silent and visit.decision.choice is None):
        return []
    return visit.questions()


def _ask(
    flags: list[Tensor], questions: list[list[Tensor]]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Flags, and the answers to each cell's questions, on the host: one wait for the device."""
    answers = iter(to_host([*flags, *itertools.chain(*questions)]))
    return [next(answers) for _ in flags], [[next(answers) for _ in own] for own in questions]


def _images(masks: Tensor, host_masks: Tensor) -> list[Tensor | None]:
    """Positions (n,) of the images that reach each cell; None where all do.

    Args:
        masks: (cells, N) on the device.
        host_masks: the same on the host, so that the positions need no way from one to the other.
    """
    if bool(host_masks.all()):
        return [None] * len(masks)
    order = (~masks).byte().argsort(dim=1, stable=True)  # (cells, N), those that reach it first
    counts = host_masks.sum(dim=1).tolist()
    return [
        None if count == masks.shape[1] else order[row, :count] for row, count in enumerate(counts)
    ]


def _anywhere(running: Tensor) -> Tensor:
    """Whether a mask holds on any process; a collective call of a few bytes."""
    counts = running.int()
    dist.all_reduce(counts)
    return counts > 0
