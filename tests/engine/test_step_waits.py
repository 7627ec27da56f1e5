"""A whole training step of a routed model, from the batch on the device to the optimiser's step."""

import torch
from detectron2.modeling import SemanticSegmentor
from detectron2.utils.events import EventStorage
from host_waits import HostWaits

from divdr.engine.finite import LossCheck
from divdr.engine.training_loop import TrainingLoop
from divdr.modeling import DynamicRouting, DynamicRoutingDecoder, attach_routing
from divdr.routing import Ramp

LAYERS = 4


def routed():
    torch.manual_seed(0)
    # Fewer channels than 8 are not for oneDNN, and HostWaits hides from cells that this is a CPU.
    backbone = DynamicRouting(layers=LAYERS, scales=3, channels=8, norm="BN")
    for cell in backbone.network.cells():
        torch.nn.init.normal_(cell.gate.predict.weight, 0, 3.0)
    head = DynamicRoutingDecoder(input_shape=backbone.output_shape(), num_classes=3)
    model = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3
    )
    routing = attach_routing(model, num_experts=2, budget=Ramp(0.5, 0, 0), budget_target=0.2)
    LossCheck.attach(model)
    return model.train(), routing


def test_a_step_waits_once_a_layer_and_once_in_a_period():
    model, routing = routed()
    batch = [
        {
            "image": torch.rand(3, 64, 64),
            "sem_seg": torch.randint(0, 3, (64, 64)),
            "file_name": name,
        }
        for name in ("a", "b", "c")
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    loop = TrainingLoop(model, [batch] * 10, optimizer, period=5)
    counts = []
    with EventStorage() as storage:
        for loop.iter in range(10):
            storage.iter = loop.iter
            with HostWaits() as device:
                loop.run_step()
            counts.append(len(device.waits))
            places = device.places
            if loop.iter == 3:
                routing.experts.cluster(3)  # from here on with the clustering loss
    for iteration, count in enumerate(counts):
        assert count <= LAYERS + ((iteration + 1) % 5 == 0), (counts, places)
    for name in ("loss_clustering", "loss_budget", "train/real_gflops", "total_loss"):
        found = storage.history(name).values()
        assert [at for _, at in found] == list(range(10))
