"""Specialised plans against general ones: any image, expected or not, batched, captured or not."""

import pytest
import torch
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import fix_gates, pictures, routed_network, same_maps, same_record

from divdr.errors import ConfigError
from divdr.inference import InferencePlan, Route, SpecialisedPlan, StaticNetwork, constants
from divdr.inference.captured import CapturedCall, CapturedRoute
from divdr.inference.cell_plan import CellPlan
from divdr.inference.route_tree import RouteTree


class Recorded(CapturedCall):
    """In place of a CUDA graph: what would be captured, which must not let the host wait."""

    made = 0

    def _aside(self, work):
        work(self._inputs)

    def _capture(self, work):
        type(self).made += 1
        self._work = work
        kept = [each.clone() for each in self._inputs]
        with HostWaits() as device:
            work(self._inputs)
        assert device.waits == [], device.places
        self._fill(kept)
        self._outputs = [each.clone() for each in work(self._inputs)]

    def _replay(self):
        for own, found in zip(self._outputs, self._work(self._inputs), strict=True):
            own.copy_(found)


def specialised(network, batches, *, rare=0.0, capture=None, dtype=None):
    plan = InferencePlan(network, dtype=dtype)
    tree = RouteTree(network.space, rare)
    for x in batches:
        tree.add(plan(x)[1])
    return plan, SpecialisedPlan(network, tree, dtype=dtype, capture=capture)


def same(plan, special, x, bound=1e-9):
    for one, other in zip(special(x), plan(x), strict=True):
        if isinstance(one, list):
            same_maps(one, other, bound)
        else:
            same_record(one, other, bound)


def test_calibration_images_and_others_in_one_call():
    network = routed_network(5, 4)
    seen, others = pictures(6), pictures(6, seed=2)
    plan = InferencePlan(network)
    special = plan.specialise([seen[:4], seen[4:]])
    same(plan, special, seen)
    assert special.runs_again == 0
    same(plan, special, others)
    same(plan, special, torch.cat([seen[:2], others[:2]]))
    same(plan, special, seen[:0])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["open", "published"]),
    st.sampled_from(["small", "full", "static", "none"]),
    st.integers(2, 5),
    st.floats(-1.5, 1.0),
    st.sampled_from([0.0, 0.3, 1.1]),
    st.booleans(),
    st.sampled_from([1, 2, 5]),
)
def test_any_image_gets_what_the_general_plan_gives(
    seed, reach, gate, layers, shift, rare, captured, batch
):
    network = routed_network(layers, 3, seed=seed, reach=reach, gate=gate, shift=shift)
    images = pictures(10, 24, 32, seed=seed)
    capture = Recorded if captured else None
    plan, special = specialised(network, [images[:4]], rare=rare, capture=capture)
    for _ in range(3):  # a route is captured when it comes again
        for start in range(0, 10, batch):
            same(plan, special, images[start : start + batch])
    same(plan, special, images[4:6, :, :16])  # another size


def test_gates_that_do_not_vary_are_not_waited_for():
    network = routed_network(5, 3)
    for cell in (network.initial, *network.cells()):
        fix_gates(cell, *[0.5 if t == 1 else -1.0 for t in cell.node.transforms])
    x = pictures(3)
    plan, special = specialised(network, [x])
    for run, most in ((plan, 6), (special, 1)):
        with HostWaits() as device:
            run(x)
        assert len(device.waits) == most, device.places
    same(plan, special, x)


def parting(layer, layers=5):
    """A network of which one cell alone, of a layer, decides by the image: half of eight go down,
    all keep.
    """
    network = routed_network(layers, 3)
    for cell in (network.initial, *network.cells()):
        if cell.node.layer != layer or cell.node.scale != 0:
            fix_gates(cell, *[0.5 if t == 1 else -1.0 for t in cell.node.transforms])
    for cell in network.layers[layer][:1] if layer >= 0 else ():
        logits = InferencePlan(network)(pictures(8))[1].logits.unflatten(1, (-1, 3))
        middle = logits[:, cell.node.index, list(cell.node.transforms)].sort(0).values[3:5].mean(0)
        cell.gate.predict.bias.data -= middle
        cell.gate.predict.weight.data[list(cell.node.transforms).index(1)] = 0.0
        cell.gate.predict.bias.data[list(cell.node.transforms).index(1)] = 1.0
    return network


def test_the_host_waits_where_routes_part_and_at_the_end():
    network = parting(2)
    x = pictures(8)
    plan, special = specialised(network, [x])
    routes = {tuple(row) for row in (plan(x)[1].activations > 0).tolist()}
    assert len(routes) > 1
    with HostWaits() as device:
        special(x)
    assert len(device.waits) == 2, device.places
    same(plan, special, x)


def test_an_image_that_wants_another_way_runs_again_alone():
    network = parting(2)
    x = pictures(8)
    plan = InferencePlan(network)
    routes = [tuple(row) for row in (plan(x)[1].activations > 0).tolist()]
    expected = [i for i, route in enumerate(routes) if route == routes[0]]
    assert 0 < len(expected) < 8
    special = plan.specialise([x[expected]])
    same(plan, special, x)
    assert special.runs_again == 8 - len(expected)


