"""Scales, flips and windows of semantic segmentation, beside what the model says by itself."""

import math
from itertools import pairwise

import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import Backbone, SemanticSegmentor
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from divdr.config import get_divdr_config
from divdr.errors import ConfigError
from divdr.evaluation import BackboneCostEvaluator, RoutingEvaluator, augmented
from divdr.evaluation.augmented import starts
from divdr.modeling import (
    DynamicRouting,
    DynamicRoutingDecoder,
    attach_routing,
)


@pytest.fixture
def model():
    backbone = DynamicRouting(layers=4, scales=3, channels=4)
    for cell in backbone.network.cells():
        nn.init.normal_(cell.gate.predict.weight, 0, 3.0)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[110.0] * 3, pixel_std=[60.0] * 3
    )
    return model.eval()


def config(sizes=(), flip=False, window=(), overlap=0.25):
    cfg = get_divdr_config()
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.TEST.AUG.ENABLED = bool(sizes)
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = sizes or (400,), flip
    cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.OVERLAP = window, overlap
    return cfg


def image(rows=64, columns=96, **about):
    pixels = torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8)
    return {"image": pixels, "height": rows, "width": columns, "file_name": "a.png", **about}


def at(item, short):
    """The item as a loader gives it at a size of the shorter edge."""
    pixels = item["image"].permute(1, 2, 0).numpy()
    made = ResizeShortestEdge(short, 4000).get_transform(pixels).apply_image(pixels)
    return {**item, "image": torch.tensor(made).permute(2, 0, 1).contiguous()}


@torch.no_grad()
def run(model, item, **options):
    cfg, runs = augmented(config(**options), model)
    assert (0 if options.get("sizes") else 800) == cfg.INPUT.MIN_SIZE_TEST
    return runs([item])[0]


@torch.no_grad()
def alone(model, item):
    return model([item])[0]


@pytest.mark.parametrize(
    ("options", "short"),
    [
        ({"sizes": (48,)}, 48),
        ({"window": (64, 96)}, 64),
        ({"sizes": (48,), "window": (64, 96)}, 48),
    ],
)
def test_a_single_forward_is_the_plain_evaluation(model, options, short):
    attach_routing(model)
    item = image()
    found, plain = run(model, item, **options), alone(model, at(item, short))
    assert found["sem_seg"].equal(plain["sem_seg"])
    assert found["routing"].activations.equal(plain["routing"].activations)
    assert set(found) == set(plain)


def test_nothing_changes_unless_asked_for(model):
    cfg = config()
    assert augmented(cfg, model) == (cfg, model)


def test_probabilities_of_scales_and_flips_are_averaged(model):
    item = image()
    found = run(model, item, sizes=(32, 64), flip=True)["sem_seg"]
    wanted = torch.zeros(3, 64, 96)
    for short in (32, 64):
        view = at(item, short)
        wanted += alone(model, view)["sem_seg"].softmax(0)
        mirrored = alone(model, {**view, "image": view["image"].flip(-1)})["sem_seg"]
        wanted += mirrored.softmax(0).flip(-1)
    torch.testing.assert_close(found, wanted / 4)


def test_windows_are_averaged_where_they_overlap(model):
    item = image(64, 120)
    found = run(model, item, window=(64, 64), overlap=0.5)["sem_seg"]
    # Two steps of 28 columns, since one of 56 would leave less than half a window of overlap.
    pieces = [(0, 64), (28, 92), (56, 120)]
    total, seen = torch.zeros(3, 64, 120), torch.zeros(120)
    for left, right in pieces:
        piece = {"image": item["image"][..., left:right], "height": 64, "width": 64}
        total[..., left:right] += alone(model, piece)["sem_seg"].softmax(0)
        seen[left:right] += 1
    torch.testing.assert_close(found, total / seen)


def test_windows_of_a_scale_are_put_together_before_they_are_resized(model):
    item = image(64, 64, height=32, width=32)
    found = run(model, item, window=(64, 32), overlap=0.0)["sem_seg"]
    halves = [
        alone(model, {"image": item["image"][..., 32 * i : 32 * i + 32], "height": 64, "width": 32})
        for i in range(2)
    ]
    whole = torch.cat([half["sem_seg"].softmax(0) for half in halves], -1)
    # Bilinear, to half the size: the mean of two by two.
    torch.testing.assert_close(found, nn.functional.avg_pool2d(whole[None], 2)[0])


@given(st.integers(1, 400), st.integers(1, 200), st.floats(0, 0.95))
def test_windows_cover_an_image_and_overlap_enough(length, side, overlap):
    found = starts(length, side, overlap)
    if length <= side:
        assert found == [0]
        return
    assert (found[0], found[-1]) == (0, length - side)
    widest = max(1, math.floor(side * (1 - overlap)))
    gaps = [after - before for before, after in pairwise(found)]
    assert 0 < min(gaps) <= max(gaps) <= widest
    assert (len(found) - 2) * widest < length - side  # one fewer would not do


def test_costs_are_sums_over_what_ran(model):
    attach_routing(model)
    items = [image(64, 96), image(64, 64, file_name="b.png")]
    _, runs = augmented(config(sizes=(32, 64), window=(64, 64), overlap=0.0), model)
    evaluator = RoutingEvaluator("some_set", model)
    evaluator.reset()
    for item in items:
        evaluator.process([item], runs([item]))
    figures = evaluator.evaluate()["routing"]

    views = [at(items[0], 32), at(items[1], 32), items[1]]
    views += [{"image": items[0]["image"][..., left : left + 64]} for left in (0, 32)]
    records = [alone(model, view)["routing"] for view in views]
    real = sum(float(record.real_cost) for record in records)
    head = sum(
        model.sem_seg_head.macs([(r // 4, c // 4), (r // 8, c // 8), (r // 16, c // 16)])
        for r, c in (record.size for record in records)
    )
    assert figures["images"] == 2
    assert figures["forwards"] == 2.5
    assert figures["real_gflops"] == pytest.approx(real / 2e9, rel=1e-6)
    assert figures["real_gflops_with_head"] == pytest.approx((real + head) / 2e9, rel=1e-6)
    expected = sum(float(record.expected_cost) for record in records)
    assert figures["expected_gflops"] == pytest.approx(expected / 2e9, rel=1e-6)
    assert figures["all_open_gflops"] == pytest.approx(sum(r.full_real_cost for r in records) / 2e9)


class Plain(Backbone):
    """27 · 4 = 108 multiply-adds a pixel."""

    size_divisibility = 32
    _out_features, _out_feature_channels, _out_feature_strides = ["c"], {"c": 4}, {"c": 1}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)

    def forward(self, x):
        return {"c": self.conv(x)}


def test_a_plain_backbones_cost_is_a_sum_too(model):
    evaluator = BackboneCostEvaluator(Plain())
    item = image()
    evaluator.process([item], [run(model, item, sizes=(40, 64))])
    # 40 × 60 pixels are padded to 64 × 64.
    gflops = evaluator.evaluate()["cost"]["gflops"]
    assert gflops * 1e9 == pytest.approx(108 * (64 * 64 + 64 * 96))


def test_what_cannot_be_is_told(model):
    with pytest.raises(ConfigError, match=r"TEST\.SLIDING_WINDOW is for SemanticSegmentor, not"):
        augmented(config(window=(64, 64)), nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"must be empty or \(height, width\)"):
        augmented(config(window=(64,)), model)
