"""BatchNorm's statistics before evaluation, by one process and by two."""

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from divdr.engine import PreciseBNHook, update_precise_bn
from divdr.engine.precise_bn import CommonBNHook
from divdr.routing import BatchNorm, DynamicRoutingNetwork, RoutingSpace, SynchronisedBatchNorm


def test_precise_statistics_are_those_of_the_batches():
    norm = torch.nn.BatchNorm2d(2)
    batches = [torch.randn(4, 2, 3, 3) * (i + 1) + i for i in range(3)]
    update_precise_bn(norm.train(), iter(batches), 3)
    together = torch.cat(batches)
    assert norm.running_mean.allclose(together.mean(dim=(0, 2, 3)), atol=1e-5)
    assert norm.running_var.allclose(together.var(dim=(0, 2, 3), unbiased=False), rtol=1e-5)
    assert norm.momentum == 0.1


def test_cells_that_nobody_reaches_keep_their_statistics():
    network = DynamicRoutingNetwork(RoutingSpace.build(3, 2), channels=4).train()
    for cell in [network.initial, *network.cells()]:
        torch.nn.init.zeros_(cell.gate.predict.weight)
        bias = torch.full_like(cell.gate.predict.bias, -1.0)
        bias[list(cell.node.transforms).index(1)] = 1.0
        cell.gate.predict.bias.data = bias
    unreached = network.layers[1][1].ops["sep_conv_3x3"][1][1]
    unreached.running_mean.fill_(0.3)
    reached = network.layers[1][0].ops["sep_conv_3x3"][1][1]
    before = reached.running_mean.clone()
    update_precise_bn(network, (torch.randn(2, 3, 32, 32) for _ in range(2)), 2)
    assert unreached.running_mean.eq(0.3).all()
    assert unreached.running_var.eq(1.0).all()
    assert not reached.running_mean.equal(before)


def test_batches_count_by_their_values():
    norm = nn.BatchNorm1d(2).train()  # maps of other dimensions than images' too
    batches = [torch.randn(n, 2) + n for n in (8, 2, 3)]
    update_precise_bn(norm, batches, 2)
    together = torch.cat(batches[:2])  # the third is more than asked for
    assert norm.running_mean.allclose(together.mean(dim=0), atol=1e-5)
    assert norm.running_var.allclose(together.var(dim=0, unbiased=False), rtol=1e-5)


def test_a_single_value_is_no_statistic():
    norm = BatchNorm(2).train()
    norm.running_mean += 0.25
    update_precise_bn(norm, [torch.randn(1, 2, 1, 1), torch.randn(0, 2, 3, 3)], 2)
    assert norm.running_mean.eq(0.25).all()
    assert norm.running_var.eq(1.0).all()


def test_two_values_are_one():
    norm = BatchNorm(1).train()
    update_precise_bn(norm, [torch.tensor([1.0, 5.0]).view(1, 1, 1, 2)], 1)
    assert norm.running_mean.item() == pytest.approx(3.0)
    assert norm.running_var.item() == pytest.approx(4.0)


def test_layers_in_evaluation_keep_their_statistics():
    frozen = nn.BatchNorm2d(2).eval()
    assert update_precise_bn(frozen, [torch.randn(4, 2, 3, 3)], 1) == 0
    model = nn.Sequential(nn.BatchNorm2d(2), frozen)
    update_precise_bn(model, [torch.randn(4, 2, 3, 3) + 5], 1)
    assert model[0].running_mean.min() > 3
    assert frozen.running_mean.eq(0).all()


class _Parts(nn.Module):
    """The first layer gets all images thrice, as parts of heads do, each other one those that its
    number says."""

    def __init__(self, *counts):
        super().__init__()
        self.counts = counts
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(1 + len(counts)))

    def forward(self, x):
        for layer, count in zip(self.norms, (len(x), *self.counts), strict=True):
            if count:
                layer(x[:count].repeat(3 if layer is self.norms[0] else 1, 1, 1, 1))


