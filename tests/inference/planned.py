"""Networks whose images take different routes, and comparison of a plan with its network."""

import torch

from divdr.inference import InferencePlan
from divdr.routing import DynamicRoutingNetwork, Routing, RoutingSpace
from divdr.routing.gate import Gate


def routed_network(
    layers: int = 4, scales: int = 3, *, seed: int = 0, shift: float = -0.3, **options
) -> DynamicRoutingNetwork:
    """A small network in double precision with running statistics and gates of all kinds."""
    torch.manual_seed(seed)
    space = RoutingSpace.build(layers, scales)
    network = DynamicRoutingNetwork(space, **{"channels": 4, **options})
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:
                module.weight.data.uniform_(0.7, 1.3)
                module.bias.data.normal_(0, 0.3)
    for cell in network.cells():
        if cell.gate is not None:
            if isinstance(cell.gate, Gate):
                cell.gate.predict.weight.data.normal_(0, 3.0)
            cell.gate.last_bias.data.normal_(shift, 0.7)
    if network.early is not None:
        network.early.predict.weight.data.normal_(0, 3.0)
        network.early.predict.bias.data.normal_(shift, 0.7)
    return network.double().eval()


def pictures(count: int, height: int = 48, width: int = 64, seed: int = 1) -> torch.Tensor:
    """Images of different brightness and grain, so that gates tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    grain = torch.rand(count, 1, 1, 1, generator=generator) * 2
    level = torch.randn(count, 3, 1, 1, generator=generator)
    return (torch.randn(count, 3, height, width, generator=generator) * grain + level).double()


def fix_gates(cell, *values: float) -> None:
    """Let a cell's gate give logits ``values`` whatever it sees."""
    torch.nn.init.zeros_(cell.gate.predict.weight)
    cell.gate.predict.bias.data = torch.tensor(values, dtype=cell.gate.predict.bias.dtype)


def same_maps(actual, wanted, bound: float = 1e-9) -> None:
    """Errors are at most ``bound`` of the largest output."""
    actual, wanted = list(actual), list(wanted)
    largest = max((float(m.abs().max()) for m in wanted if m.numel()), default=0.0)
    for one, other in zip(actual, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert ((one - other).abs() <= bound * max(largest, 1e-6)).all()


def same_record(actual: Routing, wanted: Routing, bound: float = 1e-9) -> None:
    """Every field of the records agrees."""
    for name in ("activations", "logits", "initial"):
        one, other = getattr(actual, name), getattr(wanted, name)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=bound, atol=bound), name
    assert actual.reached.equal(wanted.reached)
    for name in ("expected_cost", "real_cost"):
        one, other = getattr(actual, name), getattr(wanted, name)
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=1e-5)
    assert actual.full_cost == wanted.full_cost
    assert actual.size == wanted.size


def agrees(network: DynamicRoutingNetwork, batch: torch.Tensor, bound: float = 1e-9) -> Routing:
    """The plan does what the network does; returns the network's record."""
    maps, record = InferencePlan(network)(batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    same_maps(maps, wanted, bound)
    same_record(record, routing, bound)
    return routing
