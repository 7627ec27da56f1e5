"""The trees' names in Detectron2."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

#: Photographs of each split; no photograph, and so no tile, is in two of them.
SPLITS = {
    "train": ("2019_YELL_2_528000_4978000_image_crop2",),
    "test": ("2019_YELL_2_541000_4977000_image_crop",),
    "other_sites": ("OSBS_029", "SOAP_061"),
}
FOLDER = "neon_trees"


def register_neon_trees(root: str | os.PathLike[str]) -> None:
    """Register ``neon_trees_train``, ``neon_trees_test`` and ``neon_trees_other_sites``.

    Nothing is read until they are used. Names that exist already are given the new folder.

    Args:
        root: the folder that holds "neon_trees"; as $DETECTRON2_DATASETS names.
    """
    folder = os.path.join(os.fspath(root), FOLDER)
    for split in SPLITS:
        name = f"neon_trees_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_coco_instances(
            name,
            {"thing_classes": ["tree"]},
            os.path.join(folder, "annotations", f"{split}.json"),
            os.path.join(folder, split),
        )
