"""Detectron2's evaluators as divdr sets them up, on data sets of a few pixels."""

import copy
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
from detectron2.evaluation import DatasetEvaluator, coco_evaluation
from detectron2.structures import Boxes, Instances
from host_waits import HostWaits
from PIL import Image
from pycocotools.cocoeval import COCOeval
from torch import nn

from divdr import get_divdr_config
from divdr.data import register_segmentation_folder
from divdr.engine import Trainer
from divdr.errors import DataError
from divdr.evaluation import build_task_evaluator
from divdr.evaluation.checked_evaluators import NumberedCOCOEvaluator, QuietEvaluators

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


def drawn_instances(folder, joints):
    """Random boxes of three classes, some of them crowds, with masks or joints, as a COCO file; and
    what a model that misses some, moves others and invents a few would give for each image.
    """
    draws = np.random.default_rng(3)
    annotations, outputs = [], []
    for image in range(1, 13):
        boxes, classes = [], []
        for _ in range(draws.integers(0, 9)):
            left, top = draws.integers(0, 100, 2)
            width, height = draws.integers(4, 120, 2)
            boxes.append([left, top, width, height])
            classes.append(draws.integers(0, 3))
            points = draws.integers(1, 200, (17, 2))
            seen = draws.integers(0, 3, (17, 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(classes[-1]) + 1,
                    "bbox": [int(each) for each in boxes[-1]],
                    "area": int(width * height),
                    "iscrowd": 0 if joints else int(draws.random() < 0.1),
                    "segmentation": [
                        [
                            int(left + x * width) if even == 0 else int(top + y * height)
                            for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))
                            for even in (0, 1)
                        ]
                    ],
                    **(
                        {
                            "keypoints": np.hstack((points, seen)).ravel().tolist(),
                            "num_keypoints": int((seen > 0).sum()),
                        }
                        if joints
                        else {}
                    ),
                }
            )
            if annotations[-1]["iscrowd"]:
                annotations[-1]["segmentation"] = {"size": [240, 240], "counts": [0, 9000, 48600]}
        kept = [i for i in range(len(boxes)) if draws.random() < 0.8]
        moved = [np.array(boxes[i]) + draws.integers(-4, 5, 4) for i in kept]
        invented = [[*draws.integers(0, 100, 2), 30, 30] for _ in range(2)]
        found = np.maximum(np.array([*moved, *invented], dtype=float), [0, 0, 1, 1])
        corners = np.hstack((found[:, :2], found[:, :2] + found[:, 2:]))
        instances = Instances((240, 240))
        instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32))
        # Few scores: equal ones must be ordered alike.
        instances.scores = torch.tensor(draws.integers(1, 8, len(found)) / 8)
        named = [classes[i] for i in kept] + [0, 1]
        instances.pred_classes = torch.tensor(np.array(named, dtype=np.int64))
        if joints:
            own = annotations[len(annotations) - len(boxes) :]
            true = [np.reshape(own[i]["keypoints"], (17, 3)) for i in kept]
            true += [np.ones((17, 3))] * 2
            shifts = draws.normal(0, 4, (len(true), 17, 3))
            instances.pred_keypoints = torch.tensor(np.array(true) + shifts, dtype=torch.float32)
        else:
            masks = torch.zeros(len(found), 240, 240, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, corners.astype(int), strict=True):
                mask[y0:y1, x0:x1] = True
            instances.pred_masks = masks
        outputs.append(({"image_id": image}, {"instances": instances}))
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 240, "height": 240} for i in range(1, 13)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate("abc")],
        "annotations": annotations,
    }
    (folder / "a.json").write_text(json.dumps(content))
    register_coco_instances(NAME, {}, str(folder / "a.json"), str(folder))
    MetadataCatalog.get(NAME).set(
        thing_classes=list("abc"), thing_dataset_id_to_contiguous_id={1: 0, 2: 1, 3: 2}
    )
    return outputs


@pytest.mark.parametrize("joints", [False, True])
@pytest.mark.parametrize("part", [None, [2, 3, 5, 8]])
def test_fast_evaluation_gives_the_figures_of_pycocotools(tmp_path, monkeypatch, joints, part):
    fast = pytest.importorskip("faster_coco_eval")
    used = []
    whole = fast.COCOeval_faster
    monkeypatch.setattr(
        fast, "COCOeval_faster", lambda *given: used.append(given[2]) or whole(*given)
    )
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", COCOeval)  # as if it were not compiled
    outputs = drawn_instances(tmp_path, joints)
    results = []
    for allowed in (True, False):
        evaluator = NumberedCOCOEvaluator(
            NAME, output_dir=str(tmp_path / "out"), distributed=False, use_fast_impl=allowed
        )
        evaluator.reset()
        for item, output in outputs:
            evaluator.process([item], [copy.deepcopy(output)])  # Detectron2 moves joints in place
        results.append(evaluator.evaluate(part))
        assert used == (["bbox", "keypoints"] if joints else ["bbox", "segm"])
    assert set(results[0]) == set(results[1]) == set(used)
    for task, figures in results[1].items():
        assert 5 < figures["AP"] < 95
        assert results[0][task] == pytest.approx(figures, abs=1e-6, nan_ok=True)


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
