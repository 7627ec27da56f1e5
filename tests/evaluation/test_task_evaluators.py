"""Detectron2's evaluators as divdr sets them up, on data sets of a few pixels."""

import io
import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from host_waits import HostWaits
from PIL import Image
from torch import nn

from divdr import get_divdr_config
from divdr.data import register_segmentation_folder
from divdr.engine import Trainer
from divdr.errors import DataError
from divdr.evaluation import build_task_evaluator
from divdr.evaluation.checked_evaluators import QuietEvaluators

NAME = "task_evaluators"


@pytest.fixture(autouse=True)
def no_trace():
    yield
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog.list():
            catalog.remove(NAME)


@pytest.mark.parametrize("first", [0, 1, "a"])
def test_annotations_are_found_whatever_their_ids(tmp_path, first):
    ids = [first, "b" if first == "a" else first + 1]
    content = {
        "images": [{"id": 5, "file_name": "5.png", "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": number,
                "image_id": 5,
                "category_id": 1,
                "bbox": [corner, corner, 15, 15],
                "area": 225,
                "iscrowd": 0,
            }
            for number, corner in zip(ids, (0, 20), strict=True)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(tmp_path / "a.json"), str(tmp_path))
    DatasetCatalog.get(NAME)
    evaluator = build_task_evaluator(NAME, str(tmp_path / "out"), get_divdr_config())
    evaluator.reset()
    found = Instances((40, 40))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 15, 15], [20, 20, 35, 35]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    with HostWaits() as device:
        evaluator.process([{"image_id": 5}], [{"instances": found}])
    # What from_numpy makes, the stand-in does not see, and takes for the device's.
    assert [each for each in device.waits if each != "numpy"] == ["cpu"], device.places
    # Both boxes are predicted exactly.
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


class Printing(DatasetEvaluator):
    def __init__(self, failure=None):
        self.failure = failure

    def evaluate(self):
        print("road 0.93")
        logging.getLogger("divdr.printing").info("a word of its own")
        if self.failure is not None:
            raise self.failure
        return {"sem_seg": {"mIoU": 1.0}}


def test_what_evaluation_prints_goes_to_the_log_file_alone(tmp_path, capsys, monkeypatch):
    log = logging.getLogger("divdr")
    kept = io.StringIO()
    handlers = [logging.StreamHandler(sys.stdout), logging.StreamHandler(kept)]
    monkeypatch.setattr(log, "handlers", handlers)
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "level", logging.DEBUG)
    assert QuietEvaluators([Printing()]).evaluate() == {"sem_seg": {"mIoU": 1.0}}
    assert capsys.readouterr().out == "a word of its own\n"
    assert "road 0.93" in kept.getvalue()
    with pytest.raises(SystemExit):  # the reason is in what it printed
        QuietEvaluators([Printing(SystemExit(-1))]).evaluate()
    assert "road 0.93" in capsys.readouterr().out


@pytest.fixture
def labelled(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (3, 2)).save(tmp_path / "images" / "0.png")

    def write(labels):
        Image.fromarray(np.array(labels, np.uint8)).save(tmp_path / "labels" / "0.png")
        folders = [str(tmp_path / kind) for kind in ("images", "labels")]
        register_segmentation_folder(NAME, *folders, ["a", "b", "c"])
        return [{"file_name": str(tmp_path / "images" / "0.png")}]

    return write


def scores(classes):
    """What a model outputs that predicts these classes (H, W)."""
    return [{"sem_seg": nn.functional.one_hot(torch.tensor(classes), 3).permute(2, 0, 1)}]


def test_iou_of_labels_and_ignored_pixels(labelled, tmp_path):
    inputs = labelled([[0, 0, 1], [1, 255, 255]])
    evaluator = build_task_evaluator(NAME, str(tmp_path / "out"))
    evaluator.reset()
    evaluator.process(inputs, scores([[0, 1, 1], [1, 2, 0]]))
    found = evaluator.evaluate()["sem_seg"]
    # Class 0: one of its two pixels, nothing else; class 1: both, and one of class 0.
    assert found["IoU-a"] == pytest.approx(100 * 1 / 2)
    assert found["IoU-b"] == pytest.approx(100 * 2 / 3)
    assert math.isnan(found["IoU-c"])
    assert found["mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("labels", "reported"),
    [([[0, 0, 7], [0, 0, 0]], "holds 7"), ([[0, 0], [0, 0]], "is 2×2 pixels, its image 2×3")],
)
def test_labels_that_cannot_be_right_are_refused(labelled, tmp_path, labels, reported):
    inputs = labelled(labels)
    evaluator = build_task_evaluator(NAME, str(tmp_path / "out"))
    evaluator.reset()
    with pytest.raises(DataError, match=reported):
        evaluator.process(inputs, scores([[0, 1, 1], [1, 2, 0]]))


class Fixed(DatasetEvaluator):
    def evaluate(self):
        nothing = float("nan")
        return {"sem_seg": {"mIoU": np.float32(12.5), "IoU-c": nothing, "two-of": [1, nothing]}}


class Silent(nn.Module):
    def forward(self, inputs):
        return [{} for _ in inputs]


def test_results_are_json_where_a_figure_is_none(labelled, tmp_path):
    labelled([[0, 0, 1], [1, 255, 255]])
    cfg = get_divdr_config()
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (NAME,), str(tmp_path)
    cfg.DATALOADER.NUM_WORKERS = 0
    Trainer.test(cfg, Silent(), [Fixed()])

    def refuse(word):
        raise ValueError(word)

    text = (tmp_path / "inference" / "results.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found == {NAME: {"sem_seg": {"mIoU": 12.5, "IoU-c": None, "two-of": [1, None]}}}


def test_several_data_sets_write_into_folders_of_their_own(labelled, tmp_path):
    labelled([[0, 0, 1], [1, 255, 255]])
    cfg = get_divdr_config()
    cfg.OUTPUT_DIR = str(tmp_path)
    for names, folder in (((NAME,), "inference"), ((NAME, "other"), f"inference/{NAME}")):
        cfg.DATASETS.TEST = names
        evaluator = Trainer.build_evaluator(cfg, NAME)
        evaluator.reset()
        evaluator.process([], [])
        evaluator.evaluate()
        assert (tmp_path / folder / "sem_seg_predictions.json").is_file()
