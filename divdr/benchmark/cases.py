"""Random networks with a set share of closed gates: what a benchmark runs."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..inference.plan import InferencePlan
from ..routing.cell import Cell
from ..routing.gate import Gate, StaticGate
from ..routing.network import DynamicRoutingNetwork
from ..routing.open_paths import is_closed, is_open
from ..routing.record import Routing
from ..routing.space import RoutingSpace
from ..settings import RoutingSettings

_OPEN_LOGIT = RoutingSettings.gate_bias


@dataclass(frozen=True)
class Case:
    """A random network and a batch of noise for it.

    Attributes:
        batch: N, images.
        size: (height, width) in pixels.
        closed: share of the gates of reached cells that are closed, in [0, 1).
        layers: layers of the routing space.
        scales: its scales.
        channels: channels at stride 4.
        stem_channels: those inside the stem.
        gate: "small", "full", "static", "early" or "none"; without gates of cells nothing closes.
        reach: of the network. With "published" every execution mode runs the same cells; with
            "open" all but the published one save the cells behind closed transforms as well.
        seed: for weights, images and gates.
    """

    batch: int
    size: tuple[int, int]
    closed: float
    layers: int = RoutingSettings.layers
    scales: int = RoutingSettings.scales
    channels: int = RoutingSettings.channels
    stem_channels: int = RoutingSettings.stem_channels
    gate: str = RoutingSettings.gate
    reach: str = "published"
    seed: int = 0

    def empty(self, **options: Any) -> DynamicRoutingNetwork:
        """The network with weights of its own; options as of ``DynamicRoutingNetwork``."""
        return DynamicRoutingNetwork(
            RoutingSpace.build(self.layers, self.scales),
            channels=self.channels,
            stem_channels=self.stem_channels,
            gate=self.gate,
            reach=self.reach,
            **options,
        )

    def build(self, device: torch.device | str) -> tuple[DynamicRoutingNetwork, Tensor]:
        """The network, in evaluation, and images (N, 3, H, W), both on ``device``."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(self.seed)
            network = self.empty()
            x = _noise(self.batch, *self.size).to(device)
            network = network.eval().to(device)
            close_gates(network, self.closed, x, seed=self.seed)
        return network, x


def _noise(count: int, height: int, width: int) -> Tensor:
    """Noise of different brightness and grain, so that gates tell the images apart."""
    grain, level = torch.rand(count, 1, 1, 1) + 0.5, torch.randn(count, 3, 1, 1)
    return torch.randn(count, 3, height, width) * grain + level


@torch.no_grad()
def close_gates(network: DynamicRoutingNetwork, share: float, x: Tensor, *, seed: int = 0) -> None:
    """Set the gates' last layers so that ``share`` of the gates of reached cells are closed.

    For one image every gate is closed with that probability. For several, every gate is closed for
    that share of the images that reach its cell, so that each takes its own route: layer by layer,
    as what comes to a cell depends on the gates before it.

    Args:
        network: in evaluation; the initial cell stays as it is.
        share: in [0, 1).
        x: (N, in_channels, H, W), the images it holds for.
        seed: for what is left to chance.
    """
    chance = random.Random(seed)
    gates = {cell: cell.gate for cell in network.cells() if isinstance(cell.gate, Gate)}
    for cell in network.cells():
        if isinstance(cell.gate, StaticGate):  # closed for all images or for none
            signs = [-1.0 if chance.random() < share else 1.0 for _ in cell.gate.bias]
            cell.gate.bias.copy_(_OPEN_LOGIT * torch.tensor(signs))
    for gate in gates.values():
        weight = torch.randn(gate.predict.weight.shape) if len(x) > 1 else torch.zeros(1)
        gate.predict.weight.copy_(weight.expand_as(gate.predict.weight))
        if len(x) == 1:
            closed = [chance.random() < share for _ in gate.last_bias]
            gate.last_bias.copy_(_OPEN_LOGIT * (1.0 - 2.0 * torch.tensor(closed).float()))
    if len(x) == 1 or not gates:
        return
    for row in network.layers:
        cells = [cast(Cell, cell) for cell in cast(nn.ModuleList, row)]
        for cell in cells:
            gates[cell].last_bias.zero_()
        _, record = InferencePlan(network)(x)
        table = record.logits.unflatten(1, (-1, 3)).cpu()
        for cell in cells:
            inside = record.reached[:, cell.node.index].cpu()
            here = table[inside, cell.node.index][:, list(cell.node.gated)]
            for number, column in enumerate(here.T.tolist() if len(here) else []):
                scale, cut = _scale_and_cut(sorted(column), share, chance)
                gates[cell].predict.weight[number] *= scale
                gates[cell].last_bias[number] = -cut


def _scale_and_cut(rising: list[float], share: float, chance: random.Random) -> tuple[float, float]:
    """A factor that brings logits to a range of 2, and then a number above ``share`` of them.

    In a random network logits may be huge, so that rounding would decide beside the cut.
    """
    largest, spread = max(abs(rising[0]), abs(rising[-1])), rising[-1] - rising[0]
    scale = 2 / spread if spread > 1e-3 * largest else 1 / max(largest, 1.0)
    rising = [scale * logit for logit in rising]
    below = int(share * len(rising) + chance.random())  # the fraction of one is left to chance
    if below == 0:
        return scale, rising[0] - 1.0
    if below == len(rising):
        return scale, rising[-1] + 1.0
    return scale, (rising[below - 1] + rising[below]) / 2


def closed_share(network: DynamicRoutingNetwork, routing: Routing) -> float:
    """Share of the gates of reached cells that are closed, over all images of a record."""
    gates = routing.activations.unflatten(1, (-1, 3)).cpu()
    exists = torch.zeros(network.space.num_cells, 3, dtype=torch.bool)
    for node in network.space.cells:
        exists[node.index, list(node.gated)] = True
    present = exists & routing.reached.cpu()[..., None]
    opened = is_open(gates, is_closed(gates.sum(dim=2, keepdim=True)))
    return 1.0 - float(opened[present].float().mean()) if present.any() else 0.0
