"""Chosen operations with normalisation over two processes, where one may have no image for one."""

import torch
from routed import images
from test_op_gates import choosing
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from divdr.routing import SynchronisedBatchNorm


def _train(rank):
    network = choosing(k=(1, 1), norm=SynchronisedBatchNorm).train()
    model = DistributedDataParallel(network, broadcast_buffers=False)
    torch.manual_seed(rank)
    # One image each: most operations run on one process alone.
    maps, routing = model(images(2).double()[rank : rank + 1])
    sum(m.square().mean() for m in maps).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    statistics = {n: b.clone() for n, b in network.named_buffers() if "running" in n}
    return {"ran": routing.op_weights > 0, "gradients": gradients, "statistics": statistics}


def test_processes_that_choose_other_operations_wait_for_nobody(tmp_path):
    one, two = in_two_processes(_train, tmp_path)
    assert not one["ran"].equal(two["ran"])
    for name, gradient in one["gradients"].items():
        assert gradient is not None, name
        assert gradient.equal(two["gradients"][name]), name
    for name, value in one["statistics"].items():
        assert value.equal(two["statistics"][name]), name
