"""Batches come to a device whole, without a wait."""

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from host_waits import HostWaits

from divdr.engine.batches import batch_on_device


def test_everything_travels_and_nobody_waits():
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 2, 3], [1, 1, 3, 3]]))
    instances.gt_classes = torch.tensor([1, 0])
    instances.gt_masks = BitMasks(torch.ones(2, 4, 6, dtype=torch.bool))
    instances.gt_polygons = PolygonMasks([[[0.0, 0, 2, 0, 2, 2]], [[1.0, 1, 3, 1, 3, 3]]])
    item = {"image": torch.rand(3, 4, 6), "sem_seg": torch.zeros(4, 6), "instances": instances}
    item |= {"file_name": "a.png", "height": 4}
    with HostWaits() as device:
        host = [item["image"], item["sem_seg"], instances.gt_classes]
        device.on_host(*host, instances.gt_boxes.tensor, instances.gt_masks.tensor)
        (moved,) = batch_on_device([item], "cuda")
        assert device.waits == [], device.places
        own = moved["instances"]
        there = [moved["image"], moved["sem_seg"], own.gt_classes, own.gt_boxes.tensor]
        assert all(each.is_cuda for each in (*there, own.gt_masks.tensor))
    assert moved["image"].equal(item["image"])
    assert own.gt_boxes.tensor.equal(instances.gt_boxes.tensor)
    assert own.gt_polygons is instances.gt_polygons
    assert (own.image_size, moved["file_name"], moved["height"]) == ((4, 6), "a.png", 4)


def test_what_is_no_batch_is_left_alone():
    pair = (torch.ones(2), torch.zeros(2))
    assert batch_on_device(pair, "cuda") is pair
