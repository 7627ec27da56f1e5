"""Segmentation of street scenes and boxes of objects over one routed ResNet."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from divdr.config import task_config, task_numbers
from divdr.data import build_test_loader, build_train_loader, check_data
from divdr.engine import Predictor, Trainer, load_config
from divdr.engine.about import About, drawing_metadata
from divdr.engine.checkpointer import load_for_evaluation
from divdr.errors import ConfigError, DataError
from divdr.modeling import RoutedResNet
from divdr.visualization.predicting import predict_files

BRIEFLY = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.STEPS": (),
}


@pytest.fixture
def config(repository, drawn, tmp_path):
    def load(**more):
        pairs = {**BRIEFLY, "OUTPUT_DIR": str(tmp_path), **more}
        path = str(repository / "configs/small/routed_two_tasks.yaml")
        return load_config(path, [part for pair in pairs.items() for part in pair])

    return load


def test_both_tasks_train_and_are_evaluated(config, tmp_path):
    cfg = config()
    trainer = Trainer(cfg)
    names = [name for name in trainer.model.state_dict() if "res2.0.conv1.weight" in name]
    assert names == ["backbone.bottom_up.res2.0.conv1.weight"]  # once, under one name
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    moved = {k for k, v in trainer.model.state_dict().items() if not v.equal(before[k])}
    assert {
        "tasks.0.sem_seg_head.predictor.weight",
        "tasks.1.roi_heads.box_predictor.bbox_pred.bias",
        "backbone.bottom_up.embedding.weight",
    } <= moved
    assert {"loss_sem_seg", "loss_cls", "loss_load"} <= set(trainer.storage.histories())
    results = json.loads((tmp_path / "inference/results.json").read_text())
    assert "mIoU" in results["cityscapes_fine_sem_seg_val"]["sem_seg"] or (
        "IoU" in results["cityscapes_fine_sem_seg_val"]["sem_seg"]
    )
    assert "AP" in results["coco_2017_val"]["bbox"]
    for figures in results.values():
        # k from 3 to 1 over 13 layers: 3 four times, 2 six times, 1 three times.
        assert figures["cost"]["mean_experts"] == pytest.approx(27 / 13)

    model = Trainer.build_model(cfg).eval()
    load_for_evaluation(model, str(tmp_path / "model_final.pth"))
    images = [next(iter(build_test_loader(cfg, name)))[0] for name in cfg.DATASETS.TEST]
    with torch.no_grad():
        (street,), (objects,) = (model([image]) for image in images)
        assert street["sem_seg"].shape[0] == 19
        assert "instances" in objects
        routed = next(m for m in model.modules() if isinstance(m, RoutedResNet))
        # The gates see the task: its embedding alone changes what runs, or how it is weighted.
        weights = []
        for task in (0, 1):
            routed.task = task
            routed(torch.zeros(1, 3, 64, 64))
            weights.append(torch.cat(routed.expert_record.weights, dim=1))
        assert not weights[0].equal(weights[1])
    _files_are_predicted_by_task(cfg, tmp_path, model, images)
    for wrong, told in (
        ([{}], "an image must say its task"),
        ([{"task": 2}], "task 2 has no head; the model's tasks are 0 to 1"),
        ([{"task": 0}, {"task": 1}], "a batch is of one task, and this one is of 0, 1"),
    ):
        with pytest.raises(DataError, match=told):
            model(wrong)


def _files_are_predicted_by_task(cfg, tmp_path, model, images):
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    for task, (kind, named) in enumerate((("sem_seg", "road"), ("instances", "person"))):
        predictor = Predictor(cfg, task)
        output = predictor(images[task]["file_name"])
        with torch.no_grad():
            (wanted,) = model([images[task]])
        if task:
            boxes = [each["instances"].pred_boxes.tensor for each in (output, wanted)]
            torch.testing.assert_close(*boxes)
        else:
            torch.testing.assert_close(output[kind], wanted[kind])
        classes = predictor.metadata.thing_classes if task else predictor.metadata.stuff_classes
        assert classes[0] == named
        predict_files(predictor, [Path(images[task]["file_name"])], tmp_path / str(task))
        assert len(list((tmp_path / str(task)).iterdir())) == 1
    listed = r"2 tasks, 0 \(cityscapes_fine_sem_seg_train\), 1 \(coco_2017_train\)"
    with pytest.raises(ConfigError, match=listed + ": say which to predict by its number"):
        Predictor(cfg)
    with pytest.raises(ConfigError, match=listed + ": task 2 is none"):
        Predictor(cfg, 2)
    # The checkpoint knows the classes where the data sets are not registered.
    about = About.from_dict(torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["divdr"])
    other = cfg.clone()
    other.DATASETS.TRAIN = other.DATASETS.TEST = ("there_is_none", "nor_one_here")
    assert drawing_metadata(other, about, 0).stuff_classes[1] == "sidewalk"
    assert drawing_metadata(other, about, 1).thing_classes[1] == "bicycle"
    assert drawing_metadata(other, None, 1).thing_classes == [str(n) for n in range(80)]


def test_a_batch_is_of_one_task_and_tasks_come_by_their_size(config):
    batches = list(islice(build_train_loader(config()), 40))
    tasks = [{item["task"] for item in batch} for batch in batches]
    assert all(len(found) == 1 for found in tasks)
    assert all(("sem_seg" in batch[0]) == (batch[0]["task"] == 0) for batch in batches)
    # 8 street scenes and 12 images of objects: an epoch is four and six batches.
    streets = sum(found == {0} for found in tasks)
    assert 14 <= streets <= 18


def test_tasks_of_data_sets(config):
    cfg = config()
    assert task_numbers(cfg) == {
        "cityscapes_fine_sem_seg_train": 0,
        "coco_2017_train": 1,
        "cityscapes_fine_sem_seg_val": 0,
        "coco_2017_val": 1,
    }
    own = task_config(config(**{"MODEL.MULTI_TASK.CLASSES": [19, 7]}), 1)
    assert own.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert own.MODEL.ROI_HEADS.NUM_CLASSES == 7
    assert own.DATASETS.TRAIN == ("coco_2017_train",)
    swapped = config(**{"DATASETS.TEST": ("coco_2017_val", "cityscapes_fine_sem_seg_val")})
    with pytest.raises(DataError, match="is evaluated by instances, which SemanticSegmentor does"):
        check_data(swapped)
    try:
        for split in ("train", "val"):
            MetadataCatalog.get(f"coco_2017_{split}").task = "boxes"
            MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}").task = "streets"
        assert task_numbers(swapped) == task_numbers(cfg)
    finally:
        for split in ("train", "val"):
            for name in ("coco_2017", "cityscapes_fine_sem_seg"):
                del MetadataCatalog.get(f"{name}_{split}").__dict__["task"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("MODEL.MULTI_TASK.ARCHITECTURES", ["SemanticSegmentor"], "has no head"),
        ("MODEL.MULTI_TASK.ARCHITECTURES", ["SemanticSegmentor", "FCOS"], "not 'FCOS'"),
        ("MODEL.MULTI_TASK.CLASSES", [19], "CLASSES has 1 numbers, and ARCHITECTURES 2 tasks"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5, "NUM_CLASSES is 5, but data set 'cityscapes"),
        ("DATASETS.TRAIN", ("cityscapes_fine_sem_seg_train",), "TRAIN is of task 1, which has"),
    ],
)
def test_settings_that_cannot_be(config, key, value, told):
    with pytest.raises((ConfigError, DataError), match=told):
        check_data(config(**{key: value}))
