import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import agrees, fix_gates, pictures, routed_network, same_maps, same_record

from divdr.benchmark import close_gates, peak_bytes
from divdr.errors import ConfigError
from divdr.inference import InferencePlan
from divdr.routing import BatchNorm, DynamicRoutingNetwork, RoutingSpace


def test_a_batch_of_mixed_routes_equals_the_network():
    routing = agrees(routed_network(5, 4), pictures(6))
    assert not (routing.reached == routing.reached[0]).all(), "the images must differ in route"
    assert not routing.reached.all()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gate=st.sampled_from(["small", "full", "static", "early", "none"]),
    reach=st.sampled_from(["open", "published"]),
    shift=st.floats(-2.0, 1.0),
    floor=st.sampled_from([0.0, 0.5]),
    layers=st.integers(1, 5),
    scales=st.integers(1, 4),
    count=st.integers(1, 8),
    height=st.integers(3, 60),
    width=st.integers(3, 60),
)
def test_any_space_gate_batch_and_size_equals_the_network(
    seed, gate, reach, shift, floor, layers, scales, count, height, width
):
    network = routed_network(
        layers, scales, seed=seed, gate=gate, reach=reach, shift=shift, gate_floor=floor
    )
    agrees(network, pictures(count, height, width, seed))


def test_images_of_a_batch_equal_images_alone():
    network = routed_network(5, 4)
    batch = pictures(5)
    plan = InferencePlan(network)
    maps, record = plan(batch)
    for index in range(len(batch)):
        alone, one = plan(batch[index : index + 1])
        same_maps([m[index : index + 1] for m in maps], alone)
        same_record(record[index], one)


def test_zero_image_beside_others():
    batch = pictures(3)
    batch[1] = 0
    agrees(routed_network(), batch)


def undecided(routing, bound: float = 1e-4) -> bool:
    """Whether a gate is so near a threshold that rounding may decide it."""
    gates = routing.activations.unflatten(1, (-1, 3))
    near = (gates.sum(dim=2) - 1e-4).abs() < bound
    edge = (routing.logits.abs() < bound) & (routing.logits != 0)
    return bool((near & routing.reached & (gates.sum(dim=2) > 0)).any() or edge.any())


def test_single_precision_of_a_deep_network_stays_within_one_in_ten_thousand():
    network = routed_network(8, 4, seed=3, shift=0.5, channels=16).float()
    batch = pictures(2, 70, 90).float()
    with torch.no_grad():
        assert not undecided(network(batch)[1])
    maps, record = InferencePlan(network)(batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    same_maps(maps, wanted, 1e-4)
    same_record(record, routing, 1e-3)


@pytest.mark.parametrize(("value", "runs"), [(0.99e-4, False), (1.01e-4, True), (0.0, False)])
def test_gates_beside_the_threshold_decide_like_the_network(value, runs):
    network = routed_network(3, 2, shift=1.5).float()
    cell = network.layers[1][0]
    fix_gates(cell, value, -1.0)  # tanh(1e-4) = 1e-4 to eight digits
    routing = agrees(network, pictures(2).float(), 1e-4)
    columns = 3 * cell.node.index + torch.tensor(cell.node.transforms)
    gates = routing.activations[:, columns]
    assert bool((gates.sum(dim=1) >= 1e-4).all()) == runs


def test_a_gate_just_above_zero_is_open_in_an_open_cell():
    network = routed_network(3, 2)
    fix_gates(network.layers[0][0], 1.0, 0.5e-4)  # keep, down
    fix_gates(network.layers[0][1], -1.0, 1.0)  # up, keep
    routing = agrees(network, pictures(1))
    assert 0 < routing.activations[0, 2] < 1e-4


def test_every_gate_closed_passes_the_first_map_on():
    network = routed_network(3, 2)
    for cell in network.cells():
        fix_gates(cell, *[-1.0] * len(cell.node.transforms))
    routing = agrees(network, pictures(3))
    assert routing.activations.eq(0).all()


def test_a_closed_image_beside_open_ones_keeps_its_own_map():
    # Closed images hand on rows of the memory in which the others' sums are made in place.
    network = routed_network(2, 2, seed=5)
    for cell in network.cells():
        cell.gate.predict.weight.data.mul_(4)
    batch = torch.cat([pictures(7, seed=s) for s in range(3)])
    agrees(network, batch)
    with torch.no_grad():
        gates = network(batch)[1].activations.unflatten(1, (-1, 3)).sum(dim=2)
    assert (gates[:, 0] == 0).any()
    assert (gates[:, 0] > 0).any()


@pytest.mark.parametrize("norm", ["sync", "frozen", "group", "plain"])
def test_normalisations(norm):
    from detectron2.layers import FrozenBatchNorm2d

    makers = {
        "sync": torch.nn.SyncBatchNorm,
        "frozen": FrozenBatchNorm2d,
        "group": lambda channels: torch.nn.GroupNorm(2, channels),
        "plain": lambda channels: torch.nn.BatchNorm2d(channels, affine=False),
    }
    agrees(routed_network(norm=makers[norm]), pictures(3))


def test_a_space_that_narrows():
    torch.manual_seed(0)
    network = DynamicRoutingNetwork(RoutingSpace((2, 3, 2)), channels=4).double().eval()
    dead_end = next(c for c in network.cells() if (c.node.layer, c.node.scale) == (1, 2))
    fix_gates(dead_end, -1.0)
    agrees(network, pictures(2))


@pytest.mark.parametrize("count", [0, 1])
def test_few_images(count):
    agrees(routed_network(gate="full"), pictures(count))


def test_nothing_given_is_changed_and_nothing_returned_is_shared():
    network = routed_network()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    batch = pictures(3)
    kept = batch.clone()
    plan = InferencePlan(network)
    first, _ = plan(batch)
    copies = [m.clone() for m in first]
    plan(pictures(3, seed=9))
    again, _ = plan(batch)
    assert batch.equal(kept)
    assert all(value.equal(state[name]) for name, value in network.state_dict().items())
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(first, copies, again, strict=True))


