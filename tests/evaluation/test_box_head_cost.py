"""Figures of box heads on images with different numbers of proposals, against counts by hand."""

from dataclasses import replace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from divdr.config import get_divdr_config
from divdr.evaluation import BoxHeadCostEvaluator, build_head_cost_evaluator
from divdr.modeling.roi_heads import box_head_of

COUNTS = [[3, 0], [5]]  # proposals of the images of two batches


def build(name, box, fc=1):
    cfg = get_divdr_config()
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    head = cfg.MODEL.ROI_BOX_HEAD
    head.NAME, head.POOLER_RESOLUTION = box, 2
    head.NUM_FC, head.FC_DIM = fc, 5
    head.SINGLE_GATE.EXPERTS = 2
    head.COE.EXPERTS, head.COE.DELEGATOR_CONV_DIMS = 2, []
    head.COE.DELEGATOR_FC_DIMS, head.COE.EXPERT_FC_DIMS = [5], [7]
    model = nn.Module()
    model.roi_heads = build_roi_heads(cfg, {"p2": ShapeSpec(channels=3, stride=4)})
    return model.eval()


def proposals(count):
    instances = Instances((40, 40))
    corners = torch.rand(count, 2) * 20
    instances.proposal_boxes = Boxes(torch.cat([corners, corners + 10], 1))
    return instances


@torch.no_grad()
def evaluate(model):
    evaluator = build_head_cost_evaluator("none_such", model)
    assert isinstance(evaluator, BoxHeadCostEvaluator)
    evaluator.reset()
    for counts in COUNTS:
        images = ImageList(torch.zeros(len(counts), 3, 40, 40), [(40, 40)] * len(counts))
        features = {"p2": torch.randn(len(counts), 3, 10, 10)}
        model.roi_heads(images, features, [proposals(n) for n in counts], None)
        evaluator.process([{}] * len(counts), [{}] * len(counts))
    figures = evaluator.evaluate()["box_head"]
    assert not model.roi_heads.box_pooler._forward_hooks
    return figures


PLAIN = 12 * 5 + 5 + 5 * (5 + 16)  # linear layer, ReLU, scores and deltas


def test_a_plain_head_costs_the_same_for_every_proposal():
    figures = evaluate(build("StandardROIHeads", "FastRCNNConvFCHead"))
    assert figures == pytest.approx(
        {"gflops": PLAIN * 8 / 3 / 1e9, "mflops_per_proposal": PLAIN / 1e6, "proposals": 8 / 3}
    )


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_mixture_costs_what_ran(threshold):
    model = build("MixtureROIHeads", "CoEBoxHead")
    model.roi_heads.box_head.threshold = threshold
    figures = evaluate(model)
    macs = PLAIN + 5 * 2  # the selector
    if threshold == 1.0:
        macs += 12 * 7 + 7 + 7 * 21
    assert figures["mean_experts"] == threshold
    assert figures["mflops_per_proposal"] == pytest.approx(macs / 1e6)
    assert figures["gflops"] == pytest.approx(macs * 8 / 3 / 1e9)


@pytest.mark.parametrize("experts", [0, 1, 2])
def test_a_single_gate_costs_what_ran(experts):
    model = build("MixtureROIHeads", "SingleGateBoxHead", fc=2)
    box = model.roi_heads.box_head
    box.gate.fit_samples(torch.randn(9, 5))
    box.settings = replace(box.settings, exit="anytime" if experts == 2 else "confidence")
    box.threshold = float(experts == 1)
    figures = evaluate(model)
    rest = 5 * 5 + 5 + 5 * (5 + 16)  # the second layer, ReLU, scores and deltas
    macs = 12 * 5 + 5 + rest + 5 * 2 + experts * rest  # and the gate
    assert figures["mean_experts"] == experts
    assert figures["gflops"] == pytest.approx(macs * 8 / 3 / 1e9)


def test_models_without_one_box_head_have_no_such_figures():
    assert box_head_of(nn.Linear(1, 1)) is None
    assert build_head_cost_evaluator("none_such", nn.Linear(1, 1)) is None
