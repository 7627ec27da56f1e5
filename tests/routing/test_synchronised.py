"""Normalisation over the images of two processes, some of which reach a cell and some do not."""

import copy

import pytest
import torch
import torch.distributed as dist
from routed import images, mixed_network
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from divdr.routing import BatchNorm, DynamicRoutingNetwork, RoutingSpace, SynchronisedBatchNorm

# Maps (N, 3, H, W) that the two processes get: alike, of other sizes, none on one of them.
SHAPES = [
    ((2, 4, 6), (2, 4, 6)),
    ((1, 4, 6), (3, 2, 5)),
    ((0, 4, 6), (3, 2, 5)),
    ((2, 4, 6), (0, 1, 1)),
    ((1, 1, 1), (1, 1, 1)),
    ((1, 1, 1), (0, 1, 1)),
    ((0, 4, 6), (0, 1, 1)),
]


def maps_of(case, dtype=torch.float64):
    generator = torch.Generator().manual_seed(case)
    return [
        (torch.randn(n, 3, h, w, generator=generator, dtype=torch.float64) * 3 + 5).to(dtype)
        for n, h, w in SHAPES[case]
    ]


def weights_of(maps):
    """What the loss multiplies each number of the output by."""
    return [torch.linspace(-1, 1, max(1, x.numel())).to(x)[: x.numel()].view_as(x) for x in maps]


def layer(kind, momentum=0.1):
    norm = kind(3, momentum=momentum).double()
    norm.weight.data = torch.tensor([0.5, 1.0, 2.0]).double()
    norm.bias.data = torch.tensor([0.1, -0.2, 0.3]).double()
    norm.running_mean += torch.tensor([4.0, 5.0, 6.0])
    norm.running_var += torch.tensor([1.0, 2.0, 3.0])
    return norm


def in_a_row(maps):
    """All values of maps of any sizes as one map of one image, (1, C, 1, values)."""
    return torch.cat([x.transpose(0, 1).flatten(1) for x in maps], dim=1)[None, :, None]


def _normalise(rank):
    found = {}
    for momentum in (0.1, None):
        norm = layer(SynchronisedBatchNorm, momentum)
        for case in range(len(SHAPES)):
            x = maps_of(case)[rank].requires_grad_()
            y = norm(x)
            norm.zero_grad()
            (y * weights_of(maps_of(case))[rank]).sum().backward()
            gradients = torch.stack([norm.weight.grad, norm.bias.grad])
            dist.all_reduce(gradients)
            statistics = norm.running_mean.clone(), norm.running_var.clone()
            found[momentum, case] = y.detach(), x.grad, gradients, *statistics
    return found


def test_two_processes_normalise_like_one_with_all_their_images(processes):
    found = [one["norm"] for one in processes]
    for momentum in (0.1, None):
        norm = layer(BatchNorm, momentum)
        for case in range(len(SHAPES)):
            # Moments by values, so that maps of any sizes can be put into one.
            x = in_a_row(maps_of(case)).requires_grad_()
            norm.zero_grad()
            y = norm(x) if x.numel() else x.clone()
            (y * in_a_row(weights_of(maps_of(case)))).sum().backward()
            both = [found[rank][momentum, case] for rank in range(2)]
            assert in_a_row([one[0] for one in both]).allclose(y), case
            assert in_a_row([one[1] for one in both]).allclose(x.grad), case
            for _, _, gradients, mean, var in both:
                wanted = [norm.weight.grad, norm.bias.grad] if x.numel() else [torch.zeros(3)] * 2
                assert gradients.allclose(torch.stack(wanted).double())
                assert mean.allclose(norm.running_mean)
                assert var.allclose(norm.running_var)
            if x.numel() <= 3:  # no variance to learn from
                before = found[0][momentum, case - 1]
                assert both[0][3].equal(before[3])
                assert both[0][4].equal(before[4])


