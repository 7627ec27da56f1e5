"""Numbers between host and device, bit by bit, and how often the host waits for them."""

import copy
import pickle

import pytest
import torch
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import images, mixed_network

from divdr.routing import HostFact, no_negative, to_device, to_host

DTYPES = (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans()),
        max_size=5,
    )
)
def test_tensors_come_back_bit_by_bit_in_one_copy(kinds):
    tensors = []
    for dtype, shape, turned in kinds:
        values = (torch.randn(shape, dtype=torch.float64) * 100).to(dtype)
        tensors.append(values.transpose(0, -1) if turned and shape else values)
    with HostWaits() as device:
        found = to_host(tensors)
        assert device.waits == ["cpu"] * bool(tensors)
        assert to_host(found)[: len(found)] == found  # they are there
        assert len(device.waits) == bool(tensors)
    for one, other in zip(found, tensors, strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)


def test_host_and_device_may_be_mixed():
    with HostWaits() as device:
        here, there = torch.arange(3), torch.arange(4, device="cuda")
        found = to_host([here, there, here])
        assert found[0] is here
        assert device.waits == ["cpu"]
    assert found[1].tolist() == [0, 1, 2, 3]


def test_ways_to_the_device():
    with HostWaits() as device:
        to_device(torch.arange(3), "cuda")
        assert device.waits == []
        torch.arange(3).to("cuda", non_blocking=True)  # ordinary memory
        torch.tensor([1, 2], device="cuda")
        assert len(device.waits) == 2
    assert to_device(torch.arange(3), "cpu").tolist() == [0, 1, 2]


def test_a_fact_is_asked_for_when_the_buffer_has_changed():
    buffer = torch.tensor([-1, 2])
    fact = HostFact(no_negative)
    with HostWaits() as device:
        assert [fact.of(buffer) for _ in range(3)] == [False] * 3
        assert len(device.waits) == 1
        buffer.clamp_(min=0)
        assert [fact.of(buffer) for _ in range(3)] == [True] * 3
        assert len(device.waits) == 2
    assert not fact.of(torch.tensor([-1, 2]))
    with torch.inference_mode():
        uncounted = torch.tensor([1])
        assert fact.of(uncounted)
        uncounted.fill_(-1)
        assert not fact.of(uncounted)
    for twin in (copy.deepcopy(fact), pickle.loads(pickle.dumps(fact))):
        assert twin.of(buffer)
        assert not twin.of(torch.tensor([-1]))


@pytest.mark.parametrize("reach", ["open", "published"])
def test_a_training_step_waits_once_a_layer(reach):
    network = mixed_network(6, 4, reach=reach).train()
    x = images(5)
    for _ in range(2):  # the cost table of the size, too, is brought there without waiting
        with HostWaits() as device:
            outputs, routing = network(x)
            (sum(maps.sum() for maps in outputs) + routing.expected_cost.sum()).backward()
        assert len(device.waits) <= network.space.num_layers
    reached = routing.reached.float().mean(0)
    assert ((reached > 0) & (reached < 1)).any()  # some cells run for some images


def test_a_record_comes_to_the_host_at_once():
    network = mixed_network(4, 3)
    with torch.no_grad(), HostWaits() as device:
        _, routing = network(images(3))
        device.waits.clear()
        found = routing.to("cpu")
        assert device.waits == ["cpu"]
    for one, other in zip(found.tensors(), routing.tensors(), strict=True):
        assert one.equal(other)
        assert one.dtype == other.dtype
