"""Checks the network against numbers that the published Dynamic Routing network produced.

A gate multiplies whole maps, so that rounding of the last digit in an early gate can grow a
thousandfold over sixteen random layers: the reference itself is that far from exact arithmetic.
So every cell is checked on the reference's own route (its gates weight the edges, and each cell's
own decision must equal them), within the bound; and the free run, in which nothing is imposed, must
be no further from the reference than a few times what exact (float64) arithmetic is. Over 33 layers
rounding can change the whole route: where our own runs in float32 and float64 part, the free run
says nothing and is held to no bound.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..checkpoint import convert_backbone, convert_decoder
from ..errors import DataError
from ..routing import DynamicRoutingNetwork, Routing, RoutingSpace, cost_table
from .decoder import DynamicRoutingDecoder

BOUND = 1e-4
"""Largest error, relative to the largest reference value."""

_FREE_RUN_FACTOR = 10.0
_CHAOTIC = 2e-3  # of a gate, by rounding alone; twice what the published 16 layers show


@dataclass(frozen=True)
class Comparison:
    """One quantity against the reference; errors are relative to the largest reference value.

    Attributes:
        name: what is compared.
        on_route: error along the reference's route.
        free: error of the free run.
        exact: error of the free run in float64.
        chaotic: the network is one whose free runs are held to no bound.
    """

    name: str
    on_route: float
    free: float
    exact: float
    chaotic: bool = False

    @property
    def passed(self) -> bool:
        """Whether the errors are within the bounds of this module."""
        if self.chaotic:
            return self.on_route <= BOUND
        limit = max(BOUND, _FREE_RUN_FACTOR * self.exact)
        return self.on_route <= BOUND and self.free <= limit


@dataclass(frozen=True)
class ReferenceCheck:
    """Result of :func:`check_reference`.

    Attributes:
        description: the network that the file holds.
        comparisons: one for every quantity.
        chaotic: rounding alone changes the route, so that free runs are held to no bound.
    """

    description: str
    comparisons: list[Comparison]
    chaotic: bool = False

    @property
    def passed(self) -> bool:
        """Whether every quantity passed."""
        return all(c.passed for c in self.comparisons)


def check_reference(path: str | os.PathLike) -> ReferenceCheck:
    """Load a reference file's weights, run its images, and compare everything it holds.

    Layers, scales, channels and classes are read from the shapes of its state dicts. Small and
    full gates have the same shapes; the kind whose decisions on the reference's route fit better
    is taken.

    Raises:
        DataError: the file is no reference file.
        CheckpointError: its state dicts do not fit a routing space.
    """
    try:
        file = np.load(path, allow_pickle=False)
        images = torch.from_numpy(file["x"])
        gates = torch.from_numpy(file["gates_up_keep_down"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no reference file ({error})") from None
    weights = _part(file, "backbone/")
    has_gates = any("gate_conv_beta" in name for name in weights)
    kinds = ("small", "full") if has_gates else ("none",)
    candidates = [_network(weights, kind) for kind in kinds]
    runs = [(n, _run(n, images, gates.flatten(1))) for n in candidates]
    network, on_route = min(
        runs, key=lambda run: float((_decisions(run[1][1], gates) - gates).abs().max())
    )
    own = _run(network, images)
    exact = _run(network.double(), images.double())
    network.float()
    apart = (_decisions(own[1], gates) - _decisions(exact[1], gates)).abs().max()
    chaotic = float(apart) > _CHAOTIC

    def compare(name: str, reference: np.ndarray, select) -> Comparison:
        wanted = torch.from_numpy(np.asarray(reference)).double()
        scale = wanted.abs().max().clamp(min=1e-12)

        def error(run: _Forward) -> float:
            return float((select(*run).double() - wanted).abs().max() / scale)

        return Comparison(name, error(on_route), error(own), error(exact), chaotic)

    comparisons = [compare("gates", gates.numpy(), lambda maps, r: _decisions(r, gates))]
    for scale in range(network.space.out_scales):
        comparisons.append(
            compare(
                f"output, stride {4 * 2**scale}",
                file[f"out/layer_{scale}"],
                lambda maps, r, scale=scale: maps[scale],
            )
        )
    description = (
        f"{network.space.num_layers} layers, {network.channels} channels, "
        f"{_gate_kind(network)} gate"
    )
    head = _part(file, "head/")
    if head:
        decoder = _decoder(network, head)
        description += f", {decoder.num_classes} classes"
        comparisons += _head_comparisons(file, network, decoder, images, compare)
    comparisons += _cost_comparisons(file, network, compare)
    return ReferenceCheck(description, comparisons, chaotic)


def _part(file, prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: torch.from_numpy(np.asarray(file[name]))
        for name in file.files
        if name.startswith(prefix)
    }


def _network(weights: dict[str, Tensor], gate: str) -> DynamicRoutingNetwork:
    places = [re.match(r"all_cell_list\.(\d+)\.(\d+)\.", name) for name in weights]
    cells = {(int(m[1]), int(m[2])) for m in places if m}
    if not cells or "stem.stem_3.1.weight" not in weights:
        raise DataError("the file holds no backbone of the published network")
    layers = 1 + max(layer for layer, _ in cells)
    scales = [sum(layer == number for layer, _ in cells) for number in range(layers)]
    network = DynamicRoutingNetwork(
        RoutingSpace.build(layers, max(scales), scales),
        channels=weights["stem.stem_3.1.weight"].shape[0],
        stem_channels=weights["stem.stem_3.1.weight"].shape[1],
        gate=gate,
        reach="published",
    )
    network.load_state_dict(convert_backbone(weights, network.state_dict()))
    return network.eval()


def _decoder(network: DynamicRoutingNetwork, head: dict[str, Tensor]) -> DynamicRoutingDecoder:
    shapes = {
        f"res{scale + 2}": ShapeSpec(channels=channels, stride=4 * 2**scale)
        for scale, channels in enumerate(network.out_channels())
    }
    classes = head["predictor.weight"].shape[0]
    decoder = DynamicRoutingDecoder(input_shape=shapes, num_classes=classes, norm="BN")
    decoder.load_state_dict(convert_decoder(head, decoder.state_dict()))
    return decoder.eval()


_Forward = tuple[list[Tensor], Routing]


def _run(network: DynamicRoutingNetwork, images: Tensor, route: Tensor | None = None) -> _Forward:
    with torch.no_grad():
        return network(images, route)


def _decisions(routing: Routing, gates: Tensor) -> Tensor:
    return torch.relu(torch.tanh(routing.logits)).view_as(gates)


def _gate_kind(network: DynamicRoutingNetwork) -> str:
    gate = network.initial.gate
    return "no" if gate is None else ("small" if gate.small else "full")


def _head_comparisons(file, network, decoder, images, compare) -> list[Comparison]:
    sizes = network.space.map_sizes(*images.shape[-2:])[: network.space.out_scales]
    macs = torch.tensor(decoder.macs(list(sizes), affine_norm=False) / 1e6)
    # The published count takes the head's map to be as wide as it is high.
    square = torch.tensor(sizes[0][0] / sizes[0][1])

    def logits(maps: list[Tensor], routing: Routing) -> Tensor:
        features = {f"res{i + 2}": m for i, m in enumerate(maps)}
        with torch.no_grad():
            result = decoder.to(maps[0].dtype)(features)[0]
        return result[:, :, ::8, ::8]

    return [
        compare("logits", file["logits_every_8th_pixel"], logits),
        compare("head cost", file["head_mflops"], lambda maps, routing: macs * square),
    ]


def _cost_comparisons(file, network: DynamicRoutingNetwork, compare) -> list[Comparison]:
    def cost(routing: Routing, which: int) -> Tensor:
        table = cost_table(network, *routing.size, affine_norm=False, published_stem=True)
        gates = routing.activations.unflatten(1, (-1, 3))
        return table.tensors("cpu").published(gates, routing.initial)[which] / 1e6

    return [
        compare("expected cost", file["expected_mflops"], lambda maps, r: cost(r, 0)),
        compare("real cost", file["real_mflops_backbone"], lambda maps, r: cost(r, 1)),
    ]
