"""Runs whose weights nobody trained, of data sets that are registered no more."""

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from divdr.engine import RoutingCheckpointer, Trainer, load_config
from divdr.engine.about import About

SCENES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.ROUTING.LAYERS": 3,
    "MODEL.ROUTING.SCALES": 3,
    "MODEL.ROUTING.CHANNELS": 4,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TEST": 32,
}


def untrained(folder, config, options, register):
    """A config with weights that nobody trained, made where a data set of their names existed."""
    pairs = [str(part) for pair in options.items() for part in pair]
    cfg = load_config(str(config), pairs)
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("was_there",)
    register("was_there")
    try:
        about = About.of(cfg, "was_there")
    finally:
        DatasetCatalog.remove("was_there")
        MetadataCatalog.remove("was_there")
    torch.manual_seed(1)
    RoutingCheckpointer(Trainer.build_model(cfg), str(folder), about=[about]).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    cfg.MODEL.WEIGHTS = str(folder)
    return cfg
