import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import fix_gates, pictures, routed_network, same_maps, same_record

from divdr.benchmark import PublishedRun
from divdr.routing import DynamicRoutingNetwork, RoutingSpace
from divdr.routing.space import KEEP


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gate=st.sampled_from(["small", "full", "none"]),
    shift=st.floats(-2.0, 1.0),
    scales=st.integers(1, 4),
    height=st.integers(3, 60),
    width=st.integers(3, 60),
)
def test_one_image_equals_the_network_of_published_reach(seed, gate, shift, scales, height, width):
    network = routed_network(4, scales, seed=seed, gate=gate, reach="published", shift=shift)
    x = pictures(1, height, width, seed)
    maps, record = PublishedRun(network)(x)
    with torch.no_grad():
        wanted, routing = network(x)
    same_maps(maps, wanted)
    same_record(record, routing)


def test_image_by_image_equals_the_network_on_mixed_routes():
    network = routed_network(5, 4, reach="published")
    batch = pictures(5)
    maps, record = PublishedRun(network).image_by_image(batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    assert not (routing.activations.gt(0) == routing.activations[0].gt(0)).all()
    same_maps(maps, wanted)
    same_record(record, routing)


def test_a_batch_that_agrees_on_open_cells_equals_the_network():
    # Keep is open for every image in every cell; up and down differ.
    network = routed_network(5, 4, reach="published")
    for cell in network.cells():
        row = cell.node.transforms.index(KEEP)
        cell.gate.predict.weight.data[row] = 0.0
        cell.gate.predict.bias.data[row] = 0.5
    batch = pictures(5)
    maps, record = PublishedRun(network)(batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    assert not (routing.activations.gt(0) == routing.activations[0].gt(0)).all()
    same_maps(maps, wanted)
    same_record(record, routing)


def chain_of_two():
    """One scale, two cells: the first one's gate follows the brightness, the second is closed."""
    network = (
        DynamicRoutingNetwork(RoutingSpace((1, 1)), channels=4, reach="published").double().eval()
    )
    first, second = network.cells()
    fix_gates(second, -1.0)
    return network, first


def test_an_image_loses_what_should_pass_where_another_opens_the_cell():
    network, first = chain_of_two()
    first.gate.predict.weight.data.fill_(1.0)
    batch = pictures(2)
    with torch.no_grad():
        fix = network(batch)[1].logits[:, KEEP]
        first.gate.predict.bias.data -= fix.mean()
        wanted, routing = network(batch)
    closed = int(routing.activations[:, KEEP].argmin())
    assert routing.activations[closed, KEEP] == 0 < routing.activations[1 - closed, KEEP]
    maps, record = PublishedRun(network)(batch)
    assert record.activations.allclose(routing.activations)
    assert wanted[0][closed].abs().max() > 0
    assert maps[0][closed].eq(0).all()
    same_maps([maps[0][1 - closed]], [wanted[0][1 - closed]])


@pytest.mark.parametrize(("value", "runs"), [(0.4e-4, False), (0.6e-4, True)])
def test_gates_count_over_the_whole_batch(value, runs):
    # Two images of value each: 0.8e-4 or 1.2e-4 in all, of which 1e-4 opens.
    network, first = chain_of_two()
    fix_gates(first, value)
    ran = []
    first.ops["sep_conv_3x3"].register_forward_hook(lambda *_: ran.append(1))
    PublishedRun(network)(pictures(2))
    assert bool(ran) == runs


def test_an_open_cell_computes_transforms_that_are_closed():
    network = routed_network(2, 2)
    cell = network.layers[0][0]
    fix_gates(cell, 1.0, -1.0)  # keep, down
    ran = []
    cell.changes["down"].register_forward_hook(lambda *_: ran.append(1))
    x = pictures(1)
    with torch.no_grad():
        network(x)
    assert not ran
    PublishedRun(network)(x)
    assert ran


def test_the_input_may_lie_channels_last_and_nothing_has_a_graph():
    network = routed_network(reach="published")
    x = pictures(1)
    maps, record = PublishedRun(network)(x.contiguous(memory_format=torch.channels_last))
    assert all(m.is_contiguous() and not m.requires_grad for m in maps)
    assert not record.expected_cost.requires_grad
    same_maps(maps, PublishedRun(network)(x)[0])
