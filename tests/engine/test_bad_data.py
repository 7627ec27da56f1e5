"""Detectors with a routed backbone on odd and spoilt data, from loading to evaluation."""

import argparse
import json
import math

import forked
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from divdr.engine import Trainer, launch, load_config
from divdr.errors import DataError

NAME = "odd_boxes"
SIZES = [(64, 48), (48, 64), (320, 32), (16, 16)]  # width, height: one 10 to 1, one of 16 pixels


@pytest.fixture
def folder(tmp_path):
    """A registered data set of four images, the last two of odd sizes, with a box in each."""
    images, annotations = [], []
    generator = np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        pixels = generator.integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        image = {"id": index, "file_name": f"{index}.png", "width": width, "height": height}
        images.append(image)
        annotations.append(box(index, [2, 2, 10, 12], id=index + 1))
    write(tmp_path, images=images, annotations=annotations, categories=CATEGORIES)
    register_coco_instances(NAME, {}, str(tmp_path / "boxes.json"), str(tmp_path))
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def box(image, corners, **more):
    wanted = {"image_id": image, "category_id": 1, "bbox": corners, "iscrowd": 0}
    return wanted | {"area": corners[2] * corners[3]} | more


def write(folder, **parts):
    path = folder / "boxes.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | parts))


def options(folder, *more):
    """KEY VALUE pairs of a Faster R-CNN that trains in seconds."""
    pairs = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_dynamic_routing_fpn_backbone",
        "MODEL.ROUTING.LAYERS": 3,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4],
        "MODEL.ROUTING.CHANNELS": 4,
        "MODEL.ROUTING.BUDGET.WEIGHT": 0.5,
        "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS": 2,
        "MODEL.ROUTING.CLUSTERING.PERIOD": 2,
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
        "DATASETS.TRAIN": (NAME,),
        "DATASETS.TEST": (NAME,),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.ASPECT_RATIO_GROUPING": False,
        "INPUT.MIN_SIZE_TRAIN": (32,),
        "INPUT.MAX_SIZE_TRAIN": 320,
        "INPUT.MIN_SIZE_TEST": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.MAX_ITER": 4,
        "SEED": 1,
        "OUTPUT_DIR": str(folder / "out"),
    }
    return [str(part) for pair in pairs.items() for part in pair] + [str(m) for m in more]


def train(folder, *more):
    """Train and evaluate; the losses of the last iteration, and the results."""
    trainer = Trainer(load_config("", options(folder, *more)))
    trainer.train()
    results = trainer._last_eval_results
    losses = {k: v[0] for k, v in trainer.storage.latest().items() if "loss" in k}
    assert all(map(math.isfinite, losses.values()))
    return losses, results


RETINANET = (
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "2"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16]]"),
    *("MODEL.BACKBONE.NAME", "build_retinanet_dynamic_routing_fpn_backbone"),
    *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
)


