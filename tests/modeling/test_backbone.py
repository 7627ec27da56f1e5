import copy

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone

from divdr import get_divdr_config
from divdr.errors import ConfigError
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, find_backbone

SMALL = {"layers": 3, "scales": 3, "channels": 4, "stem_channels": 6}


def from_yaml():
    cfg = get_divdr_config()
    cfg.MODEL.BACKBONE.NAME = "DynamicRouting"
    cfg.MODEL.ROUTING.LAYERS = 3
    cfg.MODEL.ROUTING.SCALES = 3
    cfg.MODEL.ROUTING.CHANNELS = 4
    cfg.MODEL.ROUTING.STEM_CHANNELS = 6
    return build_backbone(cfg)


@pytest.mark.parametrize(
    "make",
    [
        from_yaml,
        lambda: instantiate(LazyCall(DynamicRouting)(**SMALL)),
        lambda: DynamicRouting(**SMALL),
    ],
    ids=["yaml", "lazy", "class"],
)
def test_three_ways_to_build_give_one_network(make):
    torch.manual_seed(0)
    backbone = make().eval()
    torch.manual_seed(0)
    wanted = DynamicRouting(**SMALL).eval()
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features, expected = backbone(x), wanted(x)
    assert list(features) == ["res2", "res3", "res4"]
    assert backbone.network.stem.first[0].weight.shape == (6, 3, 3, 3)
    assert all(features[k].equal(expected[k]) for k in expected)
    shapes = backbone.output_shape()
    assert shapes == {
        "res2": ShapeSpec(channels=4, stride=4),
        "res3": ShapeSpec(channels=8, stride=8),
        "res4": ShapeSpec(channels=16, stride=16),
    }
    for name, shape in shapes.items():
        assert features[name].shape == (2, shape.channels, 32 // shape.stride, 48 // shape.stride)
    assert backbone.size_divisibility == 16


def test_layer17_reaches_stride_64():
    backbone = DynamicRouting(
        layers=17, scales=5, scales_per_layer=[2, 3] + [4] * 14 + [5], channels=4
    ).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 128))
    assert features["res6"].shape == (1, 64, 1, 2)
    assert backbone.routing.activations.shape == (1, 198)
    assert backbone.routing.reached.shape == (1, 66)
    assert backbone.size_divisibility == 64


def test_record_describes_the_last_forward():
    backbone = DynamicRouting(**SMALL)
    assert backbone.routing is None
    backbone(torch.randn(2, 3, 32, 48))
    record = backbone.routing
    assert record.activations.shape == (2, 3 * 8)
    assert record.activations.requires_grad
    assert record.expected_cost.requires_grad
    assert not record.real_cost.requires_grad
    assert record.reached.dtype == torch.bool
    assert record.size == (32, 48)
    assert len(record[1]) == 1
    assert record[1].activations.equal(record.activations[1:2])
    assert record[-1].activations.equal(record.activations[1:2])
    backbone.forget()
    assert backbone.routing is None


def test_model_can_be_copied_after_training_forward():
    backbone = DynamicRouting(**SMALL)
    backbone(torch.randn(1, 3, 32, 32))
    twin = copy.deepcopy(backbone)
    assert twin.routing is None
    assert all(a.equal(b) for a, b in zip(twin.parameters(), backbone.parameters(), strict=True))


def test_norms_by_name():
    assert any(
        isinstance(m, FrozenBatchNorm2d) for m in DynamicRouting(**SMALL, norm="FrozenBN").modules()
    )
    with pytest.raises(ConfigError, match="unknown normalisation 'XN'"):
        DynamicRouting(norm="XN", **SMALL)


def test_find_backbone_wants_exactly_one():
    backbone = DynamicRouting(**SMALL)
    assert find_backbone(torch.nn.Sequential(torch.nn.ReLU(), backbone)) is backbone
    with pytest.raises(ValueError, match="0 DynamicRouting"):
        find_backbone(torch.nn.ReLU())


def test_decoder_loss_ignores_unlabelled_pixels():
    shapes = DynamicRouting(**SMALL).output_shape()
    decoder = DynamicRoutingDecoder(input_shape=shapes, num_classes=3, norm="BN")
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1] = 2.0
    targets = torch.tensor([[[1, 255], [0, 255]]])
    # Two labelled pixels: -log softmax of class 1 and of class 0 at logits (0, 2, 0).
    total = torch.logsumexp(torch.tensor([0.0, 2.0, 0.0]), 0)
    found = decoder.criterion(logits, targets)["loss_sem_seg"]
    assert float(found) == pytest.approx(float((total - 2 + total) / 2))
    nothing = decoder.criterion(logits, torch.full((1, 2, 2), 255))
    assert float(nothing["loss_sem_seg"]) == 0.0


def test_decoder_returns_logits_of_the_image_size():
    backbone = DynamicRouting(**SMALL).eval()
    decoder = DynamicRoutingDecoder(
        input_shape=backbone.output_shape(), num_classes=5, norm="BN"
    ).eval()
    with torch.no_grad():
        logits, losses = decoder(backbone(torch.randn(2, 3, 32, 48)))
    assert logits.shape == (2, 5, 32, 48)
    assert losses == {}