def routed_network(norm):
    """Small, with gates that differ by image and cells that few images reach."""
    source = mixed_network(5, 3, seed=8, shift=-1.5)
    options = {"channels": 4, "norm": norm}
    network = DynamicRoutingNetwork(RoutingSpace.build(5, 3), **options).double()
    network.load_state_dict(source.state_dict())
    return network.train()


def batches():
    """Three batches of four images; each process gets half of each."""
    return [images(4, 64, 96, seed) for seed in (1, 2, 3)]


def loss_of(maps, routing):
    """A sum over images, so that two processes' gradients add up to one's."""
    total = sum((m * torch.linspace(-1, 1, m[0].numel()).view_as(m[0])).sum() for m in maps)
    return total + routing.expected_cost.sum() / 1e6


def _train_network(rank):
    network = routed_network(SynchronisedBatchNorm)
    wrapped = DistributedDataParallel(network, broadcast_buffers=False)
    ran = []
    for number, cell in enumerate(network.cells()):
        cell.register_forward_pre_hook(lambda m, args, number=number: ran.append(number))
    records = []
    for batch in batches():
        ran.append(-1)
        maps, routing = wrapped(batch[2 * rank : 2 * rank + 2])
        loss_of(maps, routing).backward()
        records.append(routing.reached)
    gradients = {k: p.grad * 2 for k, p in network.named_parameters()}  # DDP averages
    return network.state_dict(), gradients, records, ran


def test_two_processes_train_the_network_of_one(processes):
    found = [one["network"] for one in processes]
    network = routed_network(BatchNorm)
    before = copy.deepcopy(network.state_dict())
    records = []
    for batch in batches():
        maps, routing = network(batch)
        loss_of(maps, routing).backward()
        records.append(routing.reached)
    for state, gradients, _, _ in found:
        for name, value in network.state_dict().items():
            assert state[name].allclose(value, rtol=1e-9, atol=1e-12), name
        for name, parameter in network.named_parameters():
            scale = parameter.grad.abs().max().clamp(min=1.0)
            assert (gradients[name] - parameter.grad).abs().max() <= 1e-9 * scale, name
    # The cases that matter occur: cells reached on one process alone, and nowhere at all.
    halves = torch.stack([torch.cat(records)[i : i + 2].any(dim=0) for i in range(0, 12, 2)])
    halves = halves.view(3, 2, -1)
    assert (halves[:, 0] & ~halves[:, 1]).any()
    assert (~halves[:, 0] & halves[:, 1]).any()
    nowhere = ~halves.any(dim=1)
    never = nowhere.all(dim=0).nonzero().flatten().tolist()
    assert never
    for number in never:
        prefix = next(n for n, m in network.named_modules() if m is list(network.cells())[number])
        for name, value in before.items():
            if name.startswith(prefix + "."):
                assert found[0][0][name].equal(value), name
    # All processes run the same cells, those that somebody reaches.
    assert found[0][3] == found[1][3]
    wanted = [[-1, *(~row).nonzero().flatten().tolist()] for row in nowhere]
    assert found[0][3] == [number for row in wanted for number in row]


class _NotingSyncBatchNorm(nn.BatchNorm2d):
    """Stands for anybody's normalisation that waits for other processes; notes empty maps."""

    def __init__(self, channels):
        super().__init__(channels)
        self.empty = []

    def forward(self, x):
        if len(x):
            return super().forward(x)
        self.empty.append(x.dtype)
        return x * self.weight[:, None, None]


def half_precision_network(norm):
    """Cells off stride 4 are reached by bright images alone."""
    network = DynamicRoutingNetwork(RoutingSpace.build(3, 2), channels=4, norm=norm)
    for cell in [network.initial, *network.cells()]:
        nn.init.zeros_(cell.gate.predict.weight)
        nn.init.ones_(cell.gate.predict.bias)
    return network.train()


