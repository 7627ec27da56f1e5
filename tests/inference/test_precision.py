import pytest
import torch
import torch.nn.functional as F
from planned import fix_gates, pictures, routed_network

from divdr.inference import InferencePlan
from divdr.inference.cell_plan import GatePlan


def open_network(**options):
    """All gates open and smooth, so that rounding changes numbers and not routes."""
    network = routed_network(3, 3, channels=16, **options)
    for cell in network.cells():
        fix_gates(cell, *[1.0] * len(cell.node.transforms))
    return network.float()


@pytest.mark.parametrize("gate", ["small", "full"])
@pytest.mark.parametrize("count", [1, 3])
def test_bfloat16_is_near_and_returns_the_precision_of_its_input(gate, count):
    network = open_network(gate=gate)
    batch = pictures(count).float()
    plan = InferencePlan(network, dtype=torch.bfloat16)
    maps, record = plan(batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    for one, other in zip(maps, wanted, strict=True):
        assert one.dtype == torch.float32
        assert not one.equal(other)
        # Eight bits of mantissa (2e-3 a rounding), a dozen of layers in a row.
        assert float((one - other).norm() / other.norm()) < 0.03
    assert record.activations.dtype == record.expected_cost.dtype == torch.float32
    assert torch.allclose(record.activations, routing.activations)
    assert record.real_cost.equal(routing.real_cost)


def test_bfloat16_routes_of_one_pixel_maps_run():
    network = routed_network(4, 4).float()
    maps, _ = InferencePlan(network, dtype=torch.bfloat16)(pictures(3, 9, 9).float())
    assert maps[3].shape[-2:] == (1, 1)
    assert all(torch.isfinite(m).all() for m in maps)


@pytest.mark.parametrize("gate", ["small", "full"])
def test_gates_pool_and_decide_in_single_precision(gate):
    network = routed_network(3, 2, gate=gate, channels=16).float()
    cell = network.layers[0][0]
    plan = GatePlan(cell.gate, torch.bfloat16)
    x = torch.randn(2, 16, 24, 32).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = plan(x)
        seen = x.float()
        if gate == "small":
            seen = F.interpolate(seen, scale_factor=0.25, mode="bilinear", align_corners=False)
        wanted = cell.gate.predict(cell.gate.pool(cell.gate.reduce(seen))).flatten(1)
    assert logits.dtype == torch.float32
    assert not logits.equal(logits.to(torch.bfloat16).float()), "decided in half precision"
    assert torch.allclose(logits, wanted, atol=0.1)


def test_pooling_does_not_round_between_numbers():
    # The map after "reduce" is 256 once and 1 elsewhere: its mean over 32×32 is 1 + 255/1024, of
    # which bfloat16 keeps two decimals and a sum in bfloat16 stops at 256.
    cell = routed_network(3, 2, gate="full", channels=2).float().layers[0][0]
    gate = cell.gate
    gate.reduce = torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1, bias=False))
    gate.reduce[0].weight.data.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    gate.predict.weight.data.fill_(1.0)
    gate.predict.bias.data.zero_()
    x = torch.ones(1, 2, 32, 32, dtype=torch.bfloat16)
    x[0, 0, 3, 4] = 256
    with torch.no_grad():
        logits = GatePlan(gate.eval(), torch.bfloat16)(x)
    assert logits.flatten().tolist() == pytest.approx([1 + 255 / 1024] * logits.numel(), rel=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (3, 9), (11, 8), (1, 1), (16, 12)])
def test_small_gates_shrink_like_bilinear(size):
    cell = routed_network(3, 2, channels=6).layers[0][0]
    x = torch.randn(2, 6, *size).double()
    with torch.no_grad():
        assert torch.allclose(GatePlan(cell.gate, torch.float64)(x), cell.gate(x), atol=1e-12)
