"""The loss of segmentation, beside sums over single pixels."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from divdr.errors import ConfigError
from divdr.modeling import DynamicRoutingDecoder, SegmentationLoss
from divdr.settings import SegmentationLossSettings

CLASSES, IGNORED = 4, 255


def batch(seed, labels=(*range(CLASSES), IGNORED)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, CLASSES, 5, 6, generator=generator) * 3
    chosen = torch.randint(len(labels), (2, 5, 6), generator=generator)
    return logits.requires_grad_(), torch.tensor(labels)[chosen]


def pixels(logits, targets):
    """(probabilities, label) of each pixel, as plain numbers."""
    flat = logits.detach().double().softmax(1).permute(0, 2, 3, 1).reshape(-1, CLASSES).tolist()
    return list(zip(flat, targets.flatten().tolist(), strict=True))


def one_pixel(found, label, weights, smoothing):
    if label == IGNORED:
        return 0.0
    own = -(1 - smoothing) * weights[label] * math.log(found[label])
    even = sum(w * -math.log(p) for w, p in zip(weights, found, strict=True)) / CLASSES
    return own + smoothing * even


def naive(logits, targets, weights, share, smoothing):
    each = [one_pixel(*pixel, weights, smoothing) for pixel in pixels(logits, targets)]
    if share < 1:
        hard = sorted(each, reverse=True)[: max(1, int(share * len(each)))]
        return sum(hard) / len(hard)
    total = sum(weights[label] for label in targets.flatten().tolist() if label != IGNORED)
    return sum(each) / (total or 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    labels=st.sets(st.sampled_from((*range(CLASSES), IGNORED)), min_size=1),
    weights=st.lists(st.sampled_from((0.0, 0.5, 1.0, 7.0)), min_size=CLASSES, max_size=CLASSES),
    share=st.sampled_from((0.001, 0.2, 0.75, 1.0)),
    smoothing=st.sampled_from((0.0, 0.1)),
)
def test_equals_a_sum_over_pixels(seed, labels, weights, share, smoothing):
    given_weights = tuple(weights) if any(weights) else ()
    loss = SegmentationLoss(
        CLASSES,
        IGNORED,
        SegmentationLossSettings(
            class_weights=given_weights, hard_pixels=share, label_smoothing=smoothing
        ),
    )
    logits, targets = batch(seed, tuple(labels))
    found = loss(logits, targets)
    assert list(found) == ["loss_sem_seg"]
    wanted = naive(logits, targets, given_weights or [1.0] * CLASSES, share, smoothing)
    assert found["loss_sem_seg"].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    found["loss_sem_seg"].backward()
    assert torch.isfinite(logits.grad).all()


def test_the_defaults_are_the_mean_cross_entropy_bit_for_bit():
    logits, targets = batch(0)
    found = SegmentationLoss(CLASSES, IGNORED)(logits, targets)["loss_sem_seg"]
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    assert torch.equal(found, total / (targets != IGNORED).sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sets(st.sampled_from((*range(CLASSES), IGNORED)), min_size=1))
def test_dice_is_that_of_the_classes_in_the_labels(seed, labels):
    loss = SegmentationLoss(CLASSES, IGNORED, SegmentationLossSettings(dice=2.0))
    logits, targets = batch(seed, tuple(labels))
    found = loss(logits, targets)
    each = []
    for number in sorted({*targets.flatten().tolist()} - {IGNORED}):
        shown = [(p[number], y == number) for p, y in pixels(logits, targets) if y != IGNORED]
        both = sum(p for p, own in shown if own)
        each.append(1 - 2 * both / sum(p + own for p, own in shown))
    wanted = 2.0 * sum(each) / len(each) if each else 0.0
    assert found["loss_dice"].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    found["loss_dice"].backward()
    assert torch.isfinite(logits.grad).all()


def decoder(**options):
    shapes = {"res2": ShapeSpec(channels=4, stride=4), "res3": ShapeSpec(channels=8, stride=8)}
    return DynamicRoutingDecoder(
        input_shape=shapes, num_classes=CLASSES, loss=SegmentationLossSettings(**options)
    )


def test_a_decoder_weights_its_losses_and_keeps_its_state():
    head = decoder(dice=1.0, class_weights=(1.0, 2.0, 3.0, 4.0))
    assert set(head.state_dict()) == set(decoder().state_dict())
    maps = {"res2": torch.randn(1, 4, 8, 8), "res3": torch.randn(1, 8, 4, 4)}
    targets = torch.randint(CLASSES, (1, 32, 32))
    losses = {}
    for head.loss_weight in (1.0, 0.5):
        _, losses[head.loss_weight] = head(maps, targets)
    assert list(losses[1.0]) == ["loss_sem_seg", "loss_dice"]
    for name, value in losses[1.0].items():
        assert losses[0.5][name].item() == pytest.approx(value.item() / 2)


def test_what_cannot_be_is_told(monkeypatch):
    with pytest.raises(ConfigError, match="CLASS_WEIGHTS has 2 numbers, and the head 4 classes"):
        decoder(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match="set one of the two"):
        decoder(class_weights=(1.0,) * CLASSES, balance="log")
    loss = SegmentationLoss(CLASSES, IGNORED, SegmentationLossSettings(balance="log"))
    with pytest.raises(ConfigError, match=r"divdr\.engine\.Trainer counts"):
        loss(*batch(0))
    monkeypatch.setitem(sys.modules, "detectron2.projects.deeplab.loss", None)
    with pytest.raises(ConfigError, match="project DeepLab"):
        decoder(hard_pixels=0.2)
