"""Which expert got which class's boxes, from records made by hand."""

import numpy as np
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, BoxMode

from divdr.visualization.expert_choices import (
    ExpertChoices,
    choices_section,
    count_boxes,
    expert_choices_figure,
    proposal_classes,
    true_boxes,
)

HALF = Matcher([0.5], [0, 1])
# One box of 100 pixels at (10, 20), one crowd, and one of 40 at (0, 0).
RECORD = {
    "annotations": [
        {"bbox": [10, 20, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2},
        {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1},
        {"bbox": [0, 0, 8, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
    ]
}


def test_true_boxes_are_those_of_the_resized_image():
    item = {"image": torch.zeros(3, 80, 300), "height": 40, "width": 100}  # rows ×2, columns ×3
    boxes, classes = true_boxes(RECORD, item)
    assert boxes.tensor.tolist() == [[30, 40, 60, 60], [0, 0, 24, 10]]
    assert classes.tolist() == [2, 0]
    boxes, classes = true_boxes({}, item)
    assert (boxes.tensor.shape, classes.shape) == ((0, 4), (0,))


def test_proposals_have_the_class_of_the_box_they_lie_on():
    boxes = Boxes(torch.tensor([[30.0, 40, 60, 60], [0, 0, 24, 10]]))
    proposals = Boxes(
        torch.tensor(
            [
                [30.0, 40, 60, 59],  # on the first, nearly
                [30, 40, 60, 50],  # half of it, which is enough
                [30, 40, 44, 60],  # less than half
                [0, 0, 24, 10],  # on the second
                [70, 70, 90, 90],  # on nothing
            ]
        )
    )
    found = proposal_classes(proposals, boxes, torch.tensor([2, 0]), HALF)
    assert found.tolist() == [2, 2, -1, 0, -1]
    none = Boxes(torch.zeros(0, 4))
    assert proposal_classes(proposals, none, torch.zeros(0).long(), HALF).tolist() == [-1] * 5
    assert proposal_classes(none, boxes, torch.tensor([2, 0]), HALF).tolist() == []


def test_experts_are_counted_by_class_and_shown(tmp_path):
    ran = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0], [0, 1], [1, 0]]).bool()
    counts = count_boxes(ran, torch.tensor([2, 2, -1, 0, -1, 0]), 3)
    assert counts.tolist() == [[1, 0], [0, 0], [2, 1], [0, 2]]
    names = ["cat", "dog", "cow", "background"]
    choices = ExpertChoices("box head", ["expert 0", "expert 1"], names, counts, "boxes")
    np.testing.assert_allclose(choices.per_class(), [[1, 0], [0, 0], [2 / 3, 1 / 3], [0, 1]])
    lines = [line.split() for line in choices.table().splitlines()]
    assert lines[2] == ["cat", "1.00", "0.00"]
    assert lines[-1] == ["boxes", "3.00", "3.00"]
    section = choices_section({"coe": choices})
    assert section.tables[0].caption == "coe: boxes of each true class for which an expert ran."
    expert_choices_figure(choices).savefig(tmp_path / "choices.png")
    assert (tmp_path / "choices.png").stat().st_size > 5000