@pytest.mark.parametrize("layer", [-5, 2])
def test_a_frequent_route_is_captured_from_the_last_parting_on(layer):
    Recorded.made = 0
    network = parting(layer)
    x = pictures(8)
    plan, special = specialised(network, [x], capture=Recorded)
    for _ in range(3):
        for image in range(8):
            same(plan, special, x[image : image + 1])
    routes = {tuple(row) for row in (plan(x)[1].activations > 0).tolist()}
    assert Recorded.made == len(routes)
    assert special.runs_again == 0
    # What was returned stays when another image runs.
    kept = special(x[:1])[0]
    before = [maps.clone() for maps in kept]
    for image in range(1, 8):
        special(x[image : image + 1])
    assert all(maps.equal(own) for maps, own in zip(kept, before, strict=True))
    with HostWaits() as device:
        special(x[:1])
    assert len(device.waits) == (2 if layer > 0 else 1), device.places


def test_a_captured_route_that_turns_out_wrong_is_left():
    network = parting(2)
    x = pictures(8)
    plan = InferencePlan(network)
    routes = [tuple(row) for row in (plan(x)[1].activations > 0).tolist()]
    expected = [i for i, route in enumerate(routes) if route == routes[0]]
    _, special = specialised(network, [x[expected]], capture=Recorded)
    for _ in range(2):
        for image in range(8):
            same(plan, special, x[image : image + 1])
    assert special.runs_again == 2 * (8 - len(expected))


def test_cells_that_no_map_comes_to_run_once(monkeypatch):
    network = routed_network(5, 4, reach="published")
    for cell in (network.initial, *network.cells()):
        # The image keeps; what lies behind closed ways runs on zeros, and opens ways of its own.
        here = cell.node.layer < 0 or cell.node.scale == 0
        opened = [0.5 if (t == 1) == here else -1.0 for t in cell.node.transforms]
        fix_gates(cell, *opened)
    x = pictures(2)
    plan, special = specialised(network, [x])
    ran = []
    run = CellPlan.run
    monkeypatch.setattr(
        CellPlan, "run", lambda cell, *args: (ran.append(cell), run(cell, *args))[1]
    )
    plan(x)
    general, _ = len(ran), ran.clear()
    special(x)
    first, _ = len(ran), ran.clear()
    special(x)
    assert general == first
    assert len(ran) < general
    same(plan, special, x)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_packed_weights_at_several_sizes(dtype):
    network = routed_network(4, 3).float()
    plan, special = specialised(network, [pictures(2).float()], dtype=dtype)
    bound = 1e-4 if dtype is None else 3e-2
    for height, width in ((48, 64), (33, 47), (16, 16), (64, 32), (40, 40), (24, 72), (48, 64)):
        x = pictures(2, height, width).float()
        (maps, record), (wanted, other) = special(x), plan(x)
        if (record.activations > 0).equal(other.activations > 0):
            same_maps(maps, wanted, bound)


def test_a_route_may_be_given():
    network = routed_network(4, 3)
    x = pictures(3)
    plan, special = specialised(network, [x])
    record = plan(x)[1]
    for route in (record.activations.flip(0), Route.of(network.space, record)):
        same_maps(special(x, route)[0], plan(x, route)[0])
        same_record(special(x, route)[1], plan(x, route)[1])


def test_what_cannot_be_specialised():
    network = routed_network(3, 3)
    record = InferencePlan(network)(pictures(1))[1]
    static = StaticNetwork(network, Route.of(network.space, record))
    with pytest.raises(ConfigError, match="has but one route"):
        InferencePlan(static).specialise([])
    with pytest.raises(ConfigError, match=r"eval\(\) first"):
        SpecialisedPlan(network.train(), RouteTree(network.space))


def test_rare_routes_are_left_out():
    network = parting(2)
    x = pictures(8)
    plan = InferencePlan(network)
    tree = RouteTree(network.space, rare=0.2)
    tree.add(plan(x)[1])
    tree.add(plan(x[:1].expand(30, -1, -1, -1))[1])
    assert tree.images == 38
    assert len(tree.routes()) == 1
    assert next(iter(tree.routes().values())) >= 31


def test_a_fixed_route_captured():
    network = routed_network(4, 3)
    x = pictures(2)
    plan = InferencePlan(network)
    route = Route.of(network.space, plan(x)[1])
    call = CapturedRoute(plan, x, route, Recorded)
    for images in (x, pictures(2, seed=5)):
        maps, record = call(images)
        wanted, other = plan(images, route)
        same_maps(maps, wanted)
        same_record(record, other)


def test_maps_of_other_sizes_make_room(monkeypatch):
    monkeypatch.setattr(constants, "_MOST_BYTES", 0)
    network = routed_network(5, 4, reach="published", shift=-0.8)
    x, smaller = pictures(2), pictures(2, 32, 32)
    plan, special = specialised(network, [x])
    for images in (x, smaller, x, smaller):
        same(plan, special, images)
