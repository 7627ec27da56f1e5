import json
from pathlib import Path

import pytest
import torch
from routed import images, mixed_network

from divdr.routing import DynamicRoutingNetwork, RoutingSpace, budget_loss, cost_table

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("size", [(768, 768), (1024, 2048)])
@pytest.mark.parametrize("gate", ["small", "full"])
def test_published_tables_to_the_last_digit(size, gate):
    reference = json.loads((DATA / f"mmacs_l16_c64_{size[0]}x{size[1]}.json").read_text())
    network = DynamicRoutingNetwork(RoutingSpace.build(16, 4), channels=64, gate=gate)
    table = cost_table(network, *size, published_stem=True)
    assert table.stem / 1e6 == pytest.approx(reference["stem"], rel=1e-12)
    assert len(table.cells) == len(reference["cells"])
    for cell, wanted in zip(table.cells, reference["cells"], strict=True):
        up, keep, down = cell.transforms
        numbers = {"cell": cell.cell, "up": up, "keep": keep, "down": down}
        numbers[f"{gate}_gate"] = cell.gate
        for name, value in numbers.items():
            if wanted[name] is None:
                assert value is None
            else:
                assert value / 1e6 == pytest.approx(wanted[name], rel=1e-12)


def test_expected_cost_is_a_sum_over_cells():
    network = mixed_network(4, 3)
    with torch.no_grad():
        _, routing = network(images(3))
    table = cost_table(network, 64, 96)
    for index in range(3):
        gates = [routing.initial[index], *routing.activations[index].view(-1, 3)]
        total = 0.0
        for cost, values in zip([table.initial, *table.cells], gates, strict=True):
            total += cost.cell * float(values.max())
            for transform, value in zip(cost.transforms, values, strict=True):
                total += (transform or 0.0) * float(value)
        assert float(routing.expected_cost[index]) == pytest.approx(total, rel=1e-5)


def test_expected_cost_pulls_open_gates_down():
    network = mixed_network(3, 2).train()
    _, routing = network(images(2))
    routing.expected_cost.sum().backward()
    cell = network.layers[0][0]
    assert cell.gate.predict.bias.grad.sum() > 0


def test_cost_at_another_size_is_that_of_the_same_route_there():
    network = mixed_network(4, 3, gate="none")
    with torch.no_grad():
        _, small = network(images(1, 64, 64))
        _, large = network(images(1, 96, 160))
    expected, real = network.cost(small, 96, 160)
    assert float(expected) == pytest.approx(float(large.expected_cost))
    assert float(real) == pytest.approx(float(large.real_cost))


def test_budget_loss_by_hand():
    network = mixed_network(3, 2)
    with torch.no_grad():
        _, routing = network(images(2))
    routing.expected_cost = torch.tensor([0.3, 0.1]) * routing.full_cost
    # (0.3 - 0.1)² and (0.1 - 0.1)²
    assert budget_loss(routing, 0.1).tolist() == pytest.approx([0.04, 0.0], abs=1e-7)
