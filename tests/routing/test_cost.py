import gc
import json
from pathlib import Path

import pytest
import torch
from routed import images, mixed_network
from torch import nn

from divdr.errors import ConfigError
from divdr.inference import InferencePlan
from divdr.routing import (
    CostTensors,
    DynamicRoutingNetwork,
    RoutingSpace,
    budget_loss,
    cost_table,
)
from divdr.routing.cost import count_macs

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


def test_windows_that_are_no_squares():
    # (9 - 2) // 2 + 1 = 4 rows and (8 - 3) // 1 + 1 = 6 columns, of 2·3 numbers each.
    pool = nn.AvgPool2d((2, 3), stride=(2, 1))
    assert count_macs(pool, (5, 9, 8)) == (5 * 4 * 6 * 2 * 3, (5, 4, 6))
    layer = nn.Conv2d(6, 4, (2, 3), stride=(2, 1), groups=2)
    assert count_macs(layer, (6, 9, 8)) == (4 * 4 * 6 * 2 * 3 * 6 / 2, (4, 4, 6))
    for module, shape in ((pool, (5, 9, 8)), (layer, (6, 9, 8))):
        assert module(torch.zeros(1, *shape)).shape[1:] == count_macs(module, shape)[1]


def test_a_stem_of_five_channels_by_hand():
    # 64×96 pixels become 31×47 and 16×24. Normalisation without scale and shift counts 1 a number,
    # and so does ReLU.
    network = DynamicRoutingNetwork(RoutingSpace.build(2, 2), channels=4, stem_channels=5).eval()
    half, quarter = 31 * 47, 16 * 24
    first = half * (5 * 27 + 2 * 5)
    second = half * (5 * 9 + 5 * 5 + 2 * 5)
    third = quarter * (5 * 9 + 4 * 5 + 2 * 4)
    assert cost_table(network, 64, 96, affine_norm=False).stem == first + second + third
    with torch.no_grad():
        maps, _ = network(torch.randn(1, 3, 64, 96))
    assert [m.shape[1:] for m in maps] == [(4, 16, 24), (8, 8, 12)]


def test_tables_for_routes_that_are_given():
    table = cost_table(mixed_network(4, 3), 64, 96)
    assert table.initial.gate > 0
    bare = table.without_gates()
    assert (bare.initial.gate, {cell.gate for cell in bare.cells}) == (0.0, {0.0})
    some = table.without_gates(2, initial_gate=True)
    assert some.initial == table.initial
    assert some.cells[:2] == table.cells[:2]
    assert some.cells[2].gate == 0.0
    assert some.cells[2].cell == table.cells[2].cell


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
    # (0.2 - 0.1)²; the mean over images, 0.02, is larger by the variance of 0.3 and 0.1.
    assert budget_loss(routing, 0.1, per="batch").tolist() == pytest.approx([0.01])
    with pytest.raises(ConfigError, match=r"BUDGET\.PER must be .* not 'epoch'"):
        budget_loss(routing, 0.1, per="epoch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_costs_are_exact_in_half_precision(dtype):
    """A cell of the paper's width has 10⁸ multiply-adds, float16 ends at 65,504."""
    space = RoutingSpace.build(3, 3)
    torch.manual_seed(0)
    network = DynamicRoutingNetwork(space, channels=64).train()
    for cell in network.cells():
        cell.gate.predict.weight.data.normal_(0, 2.0)
    with torch.autocast("cpu", dtype):
        _, half = network(torch.randn(2, 3, 64, 64))
        steered = network.steerable_cost(half, 1.0)
        bigger = network.cost(half, 512, 1024)
        loss = budget_loss(half, 0.1)
    # The same gates, counted in double precision from the table; tables of the forward too.
    for (expected, real), size in (
        ((half.expected_cost, half.real_cost), (64, 64)),
        (bigger, (512, 1024)),
    ):
        table = cost_table(network, *size)
        rows = [table.initial, *table.cells]
        gates = torch.cat([half.initial[:, None], half.activations.unflatten(1, (-1, 3))], dim=1)
        visited = torch.cat([torch.ones(2, 1, dtype=torch.bool), half.reached], dim=1)
        for image in range(2):
            wanted, ran = 0.0, table.stem
            for cell, values, here in zip(rows, gates[image].tolist(), visited[image], strict=True):
                parts = [(g, t) for g, t in zip(values, cell.transforms, strict=True) if t]
                wanted += cell.cell * max(values) + sum(g * t for g, t in parts)
                if here:
                    ran += cell.gate + cell.cell * (sum(values) >= 1e-4)
                    ran += sum(t for g, t in parts if g > 0)
            assert expected[image].item() == pytest.approx(wanted, rel=1e-6)
            assert real[image].item() == pytest.approx(ran, rel=1e-6)
    table = cost_table(network, 64, 64)
    all_open = sum(
        c.cell + sum(t or 0 for t in c.transforms) for c in [table.initial, *table.cells]
    )
    assert half.full_cost == pytest.approx(all_open, rel=1e-6)
    assert steered.tolist() == pytest.approx(half.real_cost.tolist(), rel=1e-5)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(
        [(e / all_open - 0.1) ** 2 for e in half.expected_cost.tolist()], rel=1e-4
    )
    loss.sum().backward()
    assert network.layers[0][0].gate.predict.bias.grad.isfinite().all()
    # What the forward kept serves in full precision.
    _, again = network(torch.randn(2, 3, 64, 64))
    assert again.full_cost == half.full_cost


def test_costs_made_in_inference_mode_serve_in_training():
    network = mixed_network(3, 2).float()
    x = images(2).float()
    with torch.inference_mode():
        _, record = network(x)
        network.cost(record, 32, 32)
    _, record = network.train()(x)
    loss = budget_loss(record, 0.1).sum() + network.cost(record, 32, 32)[0].sum() / 1e9
    loss.backward()
    assert network.layers[0][0].gate.predict.bias.grad.abs().sum() > 0


def test_images_of_ever_new_sizes_do_not_fill_the_memory():
    network = mixed_network(2, 2)
    plan = InferencePlan(network)
    before = sum(type(o) is CostTensors for o in gc.get_objects())
    with torch.no_grad():
        for width in range(9, 9 + 300):
            x = torch.zeros(1, 3, 9, width).double()
            network(x)
            plan(x)
    # Each keeps 256 at most, and 300 without a bound.
    assert sum(type(o) is CostTensors for o in gc.get_objects()) - before <= 256
