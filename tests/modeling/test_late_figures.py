"""Figures of a device, read together; the device is stood in for."""

import gc
import weakref

import torch
from detectron2.utils.events import EventStorage
from host_waits import HostWaits

from divdr.modeling.late_figures import READ_EVERY, late_figures, put_later


def history(storage, name):
    return [(value, at) for value, at in storage.history(name).values()]


def test_figures_of_the_host_are_put_at_once():
    with EventStorage(3) as storage:
        put_later(storage, ("a", "b"), torch.tensor([1.5, 2.0]))
    assert history(storage, "a") == [(1.5, 3)]
    assert history(storage, "b") == [(2.0, 3)]


def test_twenty_iterations_are_read_at_once_each_in_its_place():
    with EventStorage(0) as storage, HostWaits() as device:
        for iteration in range(READ_EVERY + 3):
            put_later(storage, ("a",), torch.full((1,), 2.0 * iteration, device="cuda"))
            assert len(device.waits) == (iteration + 1 >= READ_EVERY)
            storage.step()
    wanted = [(2.0 * iteration, iteration) for iteration in range(READ_EVERY)]
    assert history(storage, "a") == wanted
    late_figures(storage).read()
    assert history(storage, "a")[READ_EVERY:] == [(40.0, 20), (42.0, 21), (44.0, 22)]


def test_a_trainer_that_reads_decides_when():
    with EventStorage(READ_EVERY - 1) as storage, HostWaits() as device:
        figures = late_figures(storage)
        figures.read_by_trainer = True
        put_later(storage, ("a", "b"), torch.tensor([1.0, 2.0], device="cuda") + 0)
        device.waits.clear()  # the tensor's own way to the device
        seen = []
        figures.wait(torch.ones(2, device="cuda"), seen.append)
        assert (device.waits, seen, storage.latest()) == ([], [], {})
        figures.read()
        assert device.waits == ["tolist"]
    assert seen == [[1.0, 1.0]]
    assert history(storage, "b") == [(2.0, READ_EVERY - 1)]


def test_a_storage_that_is_gone_is_not_held():
    with EventStorage() as storage:
        late_figures(storage).wait(torch.ones(1), lambda values: None)
        put_later(storage, ("a",), torch.ones(1))
    gone = weakref.ref(storage)
    del storage
    gc.collect()
    assert gone() is None
