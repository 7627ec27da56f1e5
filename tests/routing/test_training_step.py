"""The training step: its gradients, the layout of its maps, and how often the host waits for it."""

import pytest
import torch
import torch.nn.functional as F
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import images, mixed_network
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from divdr.routing import DOWN, KEEP, UP, DynamicRoutingNetwork, RoutingSpace
from divdr.routing.ops import PointwiseConv2d
from divdr.routing.weighted_sum import Part, weighted_sum


def naive_training(network, batch):
    """Maps and gates (N, cells, 3) of a training forward, each sum and product on its own."""
    count = len(batch)
    sizes = network.space.map_sizes(*batch.shape[-2:])
    sums = {0: network.stem(batch)}
    masks = {0: torch.ones(count, dtype=torch.bool)}
    record = []
    for layer in [[network.initial], *network.layers]:
        following: dict[int, torch.Tensor] = {}
        reached: dict[int, torch.Tensor] = {}
        for cell in layer:
            scale = cell.node.scale
            gates = torch.zeros(count, 3, dtype=batch.dtype)
            rows = masks.get(scale, torch.zeros(count, dtype=torch.bool)).nonzero()[:, 0]
            if len(rows):
                x = sums[scale][rows]
                decided = torch.relu(torch.tanh(cell.gate(x)))
                gates = gates.index_put(
                    (rows[:, None], torch.tensor(cell.node.transforms)[None]), decided
                )
                closed = (gates[rows].sum(1) < 1e-4)[:, None, None, None]
                feature = F.relu(sum(op(x) for op in cell.ops.values()))
                for t in cell.node.transforms:
                    y = feature
                    if t == UP:
                        size = sizes[scale - 1]
                        y = F.interpolate(cell.changes["up"](y), size=size, mode="bilinear")
                    if t == DOWN:
                        y = cell.changes["down"](y)
                    y = y * gates[rows, t][:, None, None, None]
                    if t == KEEP:
                        y = torch.where(closed, x, y)
                    target = scale + {UP: -1, KEEP: 0, DOWN: 1}[t]
                    whole = torch.zeros(count, *y.shape[1:], dtype=y.dtype)
                    whole = whole.index_put((rows,), y)
                    following[target] = following.get(target, 0) + whole
                    goes = (gates[rows, t] > 0) & ~closed.flatten()
                    if t == KEEP:
                        goes = goes | closed.flatten()
                    mask = torch.zeros(count, dtype=torch.bool)
                    mask[rows] = goes
                    reached[target] = reached.get(target, torch.zeros_like(mask)) | mask
            if cell is not network.initial:
                record.append(gates)
        sums, masks = following, reached
    maps = []
    for scale, channels in enumerate(network.out_channels()):
        shape = (count, channels, *sizes[scale])
        maps.append(sums.get(scale, torch.zeros(shape, dtype=batch.dtype)))
    return maps, torch.stack(record, dim=1)


def loss_of(maps, gates):
    weights = [torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m) for m in maps]
    fit = sum((m * w).mean() for m, w in zip(maps, weights, strict=True))
    return fit + (gates * torch.linspace(0.5, 1, gates.shape[1])[:, None]).sum()


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1.2, 0.5), st.booleans(), st.integers(33, 70))
def test_gradients_equal_those_of_a_naive_network(seed, shift, conditional, rows):
    network = mixed_network(4, 3, seed=seed, shift=shift, conditional_training=conditional).train()
    batch = images(4, rows, 48, seed)
    naive_maps, naive_gates = naive_training(network, batch)
    loss_of(naive_maps, naive_gates).backward()
    wanted = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    maps, routing = network(batch)
    gates = routing.activations.unflatten(1, (-1, 3))
    loss_of(maps, gates).backward()
    for one, other in zip(maps, naive_maps, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-10)
    assert torch.allclose(gates, naive_gates, rtol=1e-9, atol=1e-10)
    for name, p in network.named_parameters():
        naive = torch.zeros_like(p) if wanted[name] is None else wanted[name]
        assert torch.allclose(p.grad, naive, rtol=1e-6, atol=1e-9), name