def test_channels_last_and_gradients_do_not_matter():
    network = routed_network()
    batch = pictures(2).requires_grad_()
    maps, record = InferencePlan(network)(batch.contiguous(memory_format=torch.channels_last))
    assert not any(m.requires_grad for m in maps)
    assert not record.expected_cost.requires_grad
    with torch.no_grad():
        same_maps(maps, network(batch)[0])


def test_made_and_used_in_inference_mode_and_outside():
    network = routed_network()
    batch = pictures(2)
    with torch.no_grad():
        wanted, _ = network(batch)
    with torch.inference_mode():
        plan = InferencePlan(network)
        same_maps(plan(batch)[0], wanted)
    same_maps(plan(batch)[0], wanted)


def test_another_input_precision_is_given_back():
    plan = InferencePlan(routed_network())
    assert plan.dtype == torch.float64
    maps, _ = plan(pictures(1).float())
    assert all(m.dtype == torch.float32 for m in maps)


def test_images_of_whole_numbers_give_maps_in_the_precision_of_the_plan():
    plan = InferencePlan(routed_network())
    x = (pictures(1) * 20).round()
    maps, _ = plan(x.to(torch.int16))
    same_maps(maps, plan(x)[0])


def test_the_plan_of_the_paper_sized_space_runs_once():
    network = DynamicRoutingNetwork(RoutingSpace.build(16, 4), channels=4, norm=BatchNorm).eval()
    agrees(network, pictures(2, 64, 64).float(), 1e-4)


def test_training_networks_and_whole_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"network\.eval"):
        InferencePlan(routed_network().train())
    with pytest.raises(ConfigError, match="floating point"):
        InferencePlan(routed_network(), dtype=torch.int32)


@pytest.mark.parametrize("given", [False, True])
def test_a_batch_too_large_for_the_caches_runs_in_parts(given):
    # 64 maps of 48 × 64 numbers of 8 bytes are 1.5 MiB an image: two images at a time on a CPU.
    network = routed_network(2, 2, channels=64)
    batch = pictures(3, 192, 256)
    close_gates(network, 0.5, batch)
    with torch.no_grad():
        wanted, routing = network(batch)
    assert not (routing.activations.gt(0) == routing.activations[0].gt(0)).all()
    plan = InferencePlan(network)
    maps, record = plan(batch, routing.activations if given else None)
    same_maps(maps, wanted)
    assert record.activations.allclose(routing.activations)
    assert record.initial.allclose(routing.initial)
    assert record.reached.equal(routing.reached)
    if not given:
        two, three = (peak_bytes(lambda n=n: plan(batch[:n])) for n in (2, 3))
        assert three < 1.2 * two
