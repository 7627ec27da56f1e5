"""A small data set of drawn street scenes and a config that trains on it in seconds."""

import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from divdr.data import register_segmentation_folder
from divdr.engine import Trainer, load_config


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Folder for $DETECTRON2_DATASETS with 8 training and 4 validation scenes."""
    from drawn.streetscapes import make_streetscapes

    root = tmp_path_factory.mktemp("scenes")
    make_streetscapes(root, train=8, val=4, height=64, width=128, seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def draw_halves():
    """Draws a folder of images, a dark and a bright half, and one of their labels."""

    def draw(folder, count=6):
        for kind in ("images", "labels"):
            (folder / kind).mkdir()
        generator = np.random.default_rng(0)
        for index in range(count):
            labels = np.zeros((64, 96), np.uint8)
            labels[:, generator.integers(20, 60) :] = 1
            image = labels[..., None] * 120 + generator.integers(0, 60, (64, 96, 3))
            Image.fromarray(labels).save(folder / "labels" / f"{index}.png")
            Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{index}.png")

    return draw


@pytest.fixture(scope="session")
def overrides():
    """KEY VALUE pairs over configs/demo/divdr.yaml: ten iterations of a tiny network."""
    pairs = {
        "SOLVER.MAX_ITER": 10,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.WARMUP_ITERS": 0,
        "MODEL.ROUTING.LAYERS": 3,
        "MODEL.ROUTING.SCALES": 3,
        "MODEL.ROUTING.CHANNELS": 4,
        "MODEL.ROUTING.DROP_PATH": 0.2,
        "MODEL.ROUTING.CLUSTERING.START": 0.0,
        "MODEL.ROUTING.CLUSTERING.PERIOD": 2,
        "MODEL.ROUTING.CLUSTERING.NUM_EXPERTS": 2,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
        "INPUT.CROP.SIZE": (64, 64),
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "TEST.PRECISE_BN.NUM_ITER": 2,
    }
    return [str(part) for pair in pairs.items() for part in pair]


@pytest.fixture
def environment(scenes):
    """Environment of a process that trains on the scenes, with one thread."""
    return {**os.environ, "DETECTRON2_DATASETS": str(scenes), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def few_digits():
    """Names of 400 digits to train on and 120 others to test on."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    names = []
    for split, count in (("train", 400), ("test", 120)):
        records = DatasetCatalog.get(f"digits_{split}")[:count]
        name = f"few_digits_{split}"
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(
            classes=[str(i) for i in range(10)], evaluator_type="classification"
        )
        names.append(name)
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def halves_run(repository, tmp_path_factory, overrides, draw_halves):
    """A finished run of a tiny network with two experts: its configuration."""
    folder = tmp_path_factory.mktemp("run")
    draw_halves(folder, 8)
    register_segmentation_folder(
        "halves", str(folder / "images"), str(folder / "labels"), classes=["dark", "bright"]
    )
    pairs = {
        "DATASETS.TRAIN": ("halves",),
        "DATASETS.TEST": ("halves",),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
        "OUTPUT_DIR": str(folder / "out"),
    }
    (folder / "out").mkdir()
    cfg = load_config(
        str(repository / "configs/demo/divdr.yaml"),
        [*overrides, *(str(part) for pair in pairs.items() for part in pair)],
    )
    Trainer(cfg).train()
    cfg.MODEL.WEIGHTS = str(folder / "out" / "model_final.pth")
    yield cfg
    DatasetCatalog.remove("halves")
