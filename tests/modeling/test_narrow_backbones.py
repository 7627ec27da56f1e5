"""Static backbones of any width, against torchvision's networks and published costs."""

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.checkpoint.resnet_names import detectron2_resnet_names
from divdr.config import add_divdr_config
from divdr.errors import ConfigError
from divdr.modeling import MobileNet, backbone_macs, resnet18


def randomised(model):
    """Running statistics unlike those of a new network, so that their order counts."""
    for name, values in model.state_dict().items():
        if name.endswith("running_mean"):
            values.normal_(0, 0.1)
        if name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
    return model.eval()


def test_resnet18_is_torchvisions():
    theirs = randomised(torchvision.models.resnet18(weights=None))
    ours = resnet18(1.0, "BN").eval()
    names = theirs.state_dict()
    names = {name: value for name, value in names.items() if not name.startswith("fc.")}
    found = ours.load_state_dict(detectron2_resnet_names(names), strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    x = torch.randn(2, 3, 64, 96)
    wanted = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    maps = ours(x)
    for name, layer in zip(("res2", "res3", "res4", "res5"), range(1, 5), strict=True):
        wanted = getattr(theirs, f"layer{layer}")(wanted)
        assert torch.allclose(maps[name], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_mobilenet_is_torchvisions(kind):
    theirs = randomised(getattr(torchvision.models, kind)(weights=None).features[:-1])
    # torchvision's normalisation has another epsilon.
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-5
    ours = MobileNet(kind, 1.0, "BN").eval()
    ours.load_state_dict(
        dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)), strict=True
    )
    x, found = torch.randn(2, 3, 64, 96), ours(torch.zeros(1, 3, 64, 96))
    assert {name: 64 // maps.shape[2] for name, maps in found.items()} == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "res5": 32,
    }
    wanted = x
    last = {}
    for block in theirs:
        wanted = block(wanted)
        last[wanted.shape[2]] = wanted  # the last map of each size
    for name, maps in ours(x).items():
        assert torch.allclose(maps, last[maps.shape[2]], atol=1e-4), name
        assert ours.output_shape()[name].channels == maps.shape[1]


def test_costs_are_the_published_ones():
    # 1.814 and 0.217 GFLOPs with classifiers and, of the second, a last convolution (0.01).
    assert backbone_macs(resnet18(1.0, "BN").eval(), 224, 224) / 1e9 == pytest.approx(
        1.814, rel=0.01
    )
    large = MobileNet("mobilenet_v3_large", 1.0, "BN").eval()
    assert 0.200 < backbone_macs(large, 224, 224) / 1e9 < 0.222


@settings(deadline=None, max_examples=15)
@given(
    width=st.floats(0.01, 1.5),
    network=st.sampled_from(["resnet18", "mobilenet_v3_small", "mobilenet_v3_large"]),
)
def test_any_width_gives_the_maps_of_a_detector(width, network):
    cfg = get_cfg()
    add_divdr_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_narrow_fpn_backbone"
    cfg.MODEL.NARROW_BACKBONE.NETWORK = network
    cfg.MODEL.NARROW_BACKBONE.WIDTH = width
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    maps = backbone(torch.zeros(1, 3, 64, 64))
    assert {name: each.shape[1:] for name, each in maps.items()} == {
        f"p{level}": (8, 64 // 2**level, 64 // 2**level) for level in range(2, 7)
    }
    cfg.MODEL.FPN.IN_FEATURES = ["res6"]
    with pytest.raises(ConfigError, match=r"the backbone has \['res2', 'res3', 'res4', 'res5'\]"):
        build_backbone(cfg, ShapeSpec(channels=3))
