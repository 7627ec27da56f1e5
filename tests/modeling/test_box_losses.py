"""Losses of every row at once, against Detectron2's, which pick out the rows of objects."""

import pytest
import torch
from boxes import CLASSES, LABELS, SHAPE, config, sampled
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage
from host_waits import HostWaits
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.modeling.roi_heads.box_losses import predictor_losses, true_deltas


def predictor_of(kind="smooth_l1", *, agnostic=False, sigmoid=False):
    cfg = config()
    box = cfg.MODEL.ROI_BOX_HEAD
    box.BBOX_REG_LOSS_TYPE, box.CLS_AGNOSTIC_BBOX_REG = kind, agnostic
    box.USE_SIGMOID_CE, box.BBOX_REG_LOSS_WEIGHT = sigmoid, 0.7
    return FastRCNNOutputLayers(cfg, ShapeSpec(channels=SHAPE.channels))


def answers(predictor, count, seed=3):
    generator = torch.Generator().manual_seed(seed)
    widths = CLASSES + 1, predictor.bbox_pred.out_features
    made = [torch.randn(count, width, generator=generator) for width in widths]
    return [each.requires_grad_() for each in made]


def found(compute, predictor, labels):
    """Losses, their gradients and the logged figures."""
    pair = answers(predictor, sum(map(len, labels)))
    with EventStorage(4) as storage:
        losses = compute(predictor, pair, sampled(labels))
        sum(losses.values()).backward()
        figures = {name: value for name, (value, _) in storage.latest().items()}
    return losses, [each.grad for each in pair], figures


def own(predictor, pair, proposals):
    return predictor_losses(predictor, *pair, proposals)


def theirs(predictor, pair, proposals):
    return predictor.losses(tuple(pair), proposals)


def same(predictor, labels):
    one, other = (found(each, predictor, labels) for each in (own, theirs))
    assert one[0].keys() == other[0].keys()
    for name, value in other[0].items():
        torch.testing.assert_close(one[0][name], value, rtol=1e-4, atol=1e-6)
    for mine, wanted in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)
    assert one[2] == pytest.approx(other[2])


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_as_detectron2_gives_them(kind, agnostic):
    same(predictor_of(kind, agnostic=agnostic), LABELS)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, CLASSES), max_size=5), min_size=1, max_size=3),
    st.booleans(),
)
def test_whatever_was_sampled(labels, sigmoid):
    if any(labels):
        same(predictor_of(sigmoid=sigmoid), labels)


def test_empty_background_does_not_matter():
    predictor = predictor_of("ciou")
    proposals = sampled([[0, 6]])
    proposals[0].proposal_boxes.tensor[1] = 0.0  # no height, no width
    proposals[0].gt_boxes.tensor[1] = float("nan")
    pair = answers(predictor, 2)
    with EventStorage():
        losses = predictor_losses(predictor, *pair, proposals)
    sum(losses.values()).backward()
    assert losses["loss_box_reg"].isfinite()
    assert pair[1].grad.isfinite().all()
    assert (pair[1].grad[1] == 0).all()


def test_a_predictor_with_losses_of_its_own_is_asked():
    class Own(FastRCNNOutputLayers):
        def losses(self, predictions, proposals):
            return {"loss_own": predictions[0].sum()}

    predictor = Own(config(), ShapeSpec(channels=SHAPE.channels))
    with EventStorage():
        assert set(found(own, predictor, LABELS)[0]) == {"loss_own"}


def test_deltas_lead_onto_the_true_boxes():
    transform = predictor_of().box2box_transform
    proposals = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 8.0, 8.0]])
    boxes = torch.tensor([[12.0, 18.0, 36.0, 50.0], [4.0, 4.0, 8.0, 8.0]])
    deltas = true_deltas(transform, proposals, boxes)
    # Centre (20, 40) to (24, 34), 20 × 40 to 24 × 32; weights 10, 10, 5, 5.
    wanted = [2.0, -1.5, 5 * torch.tensor(1.2).log().item(), 5 * torch.tensor(0.8).log().item()]
    assert deltas[0].tolist() == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(transform.apply_deltas(deltas, proposals), boxes)


def test_the_host_waits_for_nothing():
    predictor = predictor_of()
    pair, proposals = answers(predictor, 9), sampled()
    with EventStorage(4) as storage, HostWaits() as device:
        sum(predictor_losses(predictor, *pair, proposals).values()).backward()
        assert device.waits == []
        assert not storage.latest()
