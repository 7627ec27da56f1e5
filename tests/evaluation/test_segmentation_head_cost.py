"""Figures of a mixture as segmentation head, beside those of the plain head, by hand."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from divdr.config import get_divdr_config
from divdr.evaluation import SegmentationHeadCostEvaluator, build_head_cost_evaluator

# Batches of two images and of one; maps of 8 × 12 and 8 × 8 at stride 4, half as long at stride 8.
SIZES = [(8, 12), (8, 12), (8, 8)]
BATCHES = [(2, 8, 12), (1, 8, 8)]


def build(window=0):
    cfg = get_divdr_config()
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES, head.IN_FEATURES = "SingleGateSegmentor", 3, ["res2", "res3"]
    head.SINGLE_GATE.EXPERTS, head.SINGLE_GATE.WINDOW, head.SINGLE_GATE.HALO = 2, window, 0
    shapes = {"res2": ShapeSpec(channels=4, stride=4), "res3": ShapeSpec(channels=8, stride=8)}
    model = nn.Module()
    model.sem_seg_head = SEM_SEG_HEADS_REGISTRY.get(head.NAME)(cfg, shapes)
    model.sem_seg_head.gate.fit_samples(torch.randn(9, 4))
    return model.eval()


def decoder(rows, columns):
    """1 × 1 convolutions 4 → 4 and 8 → 4 with norm and ReLU, 3 × 3 to three classes."""
    fine = rows * columns
    return fine * (16 + 3 * 4) + fine // 4 * (32 + 3 * 4) + fine * 4 * 9 * 3


@torch.no_grad()
def evaluate(evaluator, head):
    evaluator.reset()
    for count, rows, columns in BATCHES:
        maps = {
            "res2": torch.randn(count, 4, rows, columns),
            "res3": torch.randn(count, 8, rows // 2, columns // 2),
        }
        head(maps)
        evaluator.process([{}] * count, [{}] * count)
    figures = evaluator.evaluate()["sem_seg_head"]
    assert not head._forward_pre_hooks
    return figures


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_mixture_costs_what_ran(window, threshold):
    model = build(window)
    head = model.sem_seg_head
    head.threshold = threshold
    evaluator = build_head_cost_evaluator("none_such", model)
    assert isinstance(evaluator, SegmentationHeadCostEvaluator)
    macs = 0
    for rows, columns in SIZES:
        windows = rows // 4 * (columns // 4) if window else 1
        each = decoder(4, 4) if window else decoder(rows, columns)
        macs += decoder(rows, columns) + windows * (4 * 2 + threshold * each)
    figures = evaluate(evaluator, head)
    assert figures == pytest.approx({"gflops": macs / 3e9, "mean_experts": threshold})


def test_a_plain_head_costs_its_layers():
    plain = build().sem_seg_head.base
    macs = sum(decoder(*size) for size in SIZES) / 3
    figures = evaluate(SegmentationHeadCostEvaluator(plain), plain)
    assert figures == pytest.approx({"gflops": macs / 1e9})
    model = nn.Module()
    model.sem_seg_head = plain
    assert build_head_cost_evaluator("none_such", model) is None
