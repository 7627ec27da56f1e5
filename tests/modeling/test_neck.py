"""Necks over the routed maps, and what they and other backbones cost."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone
from torch import nn

from divdr import get_divdr_config
from divdr.errors import ConfigError
from divdr.modeling import DynamicRouting, ProjectionNeck, backbone_macs, neck_macs

FIVE = ["res2", "res3", "res4", "res5", "res6"]


def routed(**options) -> DynamicRouting:
    return DynamicRouting(
        layers=5, scales=5, scales_per_layer=[2, 3, 4, 4, 5], channels=4, **options
    )


def config(name: str, **routing):
    cfg = get_divdr_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ROUTING.CHANNELS = 4
    cfg.MODEL.ROUTING.LAYERS = 5
    cfg.MODEL.ROUTING.SCALES_PER_LAYER = [2, 3, 4, 4, 5]
    return cfg


def test_layer17_has_66_cells_and_198_numbers():
    space = DynamicRouting(
        layers=17, scales_per_layer=[2, 3, *[4] * 14, 5], channels=2, scales=5
    ).space
    assert sum(space.scales_per_layer) == 66
    assert space.activation_size == 198
    assert [4 * 2**s for s in range(space.out_scales)] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("name", "features", "levels"),
    [
        ("build_dynamic_routing_projection_backbone", FIVE, {2: 4, 3: 8, 4: 16, 5: 32, 6: 64}),
        ("build_dynamic_routing_fpn_backbone", FIVE, {2: 4, 3: 8, 4: 16, 5: 32, 6: 64}),
        ("build_dynamic_routing_fpn_backbone", FIVE[:4], {2: 4, 3: 8, 4: 16, 5: 32, 6: 64}),
        (
            "build_retinanet_dynamic_routing_fpn_backbone",
            FIVE[1:4],
            {3: 8, 4: 16, 5: 32, 6: 64, 7: 128},
        ),
    ],
)
def test_registered_backbones_give_equal_channels_at_every_level(name, features, levels):
    cfg = config(name)
    cfg.MODEL.FPN.IN_FEATURES = features
    backbone = build_backbone(cfg).eval()
    shapes = backbone.output_shape()
    assert {n: s.stride for n, s in shapes.items()} == {f"p{k}": v for k, v in levels.items()}
    with torch.no_grad():
        outputs = backbone(torch.randn(2, 3, 128, 192))
    for level, stride in levels.items():
        wanted = (2, 8, 128 // stride, -(-192 // stride))
        assert tuple(outputs[f"p{level}"].shape) == wanted
    assert backbone.size_divisibility >= 32


def test_projection_is_a_matrix_product_at_every_pixel():
    bottom_up = routed()
    neck = ProjectionNeck(bottom_up, ["res3", "res6"], 8).eval()
    nn.init.normal_(neck.project3.bias)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs, maps = neck(x), bottom_up.eval()(x)
    weight = neck.project3.weight[:, :, 0, 0]
    wanted = torch.einsum("oc,nchw->nohw", weight, maps["res3"]) + neck.project3.bias.view(-1, 1, 1)
    assert outputs["p3"].allclose(wanted, atol=1e-5)
    assert set(outputs) == {"p3", "p6"}
    assert neck.output_shape()["p6"] == ShapeSpec(channels=8, stride=64)


def test_normalised_projection_has_no_bias():
    neck = ProjectionNeck(routed(), FIVE, 8, norm="BN")
    assert neck.project4.bias is None
    assert isinstance(neck.project4.norm, nn.BatchNorm2d)


def test_features_that_do_not_exist_are_named():
    cfg = config("build_dynamic_routing_projection_backbone")
    cfg.MODEL.ROUTING.SCALES_PER_LAYER = [2, 3, 4, 4, 4]
    cfg.MODEL.FPN.IN_FEATURES = FIVE
    with pytest.raises(ConfigError, match=r"IN_FEATURES is .*res6.* has .*res5"):
        build_backbone(cfg)


def resnet50_fpn(stride_in_1x1: bool):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    return build_backbone(cfg)


def conv_macs(model: nn.Module, size: int) -> float:
    """Multiplications of all convolutions, by hooks on their outputs."""
    total = 0.0

    def count(module, args, output):
        nonlocal total
        kernel = module.kernel_size[0] * module.kernel_size[1]
        total += output.numel() * kernel * module.in_channels / module.groups

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return total / 1e9


@pytest.mark.parametrize(("stride_in_1x1", "printed"), [(True, 85.4), (False, 88.4)])
def test_resnet50_fpn_costs_what_the_paper_prints(stride_in_1x1, printed):
    backbone = resnet50_fpn(stride_in_1x1)
    counted = backbone_macs(backbone, 800, 800) / 1e9
    convolutions = conv_macs(backbone, 800)
    assert convolutions == pytest.approx(printed, abs=0.05)
    # Normalisation, ReLU and pooling add what is counted by hand: 135.04M normalised numbers × 2,
    # 115.84M rectified ones, 64 × 200 × 200 maxima of 9 (and p6's of 1, 256 × 13 × 13).
    rest = (135.04e6 * 2 + 115.84e6 + 64 * 200 * 200 * 9 + 256 * 13 * 13) / 1e9
    if stride_in_1x1:
        assert counted - convolutions == pytest.approx(rest, rel=1e-4)
    assert counted - convolutions < 0.5


def test_neck_costs_its_convolutions():
    neck = ProjectionNeck(routed(), FIVE, 8)
    sizes = [(64, 64, 4), (32, 32, 8), (16, 16, 16), (8, 8, 32), (4, 4, 64)]
    by_hand = sum(rows * columns * channels * 8 for rows, columns, channels in sizes)
    assert neck_macs(neck, 256, 256) == by_hand
    assert neck_macs(routed(), 256, 256) == 0.0
    fpn = FPN(routed(), FIVE, 8)
    by_hand += sum(rows * columns * 9 * 8 * 8 for rows, columns, _ in sizes)
    assert neck_macs(fpn, 256, 256) == by_hand
    # Maps of 800 pixels do not align (25 and 13 rows); models pad such an image to 832.
    assert neck_macs(fpn, 800, 800) == neck_macs(fpn, 832, 832)
    assert fpn.bottom_up.network.stem is not None  # counting left the neck as it was
    assert next(fpn.parameters()).device.type == "cpu"


def test_group_normalisation_fits_narrow_cells():
    # 24 channels: 8 groups of 3 in a cell, 4 groups of 3 in the gate's 12 channels.
    bottom_up = DynamicRouting(layers=2, scales=2, channels=24, norm="GN").eval()
    groups = {
        m.num_channels: m.num_groups for m in bottom_up.modules() if isinstance(m, nn.GroupNorm)
    }
    assert groups[24] == 8
    assert groups[12] == 4
    assert groups[48] == 16
    assert not [m for m in bottom_up.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        alone = bottom_up(torch.ones(1, 3, 32, 32))["res2"]
        other = bottom_up.train()(torch.cat([torch.ones(1, 3, 32, 32), torch.randn(1, 3, 32, 32)]))
    assert other["res2"][:1].allclose(alone, rtol=1e-2, atol=1e-2)  # whatever else is in the batch
