"""A trainer counts the classes of its data set before it trains."""

import math

import numpy as np
import pytest
from PIL import Image

from divdr.data import register_segmentation_folder
from divdr.engine import Trainer, load_config


def test_a_trainer_balances_its_classes(draw_halves, names_under, overrides, repository, tmp_path):
    draw_halves(tmp_path)
    share = np.mean([np.array(Image.open(f)) for f in (tmp_path / "labels").iterdir()])
    with names_under(tmp_path):
        register_segmentation_folder(
            "halves", str(tmp_path / "images"), str(tmp_path / "labels"), ["dark", "bright"]
        )
        own = {
            "DATASETS.TRAIN": ("halves",),
            "DATASETS.TEST": (),
            "OUTPUT_DIR": tmp_path / "run",
            "SOLVER.MAX_ITER": 2,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
            "MODEL.SEM_SEG_HEAD.LOSS.BALANCE": "log",
            "MODEL.SEM_SEG_HEAD.LOSS.HARD_PIXELS": 0.5,
            "MODEL.SEM_SEG_HEAD.LOSS.DICE": 1.0,
        }
        pairs = [*overrides, *(str(part) for pair in own.items() for part in pair)]
        trainer = Trainer(load_config(str(repository / "configs/demo/divdr.yaml"), pairs))
        weights = trainer.model.sem_seg_head.criterion.class_weights.tolist()
        wanted = [1 / math.log(1.02 + p) for p in (1 - share, share)]
        assert weights == pytest.approx(wanted, rel=1e-6)
        trainer.train()
        assert trainer.storage.latest()["loss_dice"][0] > 0
        assert (tmp_path / "run/class_frequencies.json").is_file()
