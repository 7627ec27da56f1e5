"""Balance losses of a routed ResNet over the images of two processes."""

import pytest
import torch
from routed_models import routed_resnet
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from divdr.modeling import attach_expert_balance
from divdr.moe import RoutingLayer


class Model(nn.Module):
    """The loss dict of a detector, without a detector."""

    def __init__(self):
        super().__init__()
        self.backbone = routed_resnet("MODEL.RESNETS.OUT_FEATURES", ["res2"])

    def forward(self, batch):
        maps = self.backbone(torch.stack([item["image"] for item in batch]))
        return {"loss_maps": 0.0 * sum(m.mean() for m in maps.values())}


def built():
    torch.manual_seed(0)
    model = Model()
    for layer in model.modules():
        if isinstance(layer, RoutingLayer):
            layer.router.gate.k = 2
            layer.router.gate.score.weight.data.normal_()
            # Pooled maps are above 0: the deviation of the noise is next to nothing.
            layer.router.gate.noise.weight.data.fill_(-6.0)
    attach_expert_balance(model, weight=(0.5, 0.0), steps=3, iterations=4)
    return model


def run(model, images):
    """Losses and the gates' gradients of two steps."""
    found = []
    for step in range(2):
        model.zero_grad()
        losses = model([{"image": image * (1 + step)} for image in images])
        (losses["loss_maps"] + losses["loss_importance"]).backward()
        gates = [p.grad.clone() for n, p in model.named_parameters() if n.endswith("score.weight")]
        found.append((losses["loss_importance"].detach(), gates))
    return found


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 3


def _train(rank):
    model = DistributedDataParallel(built(), find_unused_parameters=True)
    return run(model, images()[rank : rank + 1])


def test_two_processes_balance_what_one_does_with_both_images(tmp_path):
    assert routed_resnet().leaves_parameters_out  # the trainer asks, and DDP then looks for them
    one, two = in_two_processes(_train, tmp_path)
    wanted = run(built(), images())
    for step, (loss, gates) in enumerate(wanted):
        for found in (one, two):
            assert float(found[step][0]) == pytest.approx(float(loss), rel=1e-4)
            for gate, own in zip(gates, found[step][1], strict=True):
                torch.testing.assert_close(own, gate, rtol=1e-3, atol=1e-6)
    # By the second step three quarters of the weight are left, over the images of both steps.
    assert float(wanted[1][0]) > 0
