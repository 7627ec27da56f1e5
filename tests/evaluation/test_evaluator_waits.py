"""How often evaluators let the host wait for the device, and that their figures stay the same."""

import pytest
import torch
from detectron2.modeling import SemanticSegmentor
from host_waits import HostWaits

from divdr.evaluation import RoutingEvaluator
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, attach_routing


def routed():
    torch.manual_seed(0)
    backbone = DynamicRouting(layers=4, scales=3, channels=4)
    for cell in backbone.network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, 0, 3.0)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    attach_routing(model, num_experts=2)
    return model.eval()


@pytest.mark.parametrize("count", [1, 5])
@torch.no_grad()
def test_the_routing_of_a_batch_is_asked_for_once(count):
    model = routed()
    inputs = [
        {"image": torch.randn(3, 32, 48) * i, "height": 32, "width": 48, "file_name": f"{i}"}
        for i in range(1, count + 1)
    ]
    outputs = model(inputs)
    found = []
    for mode in (HostWaits(), None):
        evaluator = RoutingEvaluator("some_set", model, sizes=[(64, 96)])
        evaluator.reset()
        if mode is None:
            evaluator.process(inputs, outputs)
        else:
            with mode:
                evaluator.process(inputs, outputs)
            assert mode.waits == ["cpu"], mode.places
        found.append(evaluator.evaluate()["routing"])
    assert found[0] == found[1]
    assert found[0]["images"] == count