def close_downs(network):
    """No image of this process leaves stride 4."""
    for cell in [network.initial, *network.cells()]:
        for place, transform in enumerate(cell.node.transforms):
            if transform == 2:
                cell.gate.predict.bias.data[place] = -1.0
    return network


def _train_in_half_precision(rank):
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        torch.manual_seed(0)
        network = half_precision_network(SynchronisedBatchNorm)
        if rank:
            close_downs(network)
        with torch.autocast("cpu", dtype):
            maps, routing = network(torch.randn(2, 3, 64, 64))
            loss = sum(m.float().square().mean() for m in maps)
        (loss + (routing.expected_cost / routing.full_cost).sum()).backward()
        grads = [p.grad for p in network.parameters()]
        norm = network.layers[0][1].ops["sep_conv_3x3"][1][1]
        found[str(dtype)] = {
            "reached": routing.reached[:, 1].any(),
            "finite": all(g is not None and bool(g.isfinite().all()) for g in grads),
            "mean": norm.running_mean,
            "maps": maps[1].dtype,
        }
        noting = close_downs(half_precision_network(_NotingSyncBatchNorm))
        if rank == 0:
            noting = half_precision_network(_NotingSyncBatchNorm)
        with torch.autocast("cpu", dtype):
            noting(torch.randn(2, 3, 64, 64))
        found[str(dtype)]["empty"] = {
            d for m in noting.modules() if isinstance(m, _NotingSyncBatchNorm) for d in m.empty
        }
    return found


def test_half_precision_with_images_on_one_process_alone(processes):
    first, second = (one["half"] for one in processes)
    for dtype in map(str, (torch.float16, torch.bfloat16)):
        one, other = first[dtype], second[dtype]
        assert (bool(one["reached"]), bool(other["reached"])) == (True, False)
        assert one["finite"]
        assert other["finite"]
        assert one["mean"].abs().sum() > 0
        assert one["mean"].equal(other["mean"])
        # Whoever sends statistics of half precision maps sends float32; so must the others.
        assert one["empty"] == set()
        assert other["empty"] == {torch.float32}


def _run(rank):
    return {
        "norm": _normalise(rank),
        "network": _train_network(rank),
        "half": _train_in_half_precision(rank),
    }


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found, in one start of both."""
    return in_two_processes(_run, tmp_path_factory.mktemp("processes"))


def test_one_process_alone_is_plain_batch_norm():
    x = maps_of(0)[0]
    one, other = layer(SynchronisedBatchNorm), layer(BatchNorm)
    assert one(x).equal(other(x))
    assert one.eval()(x).equal(other.eval()(x))
    assert one.running_var.equal(other.running_var)


def _on_gpu(rank):
    found = {}
    for dtype in (torch.float32, torch.float16):
        norm = layer(SynchronisedBatchNorm).float().cuda()
        x = maps_of(1, dtype)[rank].cuda().requires_grad_()
        y = norm(x)
        (y * weights_of(maps_of(1, dtype))[rank].cuda()).sum().backward()
        found[dtype] = y.detach().cpu().double(), x.grad.cpu().double(), norm.running_var.cpu()
    return found


@pytest.mark.cuda
def test_two_processes_on_a_gpu_normalise_like_one(tmp_path):
    found = in_two_processes(_on_gpu, tmp_path)
    for dtype, bound in ((torch.float32, 1e-4), (torch.float16, 2e-2)):
        norm = layer(BatchNorm)
        x = in_a_row(maps_of(1, dtype)).double().requires_grad_()
        y = norm(x)
        (y * in_a_row(weights_of(maps_of(1, dtype)))).sum().backward()
        assert in_a_row([one[dtype][0] for one in found]).allclose(y, atol=bound)
        assert in_a_row([one[dtype][1] for one in found]).allclose(x.grad, atol=bound)
        assert found[0][dtype][2].double().allclose(norm.running_var, rtol=bound)
