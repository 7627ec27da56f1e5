"""Networks with mixed routes, and a plain re-statement of what they must compute."""

import torch
import torch.nn.functional as F

from divdr.routing import DOWN, KEEP, UP, DynamicRoutingNetwork, RoutingSpace
from divdr.routing.gate import Gate


def mixed_network(
    layers: int = 5,
    scales: int = 4,
    *,
    seed: int = 0,
    shift: float = 0.0,
    **options,
) -> DynamicRoutingNetwork:
    """A small network with running statistics and gates that decide differently per image."""
    torch.manual_seed(seed)
    network = DynamicRoutingNetwork(RoutingSpace.build(layers, scales), channels=4, **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.3)
    for cell in [network.initial, *network.cells()]:
        if cell.gate is not None:
            if isinstance(cell.gate, Gate):
                cell.gate.predict.weight.data.normal_(0, 3.0)
            cell.gate.last_bias.data.normal_(shift, 0.7)
    if network.early is not None:
        network.early.predict.weight.data.normal_(0, 3.0)
        network.early.predict.bias.data.normal_(shift, 0.7)
    if network.initial.gate is not None:
        torch.nn.init.constant_(network.initial.gate.last_bias, 1.5)
    # Double precision, so that rounding is neither taken for an error nor hides one.
    return network.double().eval()


def images(count: int, height: int = 64, width: int = 96, seed: int = 1) -> torch.Tensor:
    """Images of different brightness and grain, so that gates tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, height, width, generator=generator)
    level = torch.randn(count, 3, 1, 1, generator=generator)
    return (x * torch.rand(count, 1, 1, 1, generator=generator) * 2 + level).double()


def keep_only(network: DynamicRoutingNetwork) -> None:
    """Set every gate so that all images keep and neither go up nor down."""
    for cell in [network.initial, *network.cells()]:
        torch.nn.init.zeros_(cell.gate.predict.weight)
        bias = torch.full_like(cell.gate.predict.bias, -1.0)
        bias[list(cell.node.transforms).index(KEEP)] = 1.0
        cell.gate.predict.bias.data = bias


def naive_forward(network: DynamicRoutingNetwork, image: torch.Tensor):
    """One image, cell by cell, by the rules of the design: returns (maps, gates, reached, macs).

    ``macs`` are counted from the layers that ran, by their own output shapes.
    """
    meter = _Meter(network)
    with torch.no_grad(), meter:
        early = None  # (cells, T) gates
        if network.early is not None:
            early = torch.relu(torch.tanh(network.early(image[None]))).view(-1, 3)
        x = network.stem(image[None])
        sizes = network.space.map_sizes(*image.shape[-2:])
        arriving = {0: _initial(network, x, meter)}
        grids = arriving.pop(0)
        gates, reached = [], []
        for layer in network.layers:
            following: dict[int, torch.Tensor] = {}
            for scale, cell in enumerate(layer):
                here = torch.zeros(3, dtype=torch.float64)
                if scale in grids:
                    here = _visit(cell, scale, grids[scale], sizes, following, meter, early)
                gates.append(here)
                reached.append(scale in grids)
            grids = following
    maps = [
        grids.get(s, x.new_zeros(1, network.channels * 2**s, *sizes[s]))[0]
        for s in range(network.space.out_scales)
    ]
    return maps, torch.stack(gates), torch.tensor(reached), meter.total


def _initial(network, x, meter):
    following: dict[int, torch.Tensor] = {}
    _visit(network.initial, 0, x, None, following, meter)
    return following


def _visit(cell, scale, x, sizes, following, meter, early=None):
    here = torch.zeros(3, dtype=torch.float64)
    if early is not None:
        for t in cell.node.transforms:
            here[t] = early[cell.node.index, t]
    elif cell.gate is None:
        for t in cell.node.transforms:
            here[t] = 1.0
    else:
        decided = torch.relu(torch.tanh(cell.gate(x)[0]))
        for t, value in zip(cell.node.transforms, decided, strict=True):
            here[t] = value
    if here.sum() < 1e-4:
        following[scale] = following.get(scale, 0) + x
        return here
    feature = sum(op(x) for op in cell.ops.values())
    for t in cell.node.transforms:
        if here[t] <= 0:
            continue
        meter.total += feature.numel()  # the transform's first ReLU
        y = F.relu(feature)
        if t == UP:
            y = F.interpolate(
                cell.changes["up"](y), size=sizes[scale - 1], mode="bilinear", align_corners=False
            )
        elif t == DOWN:
            y = cell.changes["down"](y)
        target = scale + {UP: -1, KEEP: 0, DOWN: 1}[t]
        following[target] = following.get(target, 0) + y * here[t]
    return here


class _Meter:
    """Counts multiply-adds of layers as they run, for a batch of one."""

    def __init__(self, network) -> None:
        self.total = 0.0
        self._network = network
        self._handles: list = []

    def __enter__(self):
        for module in self._network.modules():
            if isinstance(module, torch.nn.Conv2d):
                self._handles.append(module.register_forward_hook(self._conv))
            elif isinstance(module, torch.nn.BatchNorm2d):
                self._handles.append(module.register_forward_hook(self._twice))
            elif isinstance(module, torch.nn.ReLU | torch.nn.AdaptiveAvgPool2d):
                self._handles.append(module.register_forward_hook(self._once))

    def __exit__(self, *args) -> None:
        for handle in self._handles:
            handle.remove()

    def _conv(self, module, args, output) -> None:
        self.total += output.numel() * module.weight[0].numel()

    def _twice(self, module, args, output) -> None:
        self.total += 2 * args[0].numel()

    def _once(self, module, args, output) -> None:
        self.total += args[0].numel()