@pytest.mark.parametrize("model", [(), RETINANET], ids=["Faster R-CNN", "RetinaNet"])
def test_long_and_tiny_images(folder, model):
    _, results = train(folder, *model)
    assert results["bbox"]["AP"] >= 0
    predicted = json.loads((folder / "out/inference/coco_instances_results.json").read_text())
    assert {entry["image_id"] for entry in predicted} == {0, 1, 2, 3}
    for entry in predicted:
        x, y, w, h = entry["bbox"]
        width, height = SIZES[entry["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3


@pytest.mark.parametrize("model", [(), RETINANET], ids=["Faster R-CNN", "RetinaNet"])
def test_images_without_annotations_train_as_background(folder, model):
    write(folder, annotations=[])
    losses, results = train(folder, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", *model)
    assert losses["loss_cls"] > 0
    assert losses.get("loss_rpn_loc", losses.get("loss_box_reg")) == 0
    assert not results["bbox"]["AP"] >= 0
    with pytest.raises(DataError, match=r"boxes\.json\): no image has an annotation to train on"):
        train(folder, *model)


@pytest.mark.parametrize("learn", ["boxes", "masks", "keypoints"])
def test_an_image_that_loses_all_its_boxes(folder, learn):
    more = {"segmentation": [[2, 2, 9, 2, 9, 9]], "keypoints": [3, 3, 2] * 2, "num_keypoints": 2}
    shapes = [[2, 2, 0, 12], [2, 2, 10, 0], [2, 2, 10, 12], [-9, 2, 9, 12]]
    write(folder, annotations=[box(i, s, id=i + 1, **more) for i, s in enumerate(shapes)])
    points = {"keypoint_names": ["a", "b"], "keypoint_flip_map": [("a", "b")]}
    MetadataCatalog.get(NAME).set(**points)
    losses, results = train(
        folder,
        *("MODEL.MASK_ON", learn == "masks", "MODEL.KEYPOINT_ON", learn == "keypoints"),
        *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("MODEL.ROI_MASK_HEAD.CONV_DIM", 4, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(4,)"),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2, "TEST.KEYPOINT_OKS_SIGMAS", "[.1, .1]"),
    )
    assert {"masks": "loss_mask", "keypoints": "loss_keypoint"}.get(learn, "loss_cls") in losses
    assert "bbox" in results


def run(capsys, folder, *more, eval_only=False):
    """What ``tools/train_net.py`` says on stderr before it leaves with code 2."""
    arguments = argparse.Namespace(
        config_file="", eval_only=eval_only, resume=False, opts=options(folder, *more)
    )
    with pytest.raises(SystemExit) as exit_info:
        launch.main(arguments)
    assert exit_info.value.code == 2
    # Other lines are of loggers that still write to the captured output of an earlier test.
    lines = capsys.readouterr().err.splitlines()
    reported = [line for line in lines if line.startswith("error: ")]
    assert len(reported) == 1
    assert lines[-1] == reported[0]
    return reported[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_training(capsys, folder, workers):
    path = folder / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    reported = run(capsys, folder, "DATALOADER.NUM_WORKERS", workers)
    assert reported.startswith(f"error: file {path} cannot be read as an image (")


def test_a_category_out_of_range_ends_before_training(capsys, folder):
    write(
        folder, annotations=[box(0, [1, 1, 9, 9], id=1), box(1, [1, 1, 9, 9], id=2, category_id=2)]
    )
    reported = run(capsys, folder, "MODEL.ROI_HEADS.NUM_CLASSES", 1)
    assert (
        f"({folder}/boxes.json): an annotation of image {folder}/1.png has category 1" in reported
    )
    assert not list(folder.glob("out/*.pth"))


@pytest.fixture
def weights(folder):
    trainer = Trainer(load_config("", options(folder, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")))
    trainer.train()
    return "MODEL.WEIGHTS", str(folder / "out/model_final.pth")


def test_evaluation_tells_of_spoilt_data(capsys, folder, weights):
    path = folder / "3.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    reported = run(capsys, folder, *weights, "DATALOADER.NUM_WORKERS", 1, eval_only=True)
    assert reported.startswith(f"error: file {path} cannot be read as an image (")
    path.unlink()
    reported = run(capsys, folder, *weights, eval_only=True)
    assert reported.endswith(f"({folder}/boxes.json): file {path} does not exist")
    path.write_bytes(whole)
    write(
        folder, annotations=[{k: v for k, v in box(0, [1, 1, 9, 9], id=1).items() if k != "area"}]
    )
    reported = run(capsys, folder, *weights, eval_only=True)
    assert reported.endswith("cannot be evaluated on: annotation 1 of image 0.png lacks 'area'")
    (folder / "boxes.json").write_text("{")
    assert "the file is not valid JSON" in run(capsys, folder, *weights, eval_only=True)


def test_the_command_line_says_one_sentence(folder, repository, tmp_path):
    path = folder / "0.png"
    path.write_bytes(b"no image")
    script = tmp_path / "train.py"
    file = str(folder / "boxes.json")
    script.write_text(
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.data.datasets import register_coco_instances\n"
        "from detectron2.engine import default_argument_parser\n"
        "from divdr.engine.launch import run\n"
        f"if {NAME!r} not in DatasetCatalog.list():\n"
        f"    register_coco_instances({NAME!r}, {{}}, {file!r}, {str(folder)!r})\n"
        "run(default_argument_parser().parse_args())\n"
    )
    result = forked.run([script, *options(folder, "DATALOADER.NUM_WORKERS", 1)], repository)
    assert result.returncode == 2, result.stderr
    reported = [li for li in result.stderr.splitlines() if "error" in li.lower() or "Trace" in li]
    assert len(reported) == 1
    assert reported[0].startswith(f"error: file {path} cannot be read as an image (")