def test_layers_that_few_images_came_to_are_counted_and_told_once(caplog):
    # Of 20 images a batch, and 60 together: nothing, 3, 27, 33 (enough) and 60.
    model = _Parts(0, 1, 9, 11, 20).train()
    batches = [torch.randn(20, 2, 3, 3)] * 3
    assert update_precise_bn(model, batches, 3) == 2
    # Of 20 together, 9 are less than half of them and 11 are not.
    assert update_precise_bn(model, batches, 1) == 2
    hook = PreciseBNHook(2, model, lambda: batches, 3)
    _Loop(hook).train(0, 6)
    told = [r.getMessage() for r in caplog.records if "statistics of fewer" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("2 layers of BatchNorm")
    assert "TEST.PRECISE_BN.NUM_ITER (now 3)" in told[0]


class _Loop(TrainerBase):
    def __init__(self, *hooks, act=lambda: None):
        super().__init__()
        self.register_hooks(hooks)
        self.act = act

    def run_step(self):
        self.act()


class _Logging(nn.Module):
    """Normalises, and logs how often it was run."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        get_event_storage().put_scalar("runs", self.runs)
        return self.norm(x)


def test_passes_come_before_evaluations_and_leave_no_trace_in_the_log():
    model = _Logging().train()
    batches = [torch.randn(4, 2, 3, 3) + 7] * 3
    hook = PreciseBNHook(4, model, lambda: batches, 3, max_iter=10)
    loop, after = _Loop(hook), []
    loop.act = lambda: after.append((loop.iter, model.runs))
    loop.train(0, 10)
    # Before the evaluations after 4, 8 and all 10 iterations (counted from 0).
    assert [runs for _, runs in after] == [0, 0, 0, 0, 3, 3, 3, 3, 6, 6]
    assert model.runs == 9
    assert "runs" not in loop.storage.latest()


def test_a_run_that_stops_before_its_end_keeps_its_statistics():
    model = _Logging().train()
    hook = PreciseBNHook(0, model, lambda: [torch.randn(4, 2, 3, 3)], 1, max_iter=10)
    _Loop(hook).train(0, 6)
    assert model.runs == 0
    hook.max_iter = None  # a trainer that knows of no other end
    _Loop(hook).train(0, 6)
    assert model.runs == 1


class _Branches(nn.Module):
    """The first layer gets all images, the second those of one process, the third none."""

    def __init__(self, norm):
        super().__init__()
        self.norms = nn.ModuleList(norm(2) for _ in range(3))
        self.inputs = [[], [], []]

    def forward(self, batch):
        maps, count = batch
        for place, layer in enumerate(self.norms):
            x = maps if place == 0 else maps[: count if place == 1 else 0]
            self.inputs[place].append(x)
            if len(x) or isinstance(layer, SynchronisedBatchNorm):
                layer(x)
        return maps.sum() * 0.0 + sum(p.sum() for p in self.parameters())


def _batches(rank):
    generator = torch.Generator().manual_seed(rank)
    sizes = ((4, 3), (2, 5)) if rank == 0 else ((3, 3), (1, 4))
    return [
        (torch.randn(n, 2, size, size, generator=generator) * (n + 1) + size, n * (1 - rank))
        for n, size in sizes
    ]


def _run(rank):
    found = {}
    for kind in (BatchNorm, SynchronisedBatchNorm):
        model = _Branches(kind).train()
        for layer in model.norms:
            layer.running_mean += 0.25
        update_precise_bn(DistributedDataParallel(model), _batches(rank), 2)
        found[kind.__name__] = [(m.running_mean, m.running_var) for m in model.norms]
    found["inputs"] = model.inputs

    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)).train()
    model[1].eval()  # stands still, but was trained before
    model[2].eval().requires_grad_(False)  # of a model that was finished before
    model[2].running_mean += rank
    seen = []

    def step():
        seen.append([m.running_mean.clone() for m in model[:2]])
        for layer in model[:2]:
            layer.running_mean += 1 + rank
            layer.running_var += 2 * rank

    loop = _Loop(CommonBNHook((0, 3, 4), model), act=step)
    loop.train(0, 5)
    found["seen"] = torch.stack([torch.stack(one)[:, 0] for one in seen])
    found["var"] = model[0].running_var
    found["finished"] = model[2].running_mean
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return in_two_processes(_run, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("kind", ["BatchNorm", "SynchronisedBatchNorm"])
def test_statistics_are_those_of_all_values_of_all_processes(processes, kind):
    inputs = [one["inputs"] for one in processes]
    for rank in range(2):
        for place, (mean, var) in enumerate(processes[rank][kind]):
            values = [x.transpose(0, 1).flatten(1) for one in inputs for x in one[place]]
            together = torch.cat(values, dim=1)
            if place == 2:  # nobody's images came there
                assert together.numel() == 0
                assert mean.eq(0.25).all()
                assert var.eq(1.0).all()
                continue
            assert mean.allclose(together.mean(dim=1), atol=1e-5)
            assert var.allclose(together.var(dim=1, unbiased=False), rtol=1e-5)
        # The second layer's came from the first process alone.
        assert processes[1]["inputs"][1] == [] or all(len(x) == 0 for x in inputs[1][1])


def test_running_statistics_become_their_mean_before_others_look(processes):
    first, second = (one["seen"][:, 0] for one in processes)
    # Steps add 1 on one process and 2 on the other; means follow the third, fourth and last.
    assert first.tolist() == [0, 1, 2, 4.5, 6]
    assert second.tolist() == [0, 2, 4, 4.5, 6]
    assert processes[0]["seen"].equal(processes[0]["seen"][:, :1].expand(-1, 2))
    for rank, one in enumerate(processes):
        assert one["var"].tolist() == [6, 6]
        assert one["finished"].tolist() == [rank, rank]
