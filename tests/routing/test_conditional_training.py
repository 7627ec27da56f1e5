"""Training that leaves out what no image of a batch opens, against training that runs it all."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import images, mixed_network

from divdr.routing import DynamicRoutingNetwork


def pair(**options) -> tuple[DynamicRoutingNetwork, DynamicRoutingNetwork]:
    dense = mixed_network(4, 3, **options).train()
    conditional = mixed_network(4, 3, conditional_training=True, **options).train()
    conditional.load_state_dict(copy.deepcopy(dense.state_dict()))
    return dense, conditional


def train(network, batch):
    torch.manual_seed(7)
    maps, routing = network(batch)
    weights = [torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m) for m in maps]
    loss = sum((m * w).mean() for m, w in zip(maps, weights, strict=True))
    (loss + routing.expected_cost.sum() / 1e6 + routing.activations.sum()).backward()
    return maps, routing


def agree(dense, conditional, batch):
    """Equal maps, records and gradients; returns the record."""
    maps, routing = train(dense, batch)
    other_maps, other = train(conditional, batch)
    for one, two in zip(maps, other_maps, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)
    assert torch.allclose(routing.activations, other.activations, rtol=1e-9)
    assert routing.reached.equal(other.reached)
    assert routing.real_cost.equal(other.real_cost)
    for (name, one), two in zip(dense.named_parameters(), conditional.parameters(), strict=True):
        assert two.grad is not None, name
        assert torch.allclose(one.grad, two.grad, rtol=1e-8, atol=1e-10), name
    return routing


def calls(network) -> dict[str, int]:
    """Forwards by layer name, counted from now on."""
    counts: dict[str, int] = {}

    def count(name):
        def hook(module, args):
            counts[name] = counts.get(name, 0) + 1

        return hook

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(count(name))
    return counts


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 99),
    shift=st.sampled_from([-1.5, -0.5, 0.5]),
    count=st.integers(1, 4),
    reach=st.sampled_from(["open", "published"]),
)
def test_maps_and_gradients_are_those_of_dense_training(seed, shift, count, reach):
    dense, conditional = pair(seed=seed, shift=shift, reach=reach)
    agree(dense, conditional, images(count, 33, 40, seed=seed))


def test_only_what_an_image_opens_runs():
    dense, conditional = pair(shift=-0.7)
    ran = calls(conditional)
    routing = agree(dense, conditional, images(2))
    gates = routing.activations.unflatten(1, (-1, 3))
    skipped = 0
    for cell in conditional.cells():
        opened = (gates[:, cell.node.index] > 0).any(dim=0)
        prefix = f"layers.{cell.node.layer}.{cell.node.scale}."
        for transform, name in ((0, "up"), (2, "down")):
            if transform in cell.node.transforms:
                assert ran.get(f"{prefix}changes.{name}.0", 0) == int(opened[transform])
        op = f"{prefix}ops.sep_conv_3x3.0"
        assert ran.get(op, 0) == int(opened.any())
        reached = bool(routing.reached[:, cell.node.index].any())
        assert ran.get(f"{prefix}gate.reduce.0", 0) == int(reached)
        skipped += reached and not bool(opened.any())
    assert skipped


def test_batch_statistics_are_over_all_images_that_reach_the_cell():
    dense, conditional = pair(shift=-0.3)
    ran = calls(conditional)
    agree(dense, conditional, images(4))
    compared = 0
    for (name, one), two in zip(dense.named_modules(), conditional.modules(), strict=True):
        if isinstance(one, torch.nn.BatchNorm2d):
            convolution = name.rpartition(".")[0] + "." + str(int(name.rpartition(".")[2]) - 1)
            if convolution in ran:
                assert torch.allclose(one.running_mean, two.running_mean)
                assert torch.allclose(one.running_var, two.running_var)
                compared += 1
    assert compared > 20


def test_drop_path_draws_the_same_numbers():
    dense, conditional = pair(shift=-0.7, drop_path=0.5)
    for network in (dense, conditional):
        network.drop_path.progress = 1.0
    routing = agree(dense, conditional, images(3))
    assert float(routing.activations.count_nonzero()) > 0


def test_synchronised_normalisation_always_runs(monkeypatch):
    class SyncBatchNorm(torch.nn.BatchNorm2d):
        """Stands for one that waits for other processes."""

    network = DynamicRoutingNetwork(
        mixed_network(3, 2).space, channels=4, norm=SyncBatchNorm, conditional_training=True
    )
    for cell in network.cells():
        torch.nn.init.constant_(cell.gate.predict.bias, -50.0)
        torch.nn.init.zeros_(cell.gate.predict.weight)
    ran = calls(network.train())
    network(images(2).float())
    missing = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert not [name for name in missing if name not in ran]


def test_it_is_a_setting_of_the_backbone():
    from detectron2.modeling import build_backbone

    from divdr.config import get_divdr_config

    cfg = get_divdr_config()
    cfg.MODEL.BACKBONE.NAME = "DynamicRouting"
    cfg.MODEL.ROUTING.LAYERS, cfg.MODEL.ROUTING.SCALES, cfg.MODEL.ROUTING.CHANNELS = 3, 2, 4
    for wanted in (False, True):
        cfg.MODEL.ROUTING.CONDITIONAL_TRAINING = wanted
        backbone = build_backbone(cfg)
        for cell in backbone.network.cells():
            torch.nn.init.constant_(cell.gate.predict.bias, -50.0)
            torch.nn.init.zeros_(cell.gate.predict.weight)
        ran = calls(backbone.network)
        backbone.train()(images(2).float())
        assert ("layers.0.0.ops.sep_conv_3x3.0" not in ran) == wanted
