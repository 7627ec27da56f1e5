"""Boxes, masks and segments over images: colours, labels, legends, and truths of data sets."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as coco_mask

from divdr.visualization.predictions import Thing, draw_output, draw_things, draw_truth

META = Metadata(
    name="drawn",
    thing_classes=["cat", "dog"],
    thing_colors=[(250, 0, 0), (0, 0, 250)],
    stuff_classes=["sky", "sea"],
    stuff_colors=[(0, 200, 0), (200, 200, 0)],
)
GREY = np.full((320, 640, 3), 128, np.uint8)
RED, BLUE = (250, 0, 0), (0, 0, 250)


def pixels(picture, colour):
    return (picture == colour).all(2)


def test_a_label_stands_at_a_box_that_has_room_for_it_and_at_no_other():
    large, small = (100.0, 100.0, 300.0, 200.0), (400.0, 100.0, 412.0, 112.0)
    drawn = draw_things(GREY, [Thing(0, large, 0.9), Thing(1, small, 0.8)], META)
    assert drawn.legend == {"cat": RED, "dog": BLUE}
    assert pixels(drawn.picture[80:99], RED).sum() > 300  # a filled place above the box
    assert not pixels(drawn.picture[:99], BLUE).any()
    assert pixels(drawn.picture[100:113, 400:413], BLUE).any()
    inside = pixels(drawn.picture[104:197, 104:297], (128, 128, 128))
    assert inside.all()  # what is in the box is to be seen


def test_labels_do_not_cover_each_other():
    boxes = [(100.0, 100.0, 300.0, 200.0), (110.0, 102.0, 310.0, 210.0)]
    both = draw_things(GREY, [Thing(0, boxes[0], 0.9), Thing(1, boxes[1], 0.8)], META).picture
    assert pixels(both[80:99], RED).sum() > 300
    assert pixels(both, BLUE).sum() < 2 * 2 * (200 + 108) + 20  # the box's lines alone


def test_a_crowd_has_no_labels_but_a_legend():
    things = [Thing(n % 2, (6.0 * n, 100.0, 6.0 * n + 90, 200.0), 0.9) for n in range(60)]
    drawn = draw_things(GREY, things, META)
    assert (drawn.picture[:99] == 128).all()
    assert list(drawn.legend) == ["cat", "dog"]
    whole = drawn.with_legend()
    assert whole.shape[1] == 640
    below = whole[len(drawn.picture) :]
    assert pixels(below, RED).sum() > 50
    assert pixels(below, BLUE).sum() > 50


def test_small_images_are_enlarged_so_that_lines_are_thin_in_them():
    drawn = draw_things(GREY[:16, :32], [Thing(0, (8.0, 4.0, 24.0, 12.0))], META)
    assert drawn.picture.shape == (320, 640, 3)
    assert pixels(drawn.picture[78:84, 200:400], RED).any()
    assert pixels(drawn.picture[100:230, 180:470], (128, 128, 128)).all()


def test_what_a_detector_found_above_the_confidence():
    found = Instances((320, 640))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 50, 110, 150], [300, 50, 400, 150]]))
    found.scores, found.pred_classes = torch.tensor([0.4, 0.9]), torch.tensor([0, 1])
    found.pred_masks = torch.zeros(2, 320, 640, dtype=torch.bool)
    found.pred_masks[:, 60:140, 320:380] = True
    drawn = draw_output(GREY, {"instances": found}, META, confidence=0.5)
    assert drawn.legend == {"dog": BLUE}
    middle = drawn.picture[100, 350]
    assert middle.tolist() == [77, 77, 177]  # 0.6 · 128 + 0.4 · (0, 0, 250)
    assert drawn.picture[60, 350].tolist() == list(BLUE)  # the mask's outline


def test_segments_have_their_classes_colours_and_lines_between_them():
    segments = torch.ones(320, 640, dtype=torch.int64)
    segments[:, 320:] = 2
    info = [
        {"id": 1, "isthing": False, "category_id": 1},
        {"id": 2, "isthing": True, "category_id": 0},
    ]
    drawn = draw_output(GREY, {"panoptic_seg": (segments, info)}, META)
    assert drawn.legend == {"sea": (200, 200, 0), "cat": RED}
    assert drawn.picture[5, 5].tolist() == [164, 164, 64]  # halfway to the class's colour
    assert drawn.picture[5, 600].tolist() == [189, 64, 64]
    assert (drawn.picture[:, 320] == 255).all()


@pytest.mark.parametrize("runs", [False, True])
def test_the_truth_of_a_smaller_picture_and_without_crowds(runs):
    mask = np.zeros((640, 1280), np.uint8, order="F")
    mask[200:400, 200:400] = 1
    outline = [[200, 200, 400, 200, 400, 400, 200, 400]]
    entry = {
        "bbox": [200, 200, 200, 200],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": coco_mask.encode(mask) if runs else outline,
    }
    crowd = {**entry, "category_id": 0, "iscrowd": 1}
    item = {"height": 640, "width": 1280, "annotations": [entry, crowd]}
    drawn = draw_truth(GREY, item, META)
    assert drawn.legend == {"dog": BLUE}
    assert drawn.picture[150, 150].tolist() == [77, 77, 177]
    assert drawn.picture[150, 90].tolist() == [128, 128, 128]
    assert draw_truth(GREY, {"file_name": "x"}, META) is None


def test_the_truth_of_a_panoptic_file(tmp_path):
    colours = np.zeros((320, 640, 3), np.uint8)
    colours[:, 320:] = (2, 1, 0)  # 2 + 256
    Image.fromarray(colours).save(tmp_path / "p.png")
    info = [{"id": 258, "isthing": True, "category_id": 1}]
    item = {"pan_seg_file_name": str(tmp_path / "p.png"), "segments_info": info}
    drawn = draw_truth(GREY, item, META)
    assert drawn.legend == {"dog": BLUE}
    assert drawn.picture[5, 600].tolist() == [64, 64, 189]
    assert drawn.picture[5, 5].tolist() == [128, 128, 128]
