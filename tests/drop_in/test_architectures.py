"""Every architecture of docs/guide/drop_in.md trains, saves and predicts with the backbone."""

import json

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.structures import Instances

from divdr.engine import Trainer, load_config, load_for_evaluation
from divdr.modeling import attached_routing

CONFIGS = {
    "faster_rcnn": ("divdr_coco_faster_rcnn", "bbox"),
    "faster_rcnn_fpn": ("drop_in/faster_rcnn_fpn", "bbox"),
    "mask_rcnn": ("divdr_coco_mask_rcnn", "segm"),
    "cascade_mask_rcnn": ("drop_in/cascade_mask_rcnn", "segm"),
    "keypoint_rcnn": ("drop_in/keypoint_rcnn", "keypoints"),
    "retinanet": ("drop_in/retinanet", "bbox"),
    "panoptic_fpn": ("drop_in/panoptic_fpn", "panoptic_seg"),
    "semantic_fpn": ("drop_in/semantic_fpn", "sem_seg"),
    "point_rend": ("drop_in/point_rend", "segm"),
    "deeplab_v3_plus": ("drop_in/deeplab_v3_plus", "sem_seg"),
    "panoptic_deeplab": ("drop_in/panoptic_deeplab", "panoptic_seg"),
}

OWN = {
    "point_rend": {"TEST.DETECTIONS_PER_IMAGE": 10},  # each of which is refined at 224×224 points
    "retinanet": {
        "MODEL.ROUTING.LAYERS": 4,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4, 4],
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    },
    "deeplab_v3_plus": {
        "MODEL.ROUTING.LAYERS": 4,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4, 4],
        "INPUT.CROP.SIZE": (64, 64),
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
    },
    "panoptic_deeplab": {
        "MODEL.ROUTING.LAYERS": 4,
        "MODEL.ROUTING.SCALES_PER_LAYER": [2, 3, 4, 4],
        "INPUT.CROP.SIZE": (128, 128),
        "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": 128,
        "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD": 0.001,
        "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA": 16,
        "INPUT.MIN_SIZE_TEST": 96,
        "INPUT.MAX_SIZE_TEST": 128,
        "SOLVER.BASE_LR": 0.0001,
    },
}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_trains_saves_and_predicts(architecture, repository, drawn, small, tmp_path):
    config, task = CONFIGS[architecture]
    pairs = {**small, **OWN.get(architecture, {})}
    cfg = load_config(
        str(repository / "configs" / f"{config}.yaml"), [str(p) for i in pairs.items() for p in i]
    )
    trainer = Trainer(cfg)
    start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()

    losses = {"loss_budget", "loss_clustering"}
    assert losses <= set(trainer.storage.histories())
    assert trainer.storage.history("loss_budget").latest() > 0
    moved = [k for k, v in trainer.model.state_dict().items() if not v.equal(start[k])]
    gates = [k for k in moved if ".gate." in k and k.endswith("weight")]
    heads = [k for k in moved if "backbone" not in k]
    assert gates, "no gradient reached a gate"
    assert heads

    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    (figures,) = results.values()
    assert task in figures
    assert figures["routing"]["images"] == 4
    assert len([k for k in figures["routing"] if k.startswith("images_expert_")]) == 2

    model = Trainer.build_model(cfg)
    load_for_evaluation(model, str(tmp_path / "model_final.pth"), routing=attached_routing(model))
    (batch,) = list(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0]))[:1]
    with torch.no_grad():
        trained = trainer.model.eval()(batch)[0]
        loaded = model.eval()(batch)[0]
    assert loaded["routing"].activations.equal(trained["routing"].activations)
    assert set(loaded) == set(trained)
    for name in set(loaded) - {"routing"}:
        assert_same(loaded[name], trained[name])


def assert_same(found, wanted):
    """Equal predictions: instances, logits, or a panoptic map with its segments."""
    if isinstance(found, Instances):
        assert len(found) == len(wanted)
        assert found.scores.equal(wanted.scores)
    elif isinstance(found, tuple):
        assert found[0].equal(wanted[0])
        assert found[1] == wanted[1]
    else:
        assert found.equal(wanted)
