"""How often the host waits for the device in a training step of box heads, and in their forward."""

import pytest
import torch
from boxes import make, pooled, sampled
from detectron2.utils.events import EventStorage
from host_waits import HostWaits

HEADS = {
    "HydraBoxHead": {},
    "CoEBoxHead": {"EXPERTS": 5},
}


def head_of(name):
    torch.manual_seed(0)
    head, predictor = make(name, **HEADS[name])
    if name == "CoEBoxHead":
        head.progress = 0.9
        head.threshold = 0.5
    return head, predictor


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_waits_four_times_at_most(name, first):
    head, predictor = head_of(name)
    x, proposals = pooled(), sampled()
    if not first:
        with EventStorage():
            head.losses(x, predictor, proposals)
    with EventStorage(), HostWaits() as device:
        _, losses = head.losses(x, predictor, proposals)
        sum(losses.values()).backward()
    assert len(device.waits) <= (4 if first else 2), device.places


@pytest.mark.parametrize("name", HEADS)
def test_a_forward_waits_once(name):
    head, predictor = head_of(name)
    x = pooled()
    head.eval()
    with torch.no_grad(), HostWaits() as device:
        head.predict(x, predictor)
    assert len(device.waits) == 1, device.places
