"""The names of the drawn subsets in Detectron2."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg

from divdr.data.drawn import SPLITS
from divdr.errors import DataError

from .record import FOLDER, load_subsets, scenes_below

MAX_SUBSETS = 4

#: Those of shapes of four subsets; of K subsets there are K + 1, and digits use the first three.
CLASSES = ("background", *(f"class_{number}" for number in range(1, MAX_SUBSETS + 1)))
_COLOURS = ((110, 110, 110), (220, 60, 60), (60, 180, 75), (70, 110, 230), (240, 200, 50))


def subset_names(split: str) -> list[str]:
    """``subsets_SPLIT``, and ``subsets_SPLIT_k`` with the images of subset k alone."""
    return [f"subsets_{split}", *(f"subsets_{split}_{k}" for k in range(MAX_SUBSETS))]


def register_subsets(root: str | os.PathLike[str]) -> None:
    """Register ``subsets_train``, ``subsets_val``, and both with ``_0`` to ``_3`` for one subset.

    Nothing but the record, if there is one, is read until they are used: it tells the number of
    classes. Names that exist already are given the new folder. The dicts hold, beside Detectron2's
    keys, "subset".

    Args:
        root: the folder that holds "subsets"; as $DETECTRON2_DATASETS names.
    """
    root = os.fspath(root)
    classes = 1 + _subset_count(root)
    for split in SPLITS:
        for only, name in enumerate(subset_names(split), start=-1):
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
            _register(name, root, split, only if only >= 0 else None, classes)


def _subset_count(root: str) -> int:
    """Of the data set that is there; of one that is to come, as many as there can be."""
    try:
        record = scenes_below(root).read() or {}
        return int(record["settings"]["look"]["subsets"])
    except (DataError, KeyError, TypeError, ValueError):
        return MAX_SUBSETS


def _register(name: str, root: str, split: str, only: int | None, classes: int) -> None:
    images, labels = (os.path.join(root, FOLDER, top, split) for top in ("images", "labels"))

    def load() -> list[dict]:
        subsets = load_subsets(root)
        dicts = load_sem_seg(labels, images, gt_ext="png", image_ext="png")
        for item in dicts:
            stem = os.path.splitext(os.path.basename(item["file_name"]))[0]
            item["subset"] = subsets[stem]
        return [item for item in dicts if only is None or item["subset"] == only]

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(CLASSES[:classes]),
        stuff_colors=[list(colour) for colour in _COLOURS[:classes]],
        image_root=images,
        sem_seg_root=labels,
        evaluator_type="sem_seg",
        ignore_label=255,
    )