@st.composite
def sums(draw):
    """Parts of a sum over N images, N and the size of the sum."""
    count, size = draw(st.integers(1, 4)), (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        some = draw(st.booleans())
        images = torch.randperm(count, generator=generator)[: draw(st.integers(0, count))]
        rows = len(images) if some else count
        of = ((size[0] + 1) // 2, (size[1] + 1) // 2) if draw(st.booleans()) else size
        maps = torch.randn(rows, 3, *of, dtype=torch.float64, generator=generator)
        weight = torch.rand(rows, dtype=torch.float64, generator=generator)
        weighted = draw(st.booleans())
        parts.append(Part(maps, weight if weighted else None, images if some else None))
    return parts, count, size


def plain_sum(parts, count, size):
    total = torch.zeros(count, 3, *size, dtype=torch.float64)
    for maps, weight, rows in parts:
        total = total + 0 * maps.sum() + (0 if weight is None else 0 * weight.sum())
        if weight is not None:
            maps = maps * weight[:, None, None, None]
        if len(maps):
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        else:
            maps = maps.new_zeros(0, 3, *size)
        for row in range(len(maps)):
            image = row if rows is None else int(rows[row])
            one = torch.zeros_like(total)
            one[image] = 1.0
            total = total + one * maps[row]
    return total


@settings(max_examples=40, deadline=None)
@given(sums())
def test_weighted_sums_and_their_gradients_equal_the_plain_ones(problem):
    parts, count, size = problem
    leaves = [t for p in parts for t in p[:2] if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.linspace(-1, 1, count * 3 * size[0] * size[1], dtype=torch.float64)
    results = []
    for function in (weighted_sum, plain_sum):
        total = function(parts, count, size)
        grads = torch.autograd.grad((total.flatten() * weights).sum(), leaves, allow_unused=True)
        results.append(
            (
                total,
                [
                    torch.zeros_like(x) if g is None else g
                    for g, x in zip(grads, leaves, strict=True)
                ],
            )
        )
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_gradcheck_of_a_weighted_sum():
    maps = [
        torch.randn(3, 2, *s, dtype=torch.float64, requires_grad=True) for s in ((4, 6), (2, 3))
    ]
    weights = [torch.rand(n, dtype=torch.float64, requires_grad=True) for n in (3, 2)]

    def function(first, second, one, two):
        images = torch.tensor([2, 0])
        return weighted_sum([Part(first, one), Part(second[:2], two, images)], 3, (4, 6))

    assert torch.autograd.gradcheck(function, (*maps, *weights))


@pytest.mark.parametrize("count", [1, 3, 17])
def test_pointwise_convolutions_are_plain_ones(count):
    torch.manual_seed(0)
    pointwise, plain = PointwiseConv2d(6, 10, 1), torch.nn.Conv2d(6, 10, 1)
    plain.load_state_dict(pointwise.state_dict())
    x = torch.randn(count, 6, 5, 7)
    results = []
    for layer, maps in ((pointwise, x.clone()), (plain.double(), x.double())):
        maps.requires_grad_()
        y = layer(maps)
        y.square().sum().backward()
        results.append((y, maps.grad, layer.weight.grad, layer.bias.grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", range(2, 10))
@pytest.mark.parametrize("size", [(2, 2), (7, 9), (16, 16)])
def test_strided_pointwise_convolutions_of_few_channels(channels, size):
    # PyTorch's own gradient of the weights overruns its memory here on CPUs without AVX-512.
    torch.manual_seed(0)
    layer = PointwiseConv2d(channels, 2 * channels, 1, stride=2, bias=False)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last)
    y = layer(x.requires_grad_())
    gradient = torch.randn(y.shape)
    for _ in range(5):
        layer.zero_grad()
        layer(x).backward(gradient)
        weight = torch.einsum("nohw,nchw->oc", gradient, x[:, :, ::2, ::2])
        assert torch.allclose(layer.weight.grad[:, :, 0, 0], weight, rtol=1e-4, atol=1e-4)
    kept = torch.einsum("oc,nchw->nohw", layer.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    assert torch.allclose(y, kept, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last)


class Layouts(TorchDispatchMode):
    """Notes operations that change the layout of maps.

    Attributes:
        changes: names of operations whose result has channels first though a map that went in
            has channels last, or the other way round.
    """

    def __init__(self):
        super().__init__()
        self.changes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        layouts = {layout(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        found = {layout(t) for t in tree_leaves(output) if isinstance(t, torch.Tensor)}
        # A view that is read in another order moves nothing.
        if not func.is_view and len((layouts | found) - {None}) > 1:
            self.changes.append(str(func))
        return output


def layout(t):
    """ "first" or "last"; None where the two are the same, or for no map."""
    if t.dim() != 4 or t.shape[1] == 1 or t.shape[2] * t.shape[3] == 1 or 0 in t.stride():
        return None
    if not t.numel() or t.shape[2] <= 3:  # kernels
        return None
    return "last" if t.is_contiguous(memory_format=torch.channels_last) else "first"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"gate": "full", "conditional_training": True}])
def test_no_operation_of_a_training_step_changes_the_layout(dtype, options):
    # All open, so that every cell runs for all images.
    network = DynamicRoutingNetwork(RoutingSpace.build(4, 3), channels=8, **options).train()
    batch = torch.randn(2, 3, 128, 160)
    with Layouts() as layouts, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        maps, routing = network(batch)
        loss = sum((m * torch.randn_like(m)).sum() for m in maps) + routing.activations.sum()
        loss.backward()
    assert layouts.changes == ["aten.clone.default"]  # of the batch itself


@pytest.mark.parametrize("mode", ["dense", "conditional", "evaluation"])
def test_the_host_waits_once_a_layer(mode):
    network = mixed_network(5, 3, seed=3, conditional_training=mode == "conditional")
    network.train(mode != "evaluation")
    with HostWaits():
        network(images(4))  # what is computed once for a size
    with HostWaits() as device:
        _, routing = network(images(4))
    assert not routing.reached.all(), "the images must differ in route"
    assert not routing.reached.equal(routing.reached[:1].expand(4, -1))
    # The initial cell waits too; training asks nothing of the last layer.
    assert device.waits == ["cpu"] * (6 if mode == "evaluation" else 5)


def test_a_gate_that_is_all_but_closed_adds_nothing_in_training():
    network = DynamicRoutingNetwork(RoutingSpace((1, 1)), channels=4).double().train()
    batch = images(2)
    routes = torch.zeros(2, 6, dtype=torch.float64)
    routes[:, KEEP] = 0.5
    with torch.no_grad():
        wanted, _ = network(batch, routes)
        routes[:, 3 + KEEP] = 0.9e-4  # below what opens a cell, for both images or for one
        both, _ = network(batch, routes)
        routes[1, 3 + KEEP] = 0.5
        one, _ = network(batch, routes)
    assert both[0].equal(wanted[0])
    assert one[0][0].equal(wanted[0][0])
    assert not one[0][1].equal(wanted[0][1])
